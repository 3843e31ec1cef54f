"""Training speed against the environments' own, measured in turns in one run."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch.multiprocessing

from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env, spec_of
from arcadia.errors import UserError
from arcadia.metrics import read_metrics
from arcadia.recipes import recipe
from arcadia.run_directory import load_config
from arcadia.runtimes.session import default_workers
from arcadia.types import Actions

ROUNDS = 3  # of env-only play and training, in turns
MEMORY_SECONDS = 5.0  # between two looks
WARM_UP_SECONDS = 5.0  # of training, not counted: kernels compile, episodes begin


def bench(
    env: str,
    *,
    recipe_name: str,
    num_workers: int | None,
    num_envs: int | None,
    seconds: float,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure env-only and training speed, in env_steps per second.

    Env-only: `num_workers` processes x `num_envs` environments x one thread each with the recipe's preprocessing,
    NEXT_STEP resets (not counted) and random actions. Training: `arcadia train` as users run it, with metrics,
    checkpoints and evaluator, from the rows of its metrics.jsonl after the start-up. The two alternate `ROUNDS` times.

    `time` is what the workers' time went to, in shares (docs/metrics.md), `memory_mib` the most that the whole process
    tree was seen to hold in training: the proportional set size where the system tells it (Linux), else the unique one.

    Args:
        seconds: of each kind in all.

    Raises:
        UserError: an argument is out of range or names nothing.
    """
    if seconds <= 0:
        raise UserError(f"seconds must be > 0, got {seconds:g}")
    for name, value in (("num_envs", num_envs), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be >= 1, got {value}")
    settings = recipe(recipe_name).config
    workers = num_workers or default_workers(settings.env)
    settings = replace(settings, runtime=replace(settings.runtime, num_workers=workers))
    num_envs = num_envs or settings.envs_per_worker
    config = replace(settings.env, env=env, num_envs=num_envs)
    spec_of(config)  # an unknown environment is an error before anything starts
    env_only: list[float] = []
    training: list[_Training] = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(ROUNDS):
            env_only.append(env_only_steps_per_s(config, workers, num_envs, seconds / ROUNDS))
            run = Path(folder) / str(round_)
            training.append(_train(run, config, recipe_name, workers, seconds / ROUNDS))
            on_progress(
                f"round {round_ + 1}/{ROUNDS}: env only {env_only[-1]:,.0f}, "
                f"training {training[-1].steps_per_s:,.0f} env_steps/s"
            )
        trained = load_config(run)
    return {
        "env": env,
        "recipe": recipe_name,
        "num_workers": workers,
        "num_envs": num_envs,
        "dtype": trained.model.dtype,
        "torso": trained.model.torso,
        "core": trained.model.core,
        "evaluator": f"on, at most {trained.runtime.eval_cpu_share:.0%} of the processor",
        "seconds": seconds,
        "env_only_steps_per_s": statistics.median(env_only),
        "train_steps_per_s": statistics.median(train.steps_per_s for train in training),
        "train_frames_per_s": statistics.median(train.frames_per_s for train in training),
        "ratio": statistics.median(train.steps_per_s / play for train, play in zip(training, env_only, strict=True)),
        "time": {name: statistics.median(train.time[name] for train in training) for name in training[0].time},
        "memory_mib": max(train.memory_mib for train in training),
        "rounds": [
            {"env_only_steps_per_s": play, "train_steps_per_s": train.steps_per_s}
            for train, play in zip(training, env_only, strict=True)
        ],
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


class _Training(NamedTuple):
    """One round of training."""

    steps_per_s: float
    frames_per_s: float
    time: dict[str, float]  # share of the workers' time, by part
    memory_mib: float


def _train(run: Path, config: EnvConfig, recipe_name: str, num_workers: int, seconds: float) -> _Training:
    """Run `arcadia train` and measure it after the warm-up."""
    command = [sys.executable, "-m", "arcadia", "train", config.env, "--recipe", recipe_name]
    options = {
        "--num-workers": num_workers,
        "--num-envs": config.num_envs,
        "--run-dir": run,
        "--total-minutes": (WARM_UP_SECONDS + seconds + 10) / 60,
        "--total-steps": 10**12,
    }
    for flag, value in options.items():
        command += [flag, str(value)]
    memory = 0
    with tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                memory = max(memory, _memory(process))
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(MEMORY_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        if process.returncode != 0:
            raise UserError(f"training failed: {errors.read().strip()}")
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    first = next((index for index, row in enumerate(rows) if row["seconds"] >= rows[0]["seconds"] + WARM_UP_SECONDS), 0)
    rows = rows[first:-1]  # the last row is written after the workers have stopped
    if len(rows) < 2:
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
