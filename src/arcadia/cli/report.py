"""arcadia report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from arcadia.cli.common import parse


@dataclass(frozen=True)
class ReportArguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories: seeds, recipes and environments in any mixture."""
    output: Path | None = None
    """Folder for report.html and the curves as PNG. Default: RUN/report, or ./report for several runs."""


def report(arguments: list[str]) -> int:
    given = parse(
        ReportArguments,
        prog="arcadia report",
        description="Write one HTML page that shows what runs did: curves, scores beside published ones, how the runs "
        "went, what differed between them, and their videos.",
        args=arguments,
    )
    from arcadia.errors import UserError
    from arcadia.report import write_report

    if not given.runs:
        raise UserError("no run given: arcadia report RUN [RUN ...]")
    output = given.output or (given.runs[0] / "report" if len(given.runs) == 1 else Path("report"))
    print(f"written to {write_report(given.runs, output)}")
    return 0
