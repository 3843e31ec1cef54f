"""Training speed against the environments' own, measured in turns in one run."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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

ROUNDS = 5  # of env-only play and training, in turns
POLL_SECONDS = 0.02  # until the first update
LOOK_SECONDS = 2.0  # after it, between two looks at speed and memory
# Of training, not counted: kernels compile, and the evaluator starts, at a low priority.
WARM_UP_SECONDS = 25.0


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
    from the rows of its metrics.jsonl once all workers are at work. All of them start once and then take turns,
    `ROUNDS` times; whoever waits for its turn is stopped (SIGSTOP) or blocked.

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
        UserError: an argument is out of range or names nothing, or training ended.
    """
    if seconds <= 0:
        raise UserError(f"seconds must be > 0, got {seconds:g}")
    for name, values in (("num_envs", num_envs), ("num_workers", num_workers)):
        if any(value < 1 for value in values):
            raise UserError(f"{name} must be >= 1, got {min(values)}")
    validate(config)
    spec_of(config.env)  # an unknown environment is an error before anything starts
    sizes = []
    for workers in num_workers or (default_workers(config.env),):
        sized = replace(config, runtime=replace(config.runtime, num_workers=workers))
        sizes += [(workers, envs) for envs in num_envs or (sized.envs_per_worker,)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = []
        for workers, envs in sizes:
            play = stack.enter_context(random_play(config.env, workers, envs))
            training = stack.enter_context(Training(options, workers, envs, folder / f"{workers}-{envs}"))
            on_progress(f"{workers} x {envs}: first update after {training.first_update_s:.1f} s")
            cases.append((play, training, list[float]()))
        for round_ in range(ROUNDS):
            for play, training, env_only in cases:
                env_only.append(play(seconds / ROUNDS))
                training.measure(seconds / ROUNDS)
                on_progress(
                    f"round {round_ + 1}/{ROUNDS}, {training.num_workers} x {training.num_envs}: env only "
                    f"{env_only[-1]:,.0f}, training {training.rounds[-1].steps_per_s:,.0f} env_steps/s"
                )
        return [_result(training, env_only, seconds) for _, training, env_only in cases]


class _Round(NamedTuple):
    """One round of training."""

    steps_per_s: float
    frames_per_s: float
    time: dict[str, float]  # share of the workers' time, by part
    staleness: float


class Training:
    """`arcadia train`, stopped but for the rounds in which it is measured. A context.

    Args:
        options: of `arcadia train`.
        run: its run directory.
    """

    def __init__(self, options: Sequence[str], num_workers: int, num_envs: int, run: Path) -> None:
        self.num_workers, self.num_envs, self.run = num_workers, num_envs, run
        self.rounds: list[_Round] = []
        self.first_update_s = 0.0
        self.memory = 0  # bytes
        self._command = [sys.executable, "-m", "arcadia", "train", *options, "--total-steps", str(10**12)]
        for flag, value in {"--num-workers": num_workers, "--num-envs": num_envs, "--run-dir": run}.items():
            self._command += [flag, str(value)]

    def __enter__(self) -> "Training":
        self._errors = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self._process = psutil.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._errors)
        try:
            while not _size(self.run / "metrics.jsonl"):
                self._wait(POLL_SECONDS)
            self.first_update_s = time.perf_counter() - started
            waiting = {f"num_steps_worker_{worker}" for worker in range(self.num_workers)}
            while waiting:
                self._wait(LOOK_SECONDS)
                waiting -= {name for row in self._rows() for name in row}
            ready = time.perf_counter() + WARM_UP_SECONDS
            while time.perf_counter() < ready:
                self._wait(LOOK_SECONDS)
            self._stop()
        except BaseException:
            self.__exit__()
            raise
        return self

    def measure(self, seconds: float) -> None:
        """Train for so long, or a little longer."""
        before = len(self._rows())
        for process in reversed(self._tree()):
            process.resume()
        rows: list[dict[str, Any]] = []
        while len(rows) < 4 or rows[-1]["seconds"] - rows[0]["seconds"] < seconds:
            self._wait(LOOK_SECONDS)
            rows = self._rows()[before:]
        self._stop()
        elapsed = rows[-1]["seconds"] - rows[0]["seconds"]
        rested = rows[2:]  # into those before, the time of the break is counted
        self.rounds.append(
            _Round(
                steps_per_s=(rows[-1]["env_steps"] - rows[0]["env_steps"]) / elapsed,
                frames_per_s=(rows[-1]["frames"] - rows[0]["frames"]) / elapsed,
                time={
                    name.removeprefix("time_"): statistics.fmean(row[name] for row in rested)
                    for name in rows[0]
                    if name.startswith("time_")
                },
                staleness=statistics.fmean(row["staleness"] for row in rested),
            )
        )

    def median(self, name: str) -> float:
        """Return the median of a field of the rounds."""
        values: list[float] = [getattr(round_, name) for round_ in self.rounds]
        return statistics.median(values)

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(seconds)
        code = self._process.poll()
        if code is not None:
            self._errors.seek(0)
            problem = self._errors.read().strip() if code else "it ended before it was measured: give it no limit"
            raise UserError(f"training failed: {problem}")
        if seconds >= LOOK_SECONDS:  # looking takes milliseconds
            self.memory = max(self.memory, _memory(self._process))

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(self.run) if row["kind"] == "train"]

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _stop(self) -> None:
        for process in self._tree():
            process.suspend()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()  # its children end with it
            self._process.wait()
        self._errors.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _result(training: Training, env_only: list[float], seconds: float) -> dict[str, Any]:
    trained = load_config(training.run)
    rounds = list(zip(training.rounds, env_only, strict=True))
    return {
        "env": trained.env.env,
        "recipe": trained.recipe,
        "num_workers": training.num_workers,
        "num_envs": training.num_envs,
        "dtype": trained.model.dtype,
        "torso": trained.model.torso,
        "core": trained.model.core,
        "evaluator": f"on, at most {trained.runtime.eval_cpu_share:.0%} of the processor",
        "seconds": seconds,
        "env_only_steps_per_s": statistics.median(env_only),
        "train_steps_per_s": training.median("steps_per_s"),
        "train_frames_per_s": training.median("frames_per_s"),
        "ratio": statistics.median(train.steps_per_s / play for train, play in rounds),
        "time": {name: statistics.median(train.time[name] for train, _ in rounds) for name in rounds[0][0].time},
        "staleness": training.median("staleness"),
        "first_update_s": training.first_update_s,
        "memory_mib": training.memory / 2**20,
        "rounds": [{"env_only_steps_per_s": play, "train_steps_per_s": train.steps_per_s} for train, play in rounds],
    }


