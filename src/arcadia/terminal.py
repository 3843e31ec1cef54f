"""Live progress of a run: a table in a terminal, plain lines in a pipe."""

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines in a pipe
NARROW = 60  # columns that the table of four needs
SPARKLINE_WIDTH = 24
MAX_LINE = 1000  # characters of a message
BARS = "▁▂▃▄▅▆▇█"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Progress(NamedTuple):
    """What the live display shows."""

    env_steps: int
    frames: int
    updates: int
    episodes: int
    steps_per_s: float
    mean_return: float | None  # of the last `num_returns` episodes
    num_returns: int
    best_evaluation: float | None
    figures: dict[str, float]
    seconds: float
    seconds_left: float | None
    worker_steps_per_s: Sequence[float]
    score_history: Sequence[float]  # mean_return as it went, oldest first


def duration(seconds: float) -> str:
    """Format seconds as 0:02:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mean_label(progress: Progress) -> str:
    return f"mean-{progress.num_returns or 100}"


def plain(progress: Progress) -> str:
    """Format progress as one line."""
    return (
        f"{duration(progress.seconds)}  env_steps {progress.env_steps:,}  "
        f"{progress.steps_per_s:,.0f} steps/s  episodes {progress.episodes:,}  "
        f"{_mean_label(progress)} {_score(progress.mean_return)}  "
        f"best eval {_score(progress.best_evaluation)}  "
        f"staleness {progress.figures.get('staleness', 0):.1f}"
    )


def table(progress: Progress, width: int = 80) -> Table:
    """Format progress as a table of four columns, or two where the terminal is narrow."""

    def figure(name: str, digits: int) -> str:
        return f"{progress.figures[name]:.{digits}f}" if name in progress.figures else "-"

    left = "-" if progress.seconds_left is None else duration(progress.seconds_left)
    cells = [
        ("env steps", f"{progress.env_steps:,}", _mean_label(progress), _score(progress.mean_return)),
        ("frames", f"{progress.frames:,}", "best eval", _score(progress.best_evaluation)),
        ("steps/s", f"{progress.steps_per_s:,.0f}", "episodes", f"{progress.episodes:,}"),
        ("updates", f"{progress.updates:,}", "staleness", figure("staleness", 2)),
        ("elapsed", duration(progress.seconds), "entropy", figure("entropy", 3)),
        ("time left", left, "expl. var.", figure("explained_variance", 2)),
        ("policy loss", figure("policy_loss", 4), "value loss", figure("value_loss", 4)),
        ("grad. norm", figure("gradient_norm", 3), "workers", workers(progress.worker_steps_per_s)),
    ]
    result = Table(box=None, show_header=False, pad_edge=False)
    is_narrow = width < NARROW
    for style in ("cyan", "bold") if is_narrow else ("cyan", "bold", "cyan", "bold"):
        result.add_column(style=style, justify="left" if style == "cyan" else "right", min_width=11, no_wrap=True)
    for row in cells:
        for part in (row[:2], row[2:]) if is_narrow else (row,):
            result.add_row(*part)
    return result


def workers(steps_per_s: Sequence[float]) -> str:
    """Format the speed of each worker: all of a few, the slowest and fastest of many."""
    if len(steps_per_s) > 2:
        return f"{len(steps_per_s)}: {min(steps_per_s):,.0f} to {max(steps_per_s):,.0f}/s"
    return " + ".join(f"{rate:,.0f}" for rate in steps_per_s) + "/s"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the course of some numbers with `width` characters at most, scaled to their range."""
    count = min(width, len(values))
    shown = [values[round(index * (len(values) - 1) / max(count - 1, 1))] for index in range(count)]
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)


def uncoloured(text: str) -> str:
    """Return text without the escape codes of colours."""
    return _COLOURS.sub("", text)


def one_line(text: str) -> str:
    """Return text that cannot move the cursor or fill the screen, whatever file it came from."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= MAX_LINE else f"{shown[:MAX_LINE]}..."


class _Console(Console):
    """A console whose reader may leave, as in `arcadia train | head`: then it says no more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Display:
    """Shows progress on stdout, or nothing where it is quiet. Use as a context manager.

    A terminal or log that cannot be written to is no reason to end training.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._console = _Console(highlight=False, quiet=quiet)
        self._title = title
        self._live: Live | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.quiet:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self.line(self._title)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            with self._writing():
                self._live.stop()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Give a terminal up that is gone; other failures, such as a full disk's, may pass."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EIO:
                self._console.on_broken_pipe()

    def update(self, progress: Progress) -> None:
        """Show progress: redraw the table, or print a line every 10 s."""
        if self._live is not None:
            shown: RenderableType = table(progress, self._console.width)
            history = progress.score_history
            if len(history) > 1 and self._console.encoding.startswith("utf"):
                line = f"{sparkline(history, SPARKLINE_WIDTH)} {min(history):.2f} to {max(history):.2f}"
                shown = Group(shown, Text(f"score        {line}"))
            with self._writing():
                self._live.update(shown, refresh=True)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.line(plain(progress))

    def warning(self, text: str) -> None:
        """Print a line above the live table or, where that is quiet, on stderr."""
        if self._console.quiet:
            with contextlib.suppress(OSError):
                print(f"arcadia: warning: {one_line(text)}", file=sys.stderr)
        else:
            self.line(text)

    def line(self, text: str) -> None:
        """Print a line above the live table."""
        with self._writing():
            self._console.print(Text(one_line(text)), soft_wrap=True)
            self._console.file.flush()
