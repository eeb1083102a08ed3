"""Recipes: settings of components that ship with the package, one YAML file for each."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter

from .components import settings_type

if TYPE_CHECKING:
    from .component import ComponentSettings
    from .settings import TrainSettings  # torch takes seconds, and names of recipes need none

RECIPES = Path(str(resources.files("videolavit.config"))) / "training"


class UnknownRecipe(ValueError):
    """No recipe has that name, or the recipe has no settings for the component."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a component's training."""

    objective: "ComponentSettings"
    settings: "TrainSettings"


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(folder.name for folder in RECIPES.iterdir() if folder.is_dir() and not folder.name.startswith("_"))


def recipe_file(name: str, component: str) -> Path:
    """YAML file of a recipe for a component.

    Raises:
        UnknownRecipe: there is none.
    """
    if name not in recipe_names():
        raise UnknownRecipe(f"there is no recipe {name!r}; choose one of {', '.join(recipe_names())}")
    file = RECIPES / name / f"{component}.yaml"
    if not file.is_file():
        raise UnknownRecipe(f"the recipe {name} has no {component}")
    return file


def has_recipe(name: str, component: str) -> bool:
    """Tells whether a recipe has settings for a component."""
    return (RECIPES / name / f"{component}.yaml").is_file()


def load_recipe(name: str, component: str) -> Recipe:
    """Settings of a recipe for a component.

    Raises:
        UnknownRecipe, UnknownComponent: there is none.
    """
    from .settings import TrainSettings

    kind = settings_type(component)
    values: dict[str, Any] = yaml.safe_load(recipe_file(name, component).read_text())
    objective = TypeAdapter(kind).validate_python(values.pop("objective", {}))
    return Recipe(objective, TypeAdapter(TrainSettings).validate_python(values))
