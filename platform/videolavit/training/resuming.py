"""Comparison of a checkpoint with a run: all that decides results decides a resume."""

from collections.abc import Collection, Mapping
from typing import Any

from videolavit.records.identity import differences

_WITHOUT_EFFECT = ("show", "validation", "cache")
"""Beginnings of the names of settings that decide no result: what is shown, what is validated, what is kept."""

_OF_LIBRARIES = ("transformers_version",)
"""Entries of a model's config that name the library that wrote it."""


def changes(theirs: Mapping[str, Any], ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Compares the identity of a checkpoint with that of a run: name -> line `name: theirs -> ours`.

    Args:
        defaults: Values that theirs had where it does not name them.
    """
    old, new = (_deciding(one, defaults) for one in (theirs, ours))
    new["sources"], old["sources"] = _named_by_both(new.get("sources", []), old.get("sources", []))
    return {line.partition(":")[0]: line for line in differences(old, new)}


def refused(changed: Mapping[str, str], accepted: Collection[str]) -> dict[str, str]:
    """Changes that are not accepted: neither by their name nor by that of a group, as `objective` of
    `objective.noise`."""
    return {
        name: line
        for name, line in changed.items()
        if not any(name == one or name.startswith(f"{one}.") for one in accepted)
    }


def _deciding(identity: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an identity that decide results."""
    known = dict(identity)
    if "objective" in known:
        known["objective"] = _with_effect(_filled(known["objective"], defaults.get("objective", {})))
    if isinstance(known.get("model"), dict):
        known["model"] = {name: value for name, value in known["model"].items() if name not in _OF_LIBRARIES}
    return known


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the defaults of those that are missing."""
    filled = {**defaults, **values}
    for name, value in filled.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            filled[name] = _filled(value, defaults[name])
    return filled


def _with_effect(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _with_effect(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if not name.startswith(_WITHOUT_EFFECT)
    }


def _named_by_both(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sources without where they lie, and without what the older of two checkpoints does not say of them."""
    if len(one) != len(other):
        return one, other
    kept = [(left.keys() & right.keys()) - {"name"} for left, right in zip(one, other, strict=True)]

    def named(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: source[name] for name in sorted(names)} for source, names in zip(sources, kept, strict=True)]

    return named(one), named(other)
