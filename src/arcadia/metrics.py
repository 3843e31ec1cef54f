"""What a run reports while it goes on: metrics.jsonl, TensorBoard, and running figures."""

import contextlib
import importlib.util
import json
import math
import re
import uuid
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcadia.config import TrainConfig
from arcadia.errors import UserError, summary_of
from arcadia.files import MAX_JSON_BYTES, LineWriter, parse_json, write_atomically
from arcadia.models import ActorCritic
from arcadia.types import Episode, UpdateReport

KINDS = ("train", "episode", "evaluation", "skipped", "restart")  # of rows
WINDOW = 100  # episodes in the running mean score
X_AXES = ("env_steps", "frames", "updates", "seconds", "worker")  # of a row: not shown themselves
MAX_FIGURE = 1e300
MAX_METRICS_BYTES = 2**34  # of the file
MAX_ROWS_BYTES = 2**28  # of the rows read at once, on disk
AVERAGE_DECAY = 0.9  # of the exponential average of scores, per episode


class RunningFigures:
    """Means over the updates since the last `flush`, and finite scores of the last 100 episodes."""

    def __init__(self, recent_returns: Iterable[float] = ()) -> None:
        self.returns: deque[float] = deque(recent_returns, maxlen=WINDOW)
        self._reports: list[UpdateReport] = []

    def add(self, report: UpdateReport) -> None:
        """Add one update."""
        self._reports.append(report)
        self.returns.extend(episode.episode_return for episode in report.episodes if is_finite(episode))

    @property
    def mean_return(self) -> float | None:
        """Mean score of the last episodes (at most 100); None before the first."""
        return float(np.mean(self.returns)) if self.returns else None

    def reach(self, score: float | None) -> bool:
        """Return whether 100 episodes have ended and the last 100 average `score`; False where there is none."""
        mean = self.mean_return
        return score is not None and mean is not None and mean >= score and len(self.returns) == WINDOW

    def flush(self) -> dict[str, float]:
        """Return the figures since the last call, by metric name."""
        reports, self._reports = self._reports, []
        if not reports:
            return {}
        values = defaultdict(list)
        for report in reports:
            for name, value in report.metrics.items():
                values[name].append(value)
            values[f"num_steps_worker_{report.worker}"].append(report.num_steps)
        figures = {name: float(np.mean(column)) for name, column in values.items()}
        seconds = sum((Counter(report.seconds) for report in reports), Counter[str]())
        figures |= {f"time_{name}": part / seconds.total() for name, part in seconds.items()}
        staleness = [value for report in reports for value in report.staleness]
        if staleness:
            figures["staleness"] = float(np.mean(staleness))
            figures["staleness_max"] = float(np.max(staleness))
        episodes = [episode for report in reports for episode in report.episodes if is_finite(episode)]
        if episodes:
            figures["episode_return"] = float(np.mean([e.episode_return for e in episodes]))
            figures["episode_length"] = float(np.mean([e.length for e in episodes]))
        return figures


@dataclass
class EpisodeRecord:
    """The highest score so far, and an exponential average of scores."""

    running_max: float | None = None
    exponential_average: float | None = None

    def add(self, score: float) -> None:
        """Add the score of an episode."""
        if self.running_max is None or self.exponential_average is None:
            self.running_max = self.exponential_average = score
        self.running_max = max(self.running_max, score)
        self.exponential_average = AVERAGE_DECAY * self.exponential_average + (1 - AVERAGE_DECAY) * score


def is_finite(episode: Episode) -> bool:
    """Return False for a game with a reward of NaN, which no mean should hold."""
    return math.isfinite(episode.episode_return)


