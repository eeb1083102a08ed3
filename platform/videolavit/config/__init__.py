"""Training recipes that come with the package: YAML files under `training/PRESET/COMPONENT.yaml`, and no code."""
