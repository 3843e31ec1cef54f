"""arcadia recipes."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from arcadia.cli.common import parse


@dataclass(frozen=True)
class RecipesArguments:
    name: Annotated[str, tyro.conf.Positional] = ""
    """Show this recipe's fields; without it, list all."""


def recipes(arguments: list[str]) -> int:
    from arcadia.recipes import describe, overview

    given = parse(RecipesArguments, prog="arcadia recipes", description="List recipes.", args=arguments)
    print(describe(given.name) if given.name else overview())
    return 0
