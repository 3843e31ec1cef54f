"""Training speed against the environments' own, measured in turns in one run."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch.multiprocessing

from arcadia.config import EnvConfig, TrainConfig
from arcadia.envs import make_vector_env, spec_of
from arcadia.errors import UserError
from arcadia.metrics import read_metrics
from arcadia.run_directory import load_config
from arcadia.runtimes.session import default_workers
from arcadia.types import Actions
from arcadia.validation import validate

ROUNDS = 3  # of env-only play and training, in turns
POLL_SECONDS = 0.02  # until the first update
MEMORY_SECONDS = 5.0  # between two looks
START_SECONDS = 5.0  # allowed for the first update to come, beside what is measured
WARM_UP_SECONDS = 5.0  # of training, not counted: kernels compile, episodes begin


def bench(
    config: TrainConfig,
    options: Sequence[str] = (),
    *,
    num_workers: Sequence[int] = (),
    num_envs: Sequence[int] = (),
    seconds: float,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure env-only and training speed, in env_steps per second, of each number of workers and environments.

    Env-only: W processes x B environments x one thread each with the run's preprocessing, NEXT_STEP resets (not
    counted) and random actions. Training: `arcadia train` as users run it, with metrics, checkpoints and evaluator,
    from the rows of its metrics.jsonl after the start-up. All of them alternate `ROUNDS` times.

    Of each: `time` is what the workers' time went to, in shares, `staleness` the mean number of other workers' updates
    between a pull and a push (docs/metrics.md), `first_update_s` the seconds from the start of the command to the first
    update, `memory_mib` the most that the whole process tree was seen to hold in training: the proportional set size
    where the system tells it (Linux), else the unique one.

    Args:
        config: what to train.
        options: of `arcadia train` that lead to `config`.
        num_workers: W; one per core where none is given.
        num_envs: B per worker; what `config` says where none is given.
        seconds: of each kind in all, for each W and B.

    Raises:
        UserError: an argument is out of range or names nothing.
    """
    if seconds <= 0:
        raise UserError(f"seconds must be > 0, got {seconds:g}")
    for name, values in (("num_envs", num_envs), ("num_workers", num_workers)):
        if any(value < 1 for value in values):
            raise UserError(f"{name} must be >= 1, got {min(values)}")
    validate(config)
    spec_of(config.env)  # an unknown environment is an error before anything starts
    cases = []
    for workers in num_workers or (default_workers(config.env),):
        sized = replace(config, runtime=replace(config.runtime, num_workers=workers))
        cases += [_Case(workers, envs) for envs in num_envs or (sized.envs_per_worker,)]
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(ROUNDS):
            for case in cases:
                env = replace(config.env, num_envs=case.num_envs)
                case.env_only.append(env_only_steps_per_s(env, case.num_workers, case.num_envs, seconds / ROUNDS))
                case.run = Path(folder) / f"{round_}-{case.num_workers}-{case.num_envs}"
                case.training.append(_train(case, options, seconds / ROUNDS))
                on_progress(
                    f"round {round_ + 1}/{ROUNDS}, {case.num_workers} x {case.num_envs}: env only "
                    f"{case.env_only[-1]:,.0f}, training {case.training[-1].steps_per_s:,.0f} env_steps/s"
                )
        return [_result(case, seconds) for case in cases]


class _Training(NamedTuple):
    """One round of training."""

    steps_per_s: float
    frames_per_s: float
    time: dict[str, float]  # share of the workers' time, by part
    staleness: float
    first_update_s: float
    memory_mib: float


