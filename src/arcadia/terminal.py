"""Live progress of a run: a table in a terminal, plain lines in a pipe."""

import time
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines in a pipe


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


def duration(seconds: float) -> str:
    """Format seconds as 0:02:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plain(progress: Progress) -> str:
    """Format progress as one line."""
    return (
        f"{duration(progress.seconds)}  env_steps {progress.env_steps:,}  "
        f"{progress.steps_per_s:,.0f} steps/s  episodes {progress.episodes:,}  "
        f"mean-100 {_score(progress.mean_return)}  best eval {_score(progress.best_evaluation)}  "
        f"staleness {progress.figures.get('staleness', 0):.1f}"
    )


def table(progress: Progress) -> Table:
    """Format progress as a table of four columns."""
    figures = progress.figures
    left = "-" if progress.seconds_left is None else duration(progress.seconds_left)
    mean_label = "mean-100" if progress.num_returns == 100 else f"mean-{progress.num_returns}"
    cells = [
        ("env steps", f"{progress.env_steps:,}", mean_label, _score(progress.mean_return)),
        ("frames", f"{progress.frames:,}", "best eval", _score(progress.best_evaluation)),
        ("steps/s", f"{progress.steps_per_s:,.0f}", "episodes", f"{progress.episodes:,}"),
        ("updates", f"{progress.updates:,}", "staleness", f"{figures.get('staleness', 0):.2f}"),
        ("elapsed", duration(progress.seconds), "entropy", f"{figures.get('entropy', 0):.3f}"),
        ("time left", left, "expl. var.", f"{figures.get('explained_variance', 0):.2f}"),
    ]
    result = Table(box=None, show_header=False, pad_edge=False)
    for style in ("cyan", "bold", "cyan", "bold"):
        result.add_column(style=style, justify="left" if style == "cyan" else "right", min_width=11)
    for row in cells:
        result.add_row(*row)
    return result


class Display:
    """Shows progress on stdout. Use as a context manager."""

    def __init__(self, title: str) -> None:
        self._console = Console(highlight=False)
        self._title = title
        self._live: Live | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
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
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show progress: redraw the table, or print a line every 10 s."""
        if self._live is not None:
            self._live.update(table(progress), refresh=True)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.line(plain(progress))

    def line(self, text: str) -> None:
        """Print a line above the live table."""
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()
