"""Workers in spawned processes that update the shared parameters without a lock.

Each process has one pipe to the main process and otherwise only plain shared tensors, so that one killed anywhere
blocks nobody (a queue's lock would) and leaves nothing behind.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
import torch.multiprocessing

from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory
from arcadia.evaluation import PeriodicEvaluator
from arcadia.parameters import SharedMemoryStore, SharedState, take_snapshot
from arcadia.player import Evaluation
from arcadia.runtimes.supervise import StopReason, Supervisor, limit_reached
from arcadia.types import DivergedError, ProcessError, UpdateReport
from arcadia.worker import Worker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPORT_SECONDS = 0.2  # a worker's updates are sent in batches
POLL_SECONDS = 0.25
STOP_SECONDS = 3.0  # children that have not ended by then are killed
EVALUATOR_NICENESS = 10
# glibc hands large buffers back to the system after every use and faults their pages in again at the next; keeping
# them makes the gradient a quarter cheaper. Other allocators ignore these.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
EVALUATION_SECONDS = 10.0  # between two evaluations of one mode


class Failure(NamedTuple):
    """Sent by a process before it dies of an exception."""

    text: str


Message = list[UpdateReport] | Evaluation | Failure


def num_cores() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Child(NamedTuple):
    process: BaseProcess
    connection: Connection


def run_hogwild(config: TrainConfig, state: SharedState, supervisor: Supervisor, make_env: EnvFactory) -> StopReason:
    """Start workers and evaluator, and train until the supervisor says stop.

    When this returns or raises, every child has ended.

    Raises:
        ProcessError: a child died.
    """
    children = []
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    try:
        for worker in range(len(state.counters)):
            arguments = (config, state, make_env, worker, supervisor.restarts)
            children.append(_spawn(f"worker-{worker}", _work, state, arguments))
        if config.runtime.eval_episodes:
            children.append(_spawn("evaluator", _evaluate, state, (config, state, make_env)))
        reason = None
        while reason is None:
            reason = supervisor.tick()
            _receive(children, supervisor)
        return reason
    finally:
        _stop(children, state, supervisor)


def _spawn(name: str, run: Callable[..., None], state: SharedState, arguments: tuple[object, ...]) -> _Child:
    context = torch.multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_run_child, args=(run, sender, state, os.getpid(), arguments), name=name, daemon=True
    )
    # Signals reach the whole group of a terminal or of `timeout`, and are the parent's to decide: a child inherits the
    # blocked mask and so is deaf to them from its first moment. The parent gets them when it unblocks.
    resource_tracker.ensure_running()  # starting it unblocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    sender.close()  # so that the pipe ends when the child does
    return _Child(process, receiver)


def _receive(children: list[_Child], supervisor: Supervisor) -> None:
    """Take in what the children sent; wait at most POLL_SECONDS for it."""
    ready = wait([child.connection for child in children], timeout=POLL_SECONDS)
    for child in children:
        if child.connection not in ready:
            continue
        try:
            message: Message = child.connection.recv()
        except EOFError:
            child.process.join(STOP_SECONDS)
            if child.process.exitcode == 0:  # a worker that saw total_steps reached
                children.remove(child)
                return
            raise ProcessError(f"{child.process.name} {_death(child.process)}") from None
        _handle(child, message, supervisor)


def _handle(child: _Child, message: Message, supervisor: Supervisor) -> None:
    if isinstance(message, Failure):
        raise ProcessError(message.text)
    if isinstance(message, Evaluation):
        supervisor.record_evaluation(message)
        return
    for report in message:
        supervisor.record(report)


def _death(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _stop(children: list[_Child], state: SharedState, supervisor: Supervisor) -> None:
    """End every child, taking in what is still in the pipes."""
    state.stop[0] = True
    deadline = time.monotonic() + STOP_SECONDS
    open_children = list(children)
    while open_children and time.monotonic() < deadline:
        for child in list(open_children):
            try:
                while child.connection.poll(0.01):
                    message = child.connection.recv()
                    if not isinstance(message, Failure):
                        _handle(child, message, supervisor)
            except (EOFError, OSError):
                open_children.remove(child)
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.connection.close()


def _run_child(
    run: Callable[..., None],
    connection: Connection,
    state: SharedState,
    parent: int,
    arguments: tuple[object, ...],
) -> None:
    """Main function of every child: threads, errors, the parent's end."""
    torch.set_num_threads(1)

    def should_stop() -> bool:
        return bool(state.stop[0]) or os.getppid() != parent

    try:
        run(connection, should_stop, *arguments)
    except BrokenPipeError:
        pass  # the parent is gone
    except (Exception, SystemExit) as error:  # reported to the parent, which raises ProcessError
        text = f"{torch.multiprocessing.current_process().name} failed:\n{traceback.format_exc()}"
        try:
            connection.send(Failure(f"training diverged: {error}" if isinstance(error, DivergedError) else text))
        except BrokenPipeError:
            traceback.print_exc()
        sys.exit(1)


def _work(
    connection: Connection,
    should_stop: Callable[[], bool],
    config: TrainConfig,
    state: SharedState,
    make_env: EnvFactory,
    worker: int,
    restart: int,
) -> None:
    store = SharedMemoryStore(state, config.optimizer, worker=worker, total_steps=config.runtime.total_steps)
    agent = Worker(config, store, make_env, worker=worker, restart=restart)
    reports: list[UpdateReport] = []
    sent = time.monotonic()
    try:
        while not should_stop() and limit_reached(state, config.runtime) is None:
            reports.append(agent.update())
            if time.monotonic() - sent >= REPORT_SECONDS:
                connection.send(reports)
                reports, sent = [], time.monotonic()
    finally:
        connection.send(reports)


def _evaluate(
    connection: Connection,
    should_stop: Callable[[], bool],
    config: TrainConfig,
    state: SharedState,
    make_env: EnvFactory,
) -> None:
    os.nice(EVALUATOR_NICENESS)
    evaluator = PeriodicEvaluator(config, make_env, lambda: take_snapshot(state), EVALUATION_SECONDS)
    budget = config.runtime.eval_cpu_share * num_cores()  # seconds of processor per second
    started, used_before = time.monotonic(), time.process_time()
    while not should_stop():
        for evaluation in evaluator.step():
            connection.send(evaluation)
        ahead = (time.process_time() - used_before) / budget - (time.monotonic() - started)
        if ahead > 0 or evaluator.is_idle:
            time.sleep(min(max(ahead, 0.05), POLL_SECONDS))
