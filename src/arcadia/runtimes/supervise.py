"""What the main process does while workers work: count, log, checkpoint, decide when to stop."""

import time
from collections import deque
from pathlib import Path
from typing import Any

from torch import Tensor

from arcadia.checkpoint import (
    Checkpoint,
    best_checkpoint,
    load_checkpoint,
    save_best,
    save_periodic,
    take_checkpoint,
)
from arcadia.child import Death
from arcadia.config import TrainConfig
from arcadia.errors import UserError
from arcadia.evaluation import summarize
from arcadia.films import Film
from arcadia.metrics import EpisodeRecord, MetricsWriter, RunningFigures, is_finite
from arcadia.models import ActorCritic, FlatParameters
from arcadia.parameters import ENV_STEPS, EPISODES, FRAMES, UPDATES, SharedState
from arcadia.player import Evaluation
from arcadia.runtimes.ending import StopReason, TrainResult, limit_reached
from arcadia.runtimes.signals import StopSignals
from arcadia.terminal import Display, Progress, duration
from arcadia.types import UpdateReport

DISPLAY_SECONDS = 0.5
FIRST_METRICS_SECONDS, METRICS_SECONDS = 0.25, 2.0  # between rows: it grows, so that a short run has a curve too
FIRST_CHECKPOINT_SECONDS = 10.0  # early: a disk that takes none is told of, and memory has its level within a minute
RATE_SECONDS = 10.0  # the displayed steps/s is the mean over this long