def env_only_steps_per_s(config: EnvConfig, num_workers: int, num_envs: int, seconds: float) -> float:
    """Return the decisions per second of random play in processes that do nothing else."""
    with random_play(config, num_workers, num_envs) as play:
        return play(seconds)


@contextlib.contextmanager
def random_play(config: EnvConfig, num_workers: int, num_envs: int) -> Iterator[Callable[[float], float]]:
    """Start processes that play at random when asked to.

    Yields a function that plays for so many seconds and returns the decisions per second.
    """
    context = torch.multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for worker in range(num_workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_play, args=(theirs, config, num_envs, worker), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)

    def play(seconds: float) -> float:
        for pipe in pipes:
            pipe.send(seconds)
        return sum(float(pipe.recv()) for pipe in pipes)

    try:
        play(0.0)  # they are ready
        yield play
    except EOFError:
        raise UserError("a process of random play ended: see the traceback above") from None
    finally:
        for process in processes:
            process.kill()
            process.join()


def _play(connection: Connection, config: EnvConfig, num_envs: int, worker: int) -> None:
    """Step environments with random actions when asked to; send the rate of decisions per second."""
    env = make_vector_env(config, num_envs=num_envs, seed=worker, num_threads=1)
    env.reset()
    rng = np.random.default_rng(worker)
    actions: Actions
    if env.spec.is_continuous:
        actions = rng.uniform(-1, 1, (1000, num_envs, env.spec.num_actions)).astype(np.float32)
    else:
        actions = rng.integers(env.spec.num_actions, size=(1000, num_envs))
    steps = 0
    resetting = np.zeros(num_envs, np.bool_)
    while True:
        try:
            seconds = connection.recv()
        except EOFError:  # the parent is gone
            return
        decisions = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            step = env.step(actions[steps % len(actions)])
            decisions += int((~resetting).sum())
            resetting = step.reset_next
            steps += 1
        connection.send(decisions / max(time.perf_counter() - started, 1e-9))


def _memory(root: psutil.Process) -> int:
    """Return the bytes that a process and its descendants hold together."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
    return total
