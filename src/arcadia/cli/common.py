"""What the commands share: parsing of arguments."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from arcadia.errors import UserError
from arcadia.terminal import uncoloured

T = TypeVar("T")
WORDING = {  # Python's words, and ours
    r"invalid literal for int\(\) with base 10: ('.*?')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*?')": r"\1 is not a number",
}
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def parse(settings: type[T], *, prog: str, description: str, args: list[str], default: T | None = None) -> T:
    """Parse arguments into `settings`.

    Raises:
        UserError: a mistake.
    """
    start = tyro.MISSING_NONPROP if default is None else default
    with _errors_of(prog):
        return tyro.cli(settings, prog=prog, description=description, args=args, default=start)


def parse_known(settings: type[T], *, prog: str, description: str, args: list[str]) -> tuple[T, list[str]]:
    """Parse the arguments that `settings` knows; return the others too.

    Raises:
        UserError: a mistake.
    """
    with _errors_of(prog):
        return tyro.cli(settings, prog=prog, description=description, args=args, return_unknown_args=True)


@contextlib.contextmanager
def _errors_of(prog: str) -> Iterator[None]:
    """Turn what tyro prints of a mistake into a UserError."""
    panel = io.StringIO()
    try:
        with contextlib.redirect_stderr(panel):
            yield
    except SystemExit as end:
        if end.code != 2:  # --help, or a signal
            print(panel.getvalue(), file=sys.stderr, end="")
            raise
        raise UserError(f"{_summary(panel.getvalue())}; {prog} --help lists all options") from None


def _summary(panel: str) -> str:
    """Return what a framed message of tyro's says in its first part, and the options that the others name."""
    framed = [row.strip("│ ") for row in uncoloured(panel).splitlines()[1:]]  # without the title
    rows = itertools.takewhile(lambda row: not row.startswith("For full helptext"), framed)
    parts = [list(part) for is_text, part in itertools.groupby(rows, lambda row: row.strip("─-") != "") if is_text]
    mistake = " ".join(parts[0]).rstrip(".")
    for theirs, ours in WORDING.items():
        mistake = re.sub(theirs, ours, mistake)
    advice = list(itertools.chain(*parts[1:]))
    options = " or ".join(row for row in advice if row.startswith("--"))
    question = "perhaps you meant " if mistake.startswith("Unrecognized") else ""
    return f"{mistake} ({question}{options})" if options else mistake


def env_first(arguments: list[str]) -> tuple[list[str], str | None]:
    """Turn a leading ENV into `--env ENV`; return the arguments and the environment."""
    if not arguments or arguments[0].startswith("-"):
        return arguments, value_of("--env", arguments)
    again = value_of("--env", arguments)
    if again is not None:
        raise UserError(f"two environments given, {arguments[0]!r} and --env {again!r}: give one")
    return ["--env", *arguments], arguments[0]


def value_of(flag: str, arguments: list[str]) -> str | None:
    """Return the value of `--a-flag value`, `--a-flag=value` or, as tyro takes it too, `--a_flag value`."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            return value if equals else next(iter(arguments[position + 1 :]), None)
    return None
