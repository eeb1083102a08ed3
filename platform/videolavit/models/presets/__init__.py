"""The presets `tiny`, `mini`, `small` and `video-lavit-7b`: shapes of whole models, a YAML file each."""

from importlib import resources
from pathlib import Path

import yaml

from ..config import ModelConfig
from ..network import ModelError, parse_config

PRESETS = ("tiny", "mini", "small", "video-lavit-7b")


def load_preset(name: str) -> ModelConfig:
    """Loads the shapes of a preset.

    Raises:
        ModelError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ModelError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text()
    return parse_config(ModelConfig, yaml.safe_load(text) or {}, f"preset {name}")


def load_config(preset: str) -> ModelConfig:
    """Loads shapes by the name of a preset, or from a YAML file of the same form.

    Raises:
        ModelError: neither a preset nor a readable file; or a key or value in the file is wrong.
    """
    if preset in PRESETS:
        return load_preset(preset)
    try:
        values = yaml.safe_load(Path(preset).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{preset!r} is no preset ({', '.join(PRESETS)}), nor a YAML file: {error}") from None
    return parse_config(ModelConfig, values or {}, preset)