class MetricsWriter:
    """Appends rows to metrics.jsonl, TensorBoard and, if asked for, Weights & Biases.

    Every row has `kind` ("train", "episode", "evaluation", "skipped" or "restart"), `env_steps`, `frames`, `updates`,
    `seconds` and its figures. The other two show the figures against env_steps.

    Args:
        run: run directory.
        config: of the run.
        start: env_steps and seconds where the session begins; all rows of metrics.jsonl after this point are cut, and
            what TensorBoard has of more env_steps.
        warn: called with one line of text when something cannot be written; training goes on without.

    Raises:
        UserError: Weights & Biases is asked for and an extra is missing, or it cannot start.
    """

    def __init__(self, run: Path, config: TrainConfig, start: tuple[int, float], warn: Callable[[str], None]) -> None:
        # Slow to import, and only training needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._wandb = _start_wandb(run, config) if config.runtime.wandb != "disabled" else None
        self._warn = warn
        path = run / "metrics.jsonl"
        if path.exists():
            _cut(path, start)
        self._file = LineWriter(path, warn)
        self._tensorboard: SummaryWriter | None = None
        with self._tensorboard_may_fail():
            self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=start[0] + 1)

    @contextlib.contextmanager
    def _tensorboard_may_fail(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # its file is not whole any more
            self._tensorboard = None
            self._warn(f"TensorBoard cannot be written ({error.strerror}) and gets no more; metrics.jsonl has all")

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self._file.write(json.dumps(row))
        prefix = row["kind"]
        if prefix == "evaluation":
            prefix = f"evaluation_{row['mode']}"
        scalars = {
            f"{prefix}/{name}": value
            for name, value in row.items()
            if isinstance(value, int | float) and name not in X_AXES
        }
        if self._tensorboard is not None:
            with self._tensorboard_may_fail():
                for name, value in scalars.items():
                    self._tensorboard.add_scalar(name, value, row["env_steps"])
        if self._wandb is not None:
            try:
                self._wandb.log(scalars | {name: row[name] for name in ("env_steps", "frames", "seconds")})
            except Exception as error:  # its own service has ended
                self._wandb = None
                self._warn(f"Weights & Biases gets no more: {summary_of(error)}")

    def write_graph(self, model: ActorCritic) -> None:
        """Show the network's graph in TensorBoard."""
        if self._tensorboard is None:
            return
        with self._tensorboard_may_fail(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # a graph of one row is meant, and of acting: learning's way back hides it
            try:
                self._tensorboard.add_graph(model, model.example_inputs())
            except OSError:
                raise
            except Exception as error:  # a torso of the caller's that torch.jit cannot trace
                self._warn(f"TensorBoard gets no graph of the network: {summary_of(error)}")

    def write_histograms(self, model: ActorCritic, env_steps: int) -> None:
        """Show histograms of a model's parameters in TensorBoard."""
        if self._tensorboard is None:
            return
        with self._tensorboard_may_fail():
            for name, parameter in model.named_parameters():
                self._tensorboard.add_histogram(name.replace(".", "/"), parameter.detach().float(), env_steps)

    def sync(self) -> None:
        """See to it that the rows so far survive a loss of power."""
        self._file.sync()

    def close(self) -> None:
        """Flush and close all."""
        self._file.close()
        if self._tensorboard is not None:
            with self._tensorboard_may_fail():
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb(config: TrainConfig) -> None:
    """Raise UserError where Weights & Biases is asked for and its extra is missing."""
    if config.runtime.wandb != "disabled" and importlib.util.find_spec("wandb") is None:
        raise UserError('--wandb needs an extra: pip install "arcadia[wandb]"')


def _start_wandb(run: Path, config: TrainConfig) -> Any:
    """Begin or continue the run's record at Weights & Biases, its files in RUN/wandb/."""
    import wandb

    path = run / "wandb_id"
    if not path.exists():
        write_atomically(path, [uuid.uuid4().hex.encode()])
    with open(path, "rb") as file:
        identity = file.read(64).decode(errors="replace")
    if not re.fullmatch("[0-9a-f]{32}", identity):
        raise UserError(f"{path} is damaged: delete it, and Weights & Biases begins a new record")
    try:
        record = wandb.init(
            project="arcadia",
            id=identity,
            resume="allow",
            name=run.name,
            dir=run,
            config=config.to_dict(),
            mode=config.runtime.wandb,
            settings=wandb.Settings(console="off", silent=config.runtime.quiet),
        )
    except (wandb.Error, OSError) as error:
        raise UserError(
            f"wandb {config.runtime.wandb} cannot start ({error}): arcadia resume {run} --wandb offline"
        ) from None
    record.define_metric("*", step_metric="env_steps")
    return record


def read_metrics(run: Path, kinds: Container[str] = KINDS) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl of some kinds; a line that is torn or no row is left out.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it has more than MAX_METRICS_BYTES, or its rows more than MAX_ROWS_BYTES.
    """
    rows, size = [], 0
    for line, row in _rows(run / "metrics.jsonl"):
        if row["kind"] in kinds:
            rows.append(row)
            size += len(line)
            if size > MAX_ROWS_BYTES:
                raise ValueError(f"more than {MAX_ROWS_BYTES:,} bytes of rows")
    return rows


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield every row with its line."""
    if (size := path.stat().st_size) > MAX_METRICS_BYTES:
        raise ValueError(f"{size:,} bytes, of which at most {MAX_METRICS_BYTES:,} are read")
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(MAX_JSON_BYTES), b""):
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if _is_row(row):
                yield line, row


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.get("kind") in KINDS
        and all(isinstance(row.get(name), int | float) for name in ("env_steps", "frames", "updates", "seconds"))
        and (row["kind"] != "evaluation" or row.get("mode") in ("greedy", "sampled"))
        and all(abs(value) < MAX_FIGURE for value in row.values() if isinstance(value, int | float))
    )


def _cut(path: Path, start: tuple[int, float]) -> None:
    """Drop the rows after `start`, and lines that are no rows.

    Reports still on their way as a checkpoint is taken leave later rows with its env_steps, which it does not count.
    An evaluation is as old as its parameters, however late its row.
    """
    rows = (
        row
        for _, row in _rows(path)
        if (row["env_steps"], 0.0 if row["kind"] == "evaluation" else row["seconds"]) <= start
    )
    try:
        write_atomically(path, (json.dumps(row).encode() + b"\n" for row in rows))
    except ValueError as error:
        raise UserError(f"{path} cannot be continued ({error}): move it away") from None
