"""Named settings: published systems and our own tuned ones, as plain frozen data."""

import json

from arcadia.errors import UserError
from arcadia.recipes.published_atari import ATARI
from arcadia.recipes.published_control import CONTROL
from arcadia.recipes.recipe import Recipe
from arcadia.recipes.tuned import TUNED

RECIPES: dict[str, Recipe] = TUNED | ATARI | CONTROL

__all__ = ["RECIPES", "Recipe", "default_recipe", "describe", "overview", "recipe"]


def recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def default_recipe(env: str | None) -> str:
    """Return the name of our tuned recipe for an environment.

    Raises:
        UserError: there is no such environment.
    """
    if env is None:
        return "atari"
    from arcadia.envs import find  # slow to import

    return "control" if isinstance(find(env), str) else "atari"


def overview() -> str:
    """Describe all recipes in a few lines each."""
    return "\n".join(line for name, entry in RECIPES.items() for line in _headlines(name, entry))


def describe(name: str) -> str:
    """Describe one recipe: source, deviations and every field.

    Raises:
        UserError: there is none of that name.
    """
    entry = recipe(name)
    lines = [*_headlines(name, entry), *(f"  deviation: {deviation}" for deviation in entry.deviations)]
    return "\n".join([*lines, json.dumps(entry.config.to_dict(), indent=2)])


def _headlines(name: str, entry: Recipe) -> list[str]:
    lines = [f"{name}: {entry.description}", f"  source: {entry.source}"]
    if entry.protocol:
        lines.append(f"  protocol: {entry.protocol}")
    if entry.reported:
        lines.append(f"  reported: {entry.reported}")
    if entry.games:
        lines.append(f"  games: {', '.join(entry.games)}")
    return lines