class Supervisor:
    """Bookkeeping of one training session.

    Args:
        model: of the run's architecture; its parameters are overwritten.
        state: shared with the workers; only read here.
        run: run directory.
        resumed: the checkpoint that `state` was restored from, if any.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ActorCritic,
        state: SharedState,
        run: Path,
        display: Display,
        signals: StopSignals,
        resumed: Checkpoint | None = None,
    ) -> None:
        self._config, self._state, self._run = config, state, run
        self._display, self._signals = display, signals
        progress = resumed.progress if resumed else {}
        self._restarts: int = progress.get("restarts", 0) + bool(resumed)
        self._best: float | None = None
        if best_checkpoint(run).exists():  # it may be newer than the checkpoint
            try:
                self._best = load_checkpoint(best_checkpoint(run)).progress.get("best_evaluation")
            except UserError as error:
                display.warning(f"{error}; the next evaluation replaces it")
        self._figures = RunningFigures(progress.get("recent_returns", ()))
        self._record = EpisodeRecord(*progress.get("episode_record", ()))
        self._seconds_before: float = round(progress.get("seconds", 0.0), 3)  # as rows have it
        self._skipped_updates: int = progress.get("skipped_updates", 0)
        self._evaluated_updates = state.counter(UPDATES)  # of the last sampled evaluation, or of the session's start
        self._episodes = state.counters[:, EPISODES].clone()  # of each worker, that have a row in metrics.jsonl
        self._model, self._parameters = model, FlatParameters(model)
        self._metrics = MetricsWriter(run, config, (state.counter(ENV_STEPS), self._seconds_before), display.warning)
        self._has_graph = resumed is not None
        self._started = self._last_display = time.monotonic()
        self._next_metrics = self._started  # the first update has a row at once
        self._next_checkpoint = self._started + min(FIRST_CHECKPOINT_SECONDS, config.runtime.checkpoint_seconds)
        self._rates: deque[tuple[float, Tensor]] = deque([(self._started, self._steps_of_workers())])
        self._score_history: list[float] = []
        self._latest_figures: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Training time, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    def record(self, report: UpdateReport) -> None:
        """Take in one update of a worker: its episodes, and what was skipped of it."""
        self._figures.add(report)
        self._episodes[report.worker] += len(report.episodes)
        for episode in filter(is_finite, report.episodes):
            self._record.add(episode.episode_return)
            figures = {name: value for name, value in episode._asdict().items() if value is not None}
            self._metrics.write(self._row("episode") | {"worker": report.worker, **figures, **vars(self._record)})
        if not report.skipped:
            return
        self._skipped_updates += len(report.skipped)
        self._metrics.write(
            self._row("skipped")
            | {"updates": report.skipped[0], "worker": report.worker, "skipped_updates": len(report.skipped)}
        )
        self._display.warning(
            f"worker {report.worker} at update {report.skipped[0]:,}: {len(report.skipped)} gradient(s) not finite, "
            f"not applied ({self._skipped_updates:,} in all)"
        )

    def record_restart(self, death: Death) -> None:
        """Log that a worker or the evaluator died and is started again."""
        self._restarts += 1
        self._metrics.write(self._row("restart") | {"process": death.name, "why": death.why, "error": death.traceback})
        self._display.warning(f"{duration(self.seconds)}  {death.name} {death.why}; started again")

    def record_evaluation(self, evaluation: Evaluation) -> None:
        """Log an evaluation; keep its parameters if its sampled games are the best so far."""
        mode = "greedy" if evaluation.greedy else "sampled"
        snapshot = evaluation.snapshot
        if not evaluation.greedy:
            self._evaluated_updates = snapshot.updates
        where = f"{duration(self.seconds)}  evaluation at {snapshot.env_steps:,} env_steps"
        if not all(map(is_finite, evaluation.episodes)):
            self._display.warning(f"{where}: a {mode} game's score is NaN or infinite; evaluation dropped")
            return
        if not evaluation.episodes:
            self._display.warning(f"{where}: a {mode} game does not end; evaluation dropped")
            return
        summary = summarize(evaluation.episodes, self._config.env.env, greedy=evaluation.greedy)
        row = self._row("evaluation") | {
            "mode": mode,
            "env_steps": snapshot.env_steps,
            "frames": snapshot.frames,
            "updates": snapshot.updates,
            "seconds": round(self.seconds - evaluation.seconds, 3),  # when the snapshot was taken
            "evaluation_seconds": round(evaluation.seconds, 3),
            **summary,
        }
        self._metrics.write(row)
        is_best = not evaluation.greedy and (self._best is None or evaluation.mean > self._best)
        if is_best:
            self._best = evaluation.mean
            try:
                save_best(self._run, snapshot, evaluation.mean)
            except OSError as error:
                self._display.warning(f"the best parameters were not written ({error.strerror}): training goes on")
        self._display.line(
            f"{where}, {summary['episodes']} {mode} games: mean {summary['mean']:.2f} "
            f"(min {summary['min']:.0f}, max {summary['max']:.0f})" + (", best so far" if is_best else "")
        )

    def record_film(self, film: Film) -> None:
        """Say where a game filmed in training is."""
        where = f"{duration(self.seconds)}  video at {film.env_steps:,} env_steps"
        if film.problem:
            self._display.warning(f"{where}: {film.problem}")
        else:
            self._display.line(f"{where}, score {film.score:g}: {film.path}")

    def tick(self) -> StopReason | None:
        """Log and checkpoint what is due; say whether and why the run should stop."""
        now = time.monotonic()
        if now - self._last_display >= DISPLAY_SECONDS:
            self._last_display = now
            self._show()
        reason = self._stop_reason()
        if reason is None and now >= self._next_metrics and self._write_metrics():  # the last row is finish()'s
            self._next_metrics = now + min(METRICS_SECONDS, FIRST_METRICS_SECONDS + (now - self._started) / 20)
        if now >= self._next_checkpoint:
            self._try_to_save("no checkpoint was written ({}): training goes on")
            self._next_checkpoint = time.monotonic() + self._config.runtime.checkpoint_seconds
        return reason

    def _try_to_save(self, complaint: str) -> bool:
        try:
            self.checkpoint()
        except OSError as error:
            self._display.warning(complaint.format(error.strerror))
            return False
        return True

    def checkpoint(self) -> None:
        """Write a checkpoint of the shared state, and histograms of its parameters."""
        progress = {
            "seconds": self.seconds,
            "restarts": self._restarts,
            "skipped_updates": self._skipped_updates,
            "recent_returns": list(self._figures.returns),
            "episode_record": list(vars(self._record).values()),
        }
        self._metrics.sync()  # no row of before is missing where the checkpoint is there
        checkpoint = take_checkpoint(self._state, progress)
        checkpoint.counters[:, EPISODES] = self._episodes  # others are on their way here, and lost if the run is killed
        save_periodic(self._run, checkpoint)
        self._parameters.load(self._state.parameters)
        self._metrics.write_histograms(self._model, self._state.counter(ENV_STEPS))

    def finish(self, reason: StopReason) -> TrainResult:
        """Write the last figures and the final checkpoint. The workers must have stopped."""
        self._write_metrics()
        is_saved = self._try_to_save("the last checkpoint was not written ({})")
        if reason == "failure" and self._skipped_updates:
            self._display.warning(f"{self._skipped_updates:,} updates were not finite and not applied")
        self._show()
        return TrainResult(
            self._run,
            reason,
            self._signals.number if reason == "signal" else None,
            self._state.counter(ENV_STEPS),
            self.seconds,
            self._figures.mean_return,
            len(self._figures.returns),
            self._skipped_updates,
            is_saved,
        )

    def close(self) -> None:
        """Show the last figures and write out all metrics; nothing more can be recorded."""
        self._show()
        self._metrics.close()

    @property
    def is_evaluated(self) -> bool:
        """True where the sampled games of an evaluation are of the last update, or there was none in this session."""
        return self._evaluated_updates >= self._state.counter(UPDATES)

    @property
    def is_interrupted(self) -> bool:
        """True once a signal has asked training to stop."""
        return self._signals.number is not None

    @property
    def restarts(self) -> int:
        """How often the run was resumed or a process of it started again; part of a worker's seed."""
        return self._restarts

    def _stop_reason(self) -> StopReason | None:
        runtime = self._config.runtime
        if self.is_interrupted:
            self._display.line("stopping: the workers finish their update (once more to stop at once)")
            return "signal"
        if self._figures.reach(runtime.stop_score):
            return "stop_score"
        if runtime.total_minutes is not None and self.seconds >= 60 * runtime.total_minutes:
            return "total_minutes"
        return limit_reached(self._state, runtime)

    def _write_metrics(self) -> bool:
        """Log the figures of the updates since the last row; return False where there were none."""
        figures = self._figures.flush()
        if not figures:
            return False
        self._latest_figures = figures
        mean = self._figures.mean_return
        if mean is not None:
            self._score_history.append(mean)
        self._metrics.write(
            self._row("train")
            | {
                "episodes": int(self._episodes.sum()),
                "steps_per_s": float(self._steps_per_s().sum()),
                **({} if mean is None else {"mean_return_100": mean}),
                **figures,
            }
        )
        if not self._has_graph:  # after the first update, for it takes a second
            self._has_graph = True
            self._metrics.write_graph(self._model)
        return True

    def _row(self, kind: str) -> dict[str, Any]:
        """Return what every row of metrics starts with."""
        return {
            "kind": kind,
            "env_steps": self._state.counter(ENV_STEPS),
            "frames": self._state.counter(FRAMES),
            "updates": self._state.counter(UPDATES),
            "seconds": round(self.seconds, 3),
        }

    def _steps_of_workers(self) -> Tensor:
        """Return the env_steps of each worker [W]."""
        return self._state.counters[:, ENV_STEPS].clone()

    def _steps_per_s(self) -> Tensor:
        """Return the speed of each worker [W] over the last seconds."""
        now, env_steps = time.monotonic(), self._steps_of_workers()
        self._rates.append((now, env_steps))
        while len(self._rates) > 2 and now - self._rates[0][0] > RATE_SECONDS:
            self._rates.popleft()
        then, steps_then = self._rates[0]
        return (env_steps - steps_then) / max(now - then, 1e-9)

    def _show(self) -> None:
        env_steps, rates = self._state.counter(ENV_STEPS), self._steps_per_s()
        rate, runtime = float(rates.sum()), self._config.runtime
        left = (runtime.total_steps - env_steps) / rate if rate > 0 else None
        if runtime.total_minutes is not None:
            limit = max(0.0, 60 * runtime.total_minutes - self.seconds)
            left = limit if left is None else min(left, limit)
        episodes = self._state.counter(EPISODES)
        if runtime.total_episodes is not None and episodes:
            limit = self.seconds * max(0, runtime.total_episodes - episodes) / episodes
            left = limit if left is None else min(left, limit)
        self._display.update(
            Progress(
                env_steps=env_steps,
                frames=self._state.counter(FRAMES),
                updates=self._state.counter(UPDATES),
                episodes=episodes,
                steps_per_s=rate,
                mean_return=self._figures.mean_return,
                num_returns=len(self._figures.returns),
                best_evaluation=self._best,
                figures=self._latest_figures,
                seconds=self.seconds,
                seconds_left=left,
                worker_steps_per_s=tuple(rates.tolist()),
                score_history=self._score_history,
            )
        )
