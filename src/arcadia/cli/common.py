"""What the commands share: parsing of arguments."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from arcadia.errors import UserError

PANEL_LINES = 11
T = TypeVar("T")
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def parse(settings: type[T], *, prog: str, description: str, args: list[str], default: T | None = None) -> T:
    """Parse arguments into `settings`; a mistake ends the process with code 2 and a short message."""
    start = tyro.MISSING_NONPROP if default is None else default
    with _short_errors():
        return tyro.cli(settings, prog=prog, description=description, args=args, default=start)


def parse_known(settings: type[T], *, prog: str, description: str, args: list[str]) -> tuple[T, list[str]]:
    """Parse the arguments that `settings` knows; return the others too."""
    with _short_errors():
        return tyro.cli(settings, prog=prog, description=description, args=args, return_unknown_args=True)


@contextlib.contextmanager
def _short_errors() -> Iterator[None]:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield
    except SystemExit:
        lines = errors.getvalue().splitlines()
        if len(lines) > PANEL_LINES:  # one per option that the mistake resembles
            lines = lines[: PANEL_LINES - 3] + lines[-3:]
        print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
        raise


def env_first(arguments: list[str]) -> tuple[list[str], str | None]:
    """Turn a leading ENV into `--env ENV`; return the arguments and the environment."""
    if not arguments or arguments[0].startswith("-"):
        return arguments, value_of("--env", arguments)
    again = value_of("--env", arguments)
    if again is not None:
        raise UserError(f"two environments given, {arguments[0]!r} and --env {again!r}: give one")
    return ["--env", *arguments], arguments[0]


def value_of(flag: str, arguments: list[str]) -> str | None:
    """Return the value of `--flag value` or `--flag=value`."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None
