"""Choice of the parameters that are trained, and of their learning rates, by patterns of their names."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from videolavit.models.objective import Objective

from .data import DataError

SHOWN_NAMES = 8


def select_trainable(objective: Objective, patterns: Sequence[str]) -> None:
    """Makes the parameters trainable whose names match a pattern, and no others; in place.

    Networks that an objective never changes stay as they are. Without patterns the component's own choice stands.

    Raises:
        DataError: a pattern matches no name.
    """
    if not patterns:
        return
    fixed = {id(value) for network in objective.fixed() for value in network.parameters()}
    names = {name: value for name, value in objective.named_parameters() if id(value) not in fixed}
    check_patterns(patterns, names, "trainable")
    for name, value in names.items():
        value.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def lr_scale(objective: Objective, name: str, scales: Mapping[str, float]) -> float:
    """Factor of a parameter's learning rate: that of the first pattern that matches, or the component's."""
    return next((scale for pattern, scale in scales.items() if fnmatchcase(name, pattern)), objective.lr_scale(name))


def check_patterns(patterns: Iterable[str], names: Iterable[str], setting: str) -> None:
    """Raises DataError if a pattern of a setting matches no name."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
            raise DataError(f"{setting}: no parameter matches {pattern!r}; there are {shown}")


def trained(objective: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name. Raises DataError without any."""
    found = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    if not found:
        raise DataError("no parameter is trained")
    return found
