"""Programs whose speed is measured in turns: random play, and `arcadia train` as users run it."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch.multiprocessing

from arcadia import fork_server
from arcadia.config import EnvConfig
from arcadia.devices import GpuUse, read_gpu_use
from arcadia.envs import make_vector_env
from arcadia.errors import ProcessError, UserError
from arcadia.stop_signals import stop_signals_blocked
from arcadia.types import Actions

POLL_SECONDS = 0.05  # until the first update
LOOK_SECONDS = 2.0  # after it, between two looks at speed and memory
# Of training, not counted: kernels compile, and the evaluator starts, at a low priority.
WARM_UP_SECONDS = 25.0
MIN_ROWS = 3  # of metrics, in a round
QUIET_SECONDS = 300.0  # without a sign of life
END_SECONDS = 5.0  # allowed to what a killed training leaves behind
TOTAL_STEPS = 10**12
Rows = list[dict[str, Any]]


class Round(NamedTuple):
    """One round of training."""

    steps_per_s: float
    frames_per_s: float
    time: dict[str, float]  # share of the workers' time, by part
    staleness: float
    updates_per_s: float
    gpu_use: GpuUse | None  # the mean of what was seen


class Training:
    """`arcadia train`, stopped (SIGSTOP) but for the rounds in which it is measured. A context.

    Checkpoints fall due by the clock, breaks included.

    Args:
        options: of `arcadia train`, without a limit or a run directory.
        run: its run directory.
        gpu_ids: the GPUs to look at.

    Raises:
        UserError: training refuses its options.
        ProcessError: it failed, or nothing was heard of it for QUIET_SECONDS.
    """

    def __init__(
        self, options: Sequence[str], num_workers: int, num_envs: int, run: Path, gpu_ids: Sequence[int] = ()
    ) -> None:
        self.num_workers, self.num_envs, self.run, self._gpu_ids = num_workers, num_envs, run, gpu_ids
        self.rounds: list[Round] = []
        self.first_update_s = 0.0  # from the start of the command
        self.memory_mib = 0.0  # the most that was seen since then
        self._rows: Rows = []
        self._gpu_uses: list[GpuUse] = []
        self._offset = 0  # in metrics.jsonl, of what is in _rows
        self._command = [sys.executable, "-m", "arcadia", "train", *options, "--total-steps", str(TOTAL_STEPS)]
        for flag, value in {"--num-workers": num_workers, "--num-envs": num_envs, "--run-dir": run}.items():
            self._command += [flag, str(value)]

    def __enter__(self) -> "Training":
        self._errors = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self._process = psutil.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._errors)
        try:
            self._wait_for(lambda rows: len(rows) > 0, POLL_SECONDS)
            self.first_update_s = time.perf_counter() - started
            self._wait_for(lambda rows: bool(self._since_all_workers(rows)))
            ready = time.perf_counter() + WARM_UP_SECONDS
            self._wait_for(lambda _: time.perf_counter() > ready)
            self._stop()
        except BaseException:
            self.__exit__()
            raise
        return self

    def measure(self, seconds: float) -> Round:
        """Train for so long, or a little longer, and for MIN_ROWS rows of metrics."""
        before = len(self._rows)

        def measured(rows: Rows) -> Rows:
            # The time of the break is counted in the first row, and in that of each worker's interrupted update.
            return self._since_all_workers(rows[before + 1 :])[1:]

        def is_done(rows: Rows) -> bool:
            rows = measured(rows)
            return len(rows) >= MIN_ROWS and rows[-1]["seconds"] - rows[0]["seconds"] >= seconds

        for process in reversed(self._tree()):
            with contextlib.suppress(psutil.Error):
                process.resume()
        self._gpu_uses.clear()
        self._wait_for(is_done)
        self._stop()
        rows = measured(self._rows)
        elapsed = rows[-1]["seconds"] - rows[0]["seconds"]
        shares = {name for row in rows for name in row if name.startswith("time_")}
        self.rounds.append(
            Round(
                steps_per_s=(rows[-1]["env_steps"] - rows[0]["env_steps"]) / elapsed,
                frames_per_s=(rows[-1]["frames"] - rows[0]["frames"]) / elapsed,
                time={
                    name.removeprefix("time_"): statistics.fmean(row.get(name, 0.0) for row in rows)
                    for name in sorted(shares)
                },
                staleness=statistics.fmean(row.get("staleness", 0.0) for row in rows),
                updates_per_s=(rows[-1]["updates"] - rows[0]["updates"]) / elapsed,
                gpu_use=GpuUse(*map(statistics.fmean, zip(*self._gpu_uses, strict=True))) if self._gpu_uses else None,
            )
        )
        return self.rounds[-1]

    def _since_all_workers(self, rows: Rows) -> Rows:
        """Return the rows from the first on by which every worker has reported an update."""
        waiting = {f"num_steps_worker_{worker}" for worker in range(self.num_workers)}
        for index, row in enumerate(rows):
            waiting -= row.keys()
            if not waiting:
                return rows[index:]
        return []

    def _wait_for(self, is_done: Callable[[Rows], bool], look_seconds: float = LOOK_SECONDS) -> None:
        heard = time.perf_counter()
        while not is_done(self._rows):
            with contextlib.suppress(psutil.TimeoutExpired):
                self._process.wait(look_seconds)
            code = self._process.poll()
            if code is not None:
                raise self._failure(code)
            if self._read():
                heard = time.perf_counter()
            elif time.perf_counter() - heard > QUIET_SECONDS:
                raise ProcessError(f"training wrote no metrics for {QUIET_SECONDS:.0f} s: {self._last_words()}")
            if look_seconds == LOOK_SECONDS:
                self.memory_mib = max(self.memory_mib, _memory(self._tree()) / 2**20)
                if self._gpu_ids and (use := read_gpu_use(self._gpu_ids)) is not None:
                    self._gpu_uses.append(use)

    def _read(self) -> bool:
        """Take in the new rows of training; return whether there were any."""
        path, count = self.run / "metrics.jsonl", len(self._rows)
        if path.exists():
            with open(path, "rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    self._offset += len(line)
                    row = json.loads(line)
                    if row["kind"] == "train":
                        self._rows.append(row)
        return len(self._rows) > count

    def _failure(self, code: int) -> Exception:
        if code == 0:
            return UserError("training ended before it was measured: leave limits such as --total-minutes out")
        if code == 2:
            return UserError(self._last_words())
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return ProcessError(f"training failed ({how}): {self._last_words()}")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["it said nothing"]
        said = next((line for line in lines if line.startswith("arcadia: error: ")), lines[-1])
        return said.removeprefix("arcadia: error: ")

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _stop(self) -> None:
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def __exit__(self, *_: object) -> None:
        main, *children = self._tree() or [self._process]
        with contextlib.suppress(psutil.Error):
            main.kill()
        self._process.wait()
        for process in children:  # they end with it, once they run
            with contextlib.suppress(psutil.Error):
                process.resume()
        _, left = psutil.wait_procs(children, END_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._errors.close()


def _memory(processes: list[psutil.Process]) -> int:
    """Return the bytes that processes of one program hold: what each has for itself, and what they share, once."""
    own, shared = 0, 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            own += memory.uss
            shared = max(shared, memory.rss - memory.uss)
    return own + shared


def env_only_steps_per_s(config: EnvConfig, num_workers: int, num_envs: int, seconds: float) -> float:
    """Return the decisions per second of random play in processes that do nothing else."""
    with random_play(config, num_workers, num_envs) as play:
        return play(seconds)


@contextlib.contextmanager
def random_play(config: EnvConfig, num_workers: int, num_envs: int) -> Iterator[Callable[[float], float]]:
    """Start processes, forked as workers are, that play at random when asked to.

    Yields a function that plays for so many seconds and returns the decisions per second.

    Raises:
        ProcessError: one of them ended or does not answer.
    """
    context: Any = torch.multiprocessing.get_context(fork_server.METHOD)
    fork_server.start()
    pipes: list[Connection] = []
    processes = []

    def play(seconds: float) -> float:
        allowed = seconds + QUIET_SECONDS
        try:
            for pipe in pipes:
                pipe.send(seconds)
            if not all(pipe.poll(allowed) for pipe in pipes):
                raise ProcessError(f"random play does not answer within {allowed:.0f} s")
            rates: list[float] = [pipe.recv() for pipe in pipes]
            return sum(rates)
        except (EOFError, OSError):
            raise ProcessError("a process of random play has ended: see above, or is memory short?") from None

    try:
        for worker in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_play, args=(dict(os.environ), theirs, config, num_envs, worker), daemon=True
            )
            with stop_signals_blocked():
                process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        play(0.0)  # they are ready
        yield play
    finally:
        for process in processes:
            process.kill()
            process.join()


def _play(environment: dict[str, str], connection: Connection, config: EnvConfig, num_envs: int, worker: int) -> None:
    """Step environments with random actions when asked to; send the rate of decisions per second."""
    fork_server.become_child(environment)
    env = make_vector_env(config, num_envs=num_envs, seed=worker)
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
