"""Runs as a report sees them: read from disk, grouped by what they have in common."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcadia.config import TrainConfig
from arcadia.envs import game_of
from arcadia.errors import UserError
from arcadia.files import read_json
from arcadia.metrics import MAX_FIGURE, read_metrics
from arcadia.run_directory import load_config

HEALTH = {  # figures that tell how a run went
    "steps_per_s": "env_steps/s",
    "staleness": "staleness of a gradient (updates)",
    "entropy": "entropy, as in the loss (nats)",
    "explained_variance": "explained variance of the value",
    "gradient_norm": "gradient norm before clipping",
    "lr": "learning rate",
}
# Settings that make no difference to what is learned
NOT_COMPARED = {
    f"runtime.{name}"
    for name in (
        *("seed", "run_dir", "quiet", "wandb", "checkpoint_seconds", "max_restarts", "heartbeat_seconds"),
        *("eval_episodes", "eval_cpu_share", "eval_updates", "video_updates"),
        *("total_minutes", "total_episodes", "stop_score"),  # when it ended; total_steps also ends schedules
    )
}
_EVALUATION = ("mean", "median", "min", "max", "env_steps", "episodes")  # figures of RUN/evaluations/*.json
_COUNTERS = ("env_steps", "frames", "seconds")
_FIGURES = {  # that a row of metrics.jsonl must have
    "train": (*_COUNTERS, "updates", "episodes"),
    "evaluation": (*_COUNTERS, "mean"),
    "skipped": ("skipped_updates",),
}
_OPTIONAL = {"mean_return_100", *HEALTH}
NUM_POINTS = 200  # of a mean curve
NUM_RESAMPLES = 2000
AXES = {"env_steps": "env_steps", "frames": "frames", "minutes": "minutes of training"}


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path
    config: TrainConfig
    game: str | None  # ROM name of an Atari game
    train: list[dict[str, Any]]  # rows of metrics.jsonl, oldest first
    evaluations: list[dict[str, Any]]
    skipped_updates: int
    final: list[dict[str, Any]]  # RUN/evaluations/*.json: whole games with fixed parameters

    @property
    def name(self) -> str:
        """The directory, and the folder that holds it: runs of several folders may have equal names."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def score(self) -> float | None:
        """Mean return of the last 100 training episodes at the end."""
        scores = [row["mean_return_100"] for row in self.train if "mean_return_100" in row]
        return scores[-1] if scores else None

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one figure of the train rows, NaN where a row lacks it."""
        if name == "minutes":
            return self.column("seconds") / 60
        return np.array([row.get(name, np.nan) for row in self.train], dtype=np.float64)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Curve:
    """The mean of some runs' curves, and a 95% interval of that mean where there are several runs."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not one.
    """
    config = load_config(path)
    try:
        rows = read_metrics(path, _FIGURES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}/metrics.jsonl cannot be read ({why}): has the run begun?") from None
    of_kind = {kind: _rows(path, rows, kind) for kind in _FIGURES}
    return Run(
        path,
        config,
        game_of(config.env.env),
        of_kind["train"],
        of_kind["evaluation"],
        sum(int(row["skipped_updates"]) for row in of_kind["skipped"]),
        [_read_evaluation(file) for file in sorted((path / "evaluations").glob("*.json"))],
    )


def _rows(path: Path, rows: list[Any], kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind, numbers where they must be."""
    chosen = [row for row in rows if isinstance(row, dict) and row.get("kind") == kind]
    for row in chosen:
        for name in (*_FIGURES[kind], *(row.keys() & _OPTIONAL)):
            if not isinstance(row.get(name), int | float):
                raise UserError(f"{path}/metrics.jsonl is damaged: a row of kind {kind} has no number {name}")
    return chosen


def _read_evaluation(file: Path) -> dict[str, Any]:
    try:
        evaluation = read_json(file)
        interval = evaluation["ci95"]
        figures = [evaluation[name] for name in _EVALUATION] + ([0, 0] if interval is None else list(interval))
        if len(figures) != len(_EVALUATION) + 2 or not all(
            isinstance(figure, int | float) and abs(figure) < MAX_FIGURE for figure in figures
        ):
            raise ValueError("a figure is not a number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a readable evaluation ({type(error).__name__}): delete it") from None
    return {name: evaluation[name] for name in (*_EVALUATION, "ci95")} | {
        "mode": str(evaluation.get("mode")),
        "parameters": "best" if str(evaluation.get("checkpoint")).startswith("best/") else "newest",
        "protocol": evaluation.get("protocol"),
        "seed": evaluation.get("seed"),
    }


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(runs: list[Run], ignore: set[str] = NOT_COMPARED) -> dict[str, list[Any]]:
    """Return setting -> its value in each run, for the settings that are not the same in all."""
    settings = [flatten(run.config.to_dict()) for run in runs]
    values = {name: [flat[name] for flat in settings] for name in settings[0] if name not in ignore}
    return {name: column for name, column in values.items() if any(value != column[0] for value in column)}


def group(runs: list[Run], ignore: set[str] = NOT_COMPARED) -> list[Group]:
    """Put runs together that differ in ignored settings only, by default the seed and what does not matter to learning.

    A label names the recipe and what differs from other runs of it.
    """
    groups: dict[str, Group] = {}
    differing = differences(runs, ignore)
    keys = [json.dumps(values) for values in zip(*differing.values(), strict=True)] or [""] * len(runs)
    labels = {}
    for recipe in dict.fromkeys(run.config.recipe for run in runs):
        indices = [index for index, run in enumerate(runs) if run.config.recipe == recipe]
        settings = differences([runs[index] for index in indices], ignore)
        for position, index in enumerate(indices):
            shown = [f"{name.rpartition('.')[2]} {column[position]}" for name, column in settings.items()]
            labels[index] = ", ".join([recipe, *shown])
    for index, run in enumerate(runs):
        groups.setdefault(keys[index], Group(labels[index], [])).runs.append(run)
    return list(groups.values())


def mean_curve(runs: list[Run], axis: str) -> Curve:
    """Average the runs' mean-100 over the part of an axis that all of them have; the interval is a bootstrap of runs.

    It is empty where there is no such part.
    """
    curves = []
    for run in runs:
        y = run.column("mean_return_100")
        known = np.isfinite(y)
        if known.any():
            curves.append((run.column(axis)[known], y[known]))
    start = max((xs[0] for xs, _ in curves), default=np.inf)
    end = min((xs[-1] for xs, _ in curves), default=-np.inf)
    if start > end:
        return Curve(*(np.empty(0) for _ in range(4)))
    x = np.linspace(start, end, NUM_POINTS)
    values = np.stack([np.interp(x, xs, ys) for xs, ys in curves])  # [runs, points]
    low = high = values.mean(0)
    if len(values) > 1:
        chosen = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
        low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5], axis=0)
    return Curve(x, values.mean(0), low, high)