@dataclass
class _Case:
    """What was measured with one number of workers and environments."""

    num_workers: int
    num_envs: int  # per worker
    run: Path = Path()  # of the last round
    env_only: list[float] = field(default_factory=list)  # env_steps per second of each round
    training: list[_Training] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a field of the rounds of training."""
        values: list[float] = [getattr(train, name) for train in self.training]
        return statistics.median(values)


def _result(case: _Case, seconds: float) -> dict[str, Any]:
    trained = load_config(case.run)
    rounds = list(zip(case.training, case.env_only, strict=True))
    return {
        "env": trained.env.env,
        "recipe": trained.recipe,
        "num_workers": case.num_workers,
        "num_envs": case.num_envs,
        "dtype": trained.model.dtype,
        "torso": trained.model.torso,
        "core": trained.model.core,
        "evaluator": f"on, at most {trained.runtime.eval_cpu_share:.0%} of the processor",
        "seconds": seconds,
        "env_only_steps_per_s": statistics.median(case.env_only),
        "train_steps_per_s": case.median("steps_per_s"),
        "train_frames_per_s": case.median("frames_per_s"),
        "ratio": statistics.median(train.steps_per_s / play for train, play in rounds),
        "time": {name: statistics.median(train.time[name] for train, _ in rounds) for name in rounds[0][0].time},
        "staleness": case.median("staleness"),
        "first_update_s": case.median("first_update_s"),
        "memory_mib": max(train.memory_mib for train in case.training),
        "rounds": [{"env_only_steps_per_s": play, "train_steps_per_s": train.steps_per_s} for train, play in rounds],
    }


def env_only_steps_per_s(config: EnvConfig, num_workers: int, num_envs: int, seconds: float) -> float:
    """Return the decisions per second of random play in processes that do nothing else."""
    context = torch.multiprocessing.get_context("spawn")
    start = context.Barrier(num_workers)
    pipes, processes = [], []
    for worker in range(num_workers):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_play, args=(sender, start, config, num_envs, worker, seconds), daemon=True)
        process.start()
        pipes.append(receiver)
        processes.append(process)
    rates = [float(pipe.recv()) for pipe in pipes]
    for process in processes:
        process.join()
    return sum(rates)


def _play(connection: Connection, start: Any, config: EnvConfig, num_envs: int, worker: int, seconds: float) -> None:
    """Step environments with random actions; send the rate of decisions per second."""
    env = make_vector_env(config, num_envs=num_envs, seed=worker, num_threads=1)
    env.reset()
    rng = np.random.default_rng(worker)
    actions: Actions
    if env.spec.is_continuous:
        actions = rng.uniform(-1, 1, (1000, num_envs, env.spec.num_actions)).astype(np.float32)
    else:
        actions = rng.integers(env.spec.num_actions, size=(1000, num_envs))
    start.wait()
    decisions = steps = 0
    resetting = np.zeros(num_envs, np.bool_)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        step = env.step(actions[steps % len(actions)])
        decisions += int((~resetting).sum())
        resetting = step.reset_next
        steps += 1
    connection.send(decisions / (time.perf_counter() - started))


def _train(case: _Case, options: Sequence[str], seconds: float) -> _Training:
    """Run `arcadia train` and measure it after the warm-up."""
    sizes = {
        "--num-workers": case.num_workers,
        "--num-envs": case.num_envs,
        "--run-dir": case.run,
        "--total-minutes": (START_SECONDS + WARM_UP_SECONDS + seconds) / 60,
        "--total-steps": 10**12,
    }
    command = [sys.executable, "-m", "arcadia", "train", *options]
    for flag, value in sizes.items():
        command += [flag, str(value)]
    metrics, memory, first_update_s = case.run / "metrics.jsonl", 0, None
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                if first_update_s is None and metrics.exists() and metrics.stat().st_size > 0:
                    first_update_s = time.perf_counter() - started
                if first_update_s is not None:
                    memory = max(memory, _memory(process))
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(POLL_SECONDS if first_update_s is None else MEMORY_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        if process.returncode != 0:
            raise UserError(f"training failed: {errors.read().strip()}")
    rows = [row for row in read_metrics(case.run) if row["kind"] == "train"]
    first = next((index for index, row in enumerate(rows) if row["seconds"] >= rows[0]["seconds"] + WARM_UP_SECONDS), 0)
    rows = rows[first:-1]  # the last row is written after the workers have stopped
    if len(rows) < 2 or first_update_s is None:
        raise UserError("training wrote too few rows of metrics after the warm-up: give more --seconds")
    elapsed = rows[-1]["seconds"] - rows[0]["seconds"]
    return _Training(
        steps_per_s=(rows[-1]["env_steps"] - rows[0]["env_steps"]) / elapsed,
        frames_per_s=(rows[-1]["frames"] - rows[0]["frames"]) / elapsed,
        time={
            name.removeprefix("time_"): statistics.fmean(row[name] for row in rows)
            for name in rows[0]
            if name.startswith("time_")
        },
        staleness=statistics.fmean(row["staleness"] for row in rows),
        first_update_s=first_update_s,
        memory_mib=memory / 2**20,
    )


def _memory(root: psutil.Process) -> int:
    """Return the bytes that a process and its descendants hold together."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
    return total
