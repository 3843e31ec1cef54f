"""Workers in processes that update the shared parameters without a lock, and an evaluator beside them."""

import math
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

from arcadia.child import AWAKE_SECONDS, Context, Death
from arcadia.config import EnvConfig, TrainConfig
from arcadia.envs import EnvFactory, VectorEnv
from arcadia.errors import ProcessError
from arcadia.evaluation import PeriodicEvaluator
from arcadia.films import Film, PeriodicFilms
from arcadia.models import FlatParameters
from arcadia.parameters import UPDATES, SharedMemoryStore, SharedState, take_snapshot
from arcadia.player import Evaluation
from arcadia.processes import Children
from arcadia.runtimes.ending import StopReason, limit_reached
from arcadia.runtimes.supervise import Supervisor
from arcadia.types import Actions, Observations, Timestep, UpdateReport
from arcadia.worker import Worker

REPORT_SECONDS = 0.2  # a worker's updates are sent in batches
POLL_SECONDS = 0.25
EVALUATOR_NICENESS = 10
EVALUATION_SECONDS = 10.0  # between two evaluations of one mode
FRUITLESS_STARTS = 3  # of one process in a row that failed by itself within FRUITFUL_STEPS: its failure is no accident
FRUITFUL_STEPS = 100
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in so many microseconds

Message = list[UpdateReport] | Evaluation | Film


def num_cores() -> int:
    """Return the processors that this process may use, in a container no more than it is given the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # there is no limit, or it is "max"
        return cores


def run_hogwild(config: TrainConfig, state: SharedState, supervisor: Supervisor, make_env: EnvFactory) -> StopReason:
    """Start workers and evaluator, and train until the supervisor says stop.

    A process that dies or hangs is started again, with random numbers of its own. When this returns or raises, every
    child has ended.

    Raises:
        ProcessError: a child failed and another start would not help, or has been started again too often.
    """
    num_workers, runtime = len(state.counters), config.runtime
    names = [f"worker-{worker}" for worker in range(num_workers)]
    if runtime.eval_episodes:
        names.append("evaluator")
    children = Children(
        state.stop, state.heartbeats, runtime.heartbeat_seconds, lambda: limit_reached(state, runtime) is not None
    )
    limit = _RestartLimit(runtime.max_restarts)
    updates = state.counter(UPDATES)

    def start(name: str) -> None:
        index = names.index(name)
        if index < num_workers:
            children.start(index, name, _work, (config, state, make_env, index, supervisor.restarts))
        else:
            children.start(index, name, _evaluate, (config, state, make_env, supervisor.restarts, updates))

    try:
        reason = supervisor.tick()
        if reason is None:
            for name in names[:num_workers]:
                start(name)
        waiting = names[num_workers:]  # until the workers have begun: their start is what takes time
        while reason is None:
            reason = supervisor.tick()
            if waiting and state.counter(UPDATES) > 0:
                start(waiting.pop())
            for message in children.receive(POLL_SECONDS):
                if isinstance(message, Death):
                    limit.check(message)
                    supervisor.record_restart(message)
                    start(message.name)
                else:
                    _record(message, supervisor)
        return reason
    except SystemExit:  # asked twice to stop
        children.kill()
        raise
    finally:
        for message in children.end():
            _record(message, supervisor)


class _RestartLimit:
    """Decides whether a process that died is worth another start."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._restarts: Counter[str] = Counter()
        self._fruitless: Counter[str] = Counter()  # in a row

    def check(self, death: Death) -> None:
        """Count its death; raise ProcessError if it is not."""
        name = death.name
        if death.is_final:
            raise ProcessError(death.why)
        if death.signs_of_life >= FRUITFUL_STEPS:
            self._fruitless[name] = 0
        elif not death.is_external:
            self._fruitless[name] += 1
        if self._fruitless[name] == FRUITLESS_STARTS:
            often = f"soon after each of {FRUITLESS_STARTS} starts"
        elif self._restarts[name] == self._max_restarts:
            often = f"after {self._max_restarts} restarts (max_restarts)"
        else:
            self._restarts[name] += 1
            return
        raise ProcessError(f"{name} {death.why} {often}\n{death.traceback}".rstrip())


def _record(message: Message, supervisor: Supervisor) -> None:
    match message:
        case Evaluation():
            supervisor.record_evaluation(message)
        case Film():
            supervisor.record_film(message)
        case reports:
            for report in reports:
                supervisor.record(report)


class _WatchedEnv:
    """Environments that show a sign of life at every step and after every reset, for the first may take long."""

    def __init__(self, env: VectorEnv, context: Context) -> None:
        self._env, self._beat = env, context.beat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self) -> Observations:
        observation = self._env.reset()
        self._beat()
        return observation

    def step(self, action: Actions) -> Timestep:
        self._beat()
        return self._env.step(action)


class _WatchedStore(SharedMemoryStore):
    """A store that shows a sign of life at every pull, of which a rollout with many passes has many."""

    def __init__(self, context: Context, state: SharedState, config: TrainConfig, worker: int) -> None:
        super().__init__(state, config.optimizer, worker=worker, total_steps=config.runtime.total_steps)
        self._beat = context.beat

    def pull(self, parameters: FlatParameters) -> int:
        self._beat()
        return super().pull(parameters)


def _watched(make_env: EnvFactory, context: Context) -> EnvFactory:
    def make(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
        env = make_env(config, num_envs=num_envs, seed=seed)
        return cast(VectorEnv, _WatchedEnv(env, context))

    return make


def _work(
    context: Context, config: TrainConfig, state: SharedState, make_env: EnvFactory, worker: int, restart: int
) -> None:
    store = _WatchedStore(context, state, config, worker)
    agent = Worker(config, store, _watched(make_env, context), worker=worker, restart=restart)
    reports: list[UpdateReport] = []
    sent = -math.inf  # the first update is told of at once
    try:
        while not context.should_stop() and limit_reached(state, config.runtime) is None:
            reports.append(agent.update())
            if time.monotonic() - sent >= REPORT_SECONDS:
                context.send(reports)
                reports, sent = [], time.monotonic()
    finally:
        context.send(reports)


def _evaluate(
    context: Context, config: TrainConfig, state: SharedState, make_env: EnvFactory, restart: int, updates: int
) -> None:
    os.nice(EVALUATOR_NICENESS)
    snapshot = partial(take_snapshot, state)
    films = PeriodicFilms(config, make_env, updates)
    evaluator = PeriodicEvaluator(config, _watched(make_env, context), snapshot, EVALUATION_SECONDS, restart=restart)
    budget = config.runtime.eval_cpu_share * num_cores()  # seconds of processor per second
    used_before = _processor_seconds()
    awake, last = 0.0, time.monotonic()

    def rest(seconds: float = 0.0) -> bool:
        """Sleep for so long, or longer where more than the budget is used; return whether the run is over."""
        nonlocal awake, last
        context.beat()
        now = time.monotonic()
        awake, last = awake + min(now - last, AWAKE_SECONDS), now  # a run that was stopped leaves no budget behind
        ahead = (_processor_seconds() - used_before) / budget - awake
        time.sleep(min(max(ahead, seconds), POLL_SECONDS))
        return context.should_stop()

    is_over, may_film = False, True
    while not is_over:
        for evaluation in evaluator.step():
            context.send(evaluation)
            may_film = True
        if may_film and films.is_due(state.counter(UPDATES)):
            context.send(films.film(snapshot(), rest))
            may_film = False  # films that fall due faster than they are made leave time for evaluations
        is_over = rest(0.05 if evaluator.is_idle else 0.0)


def _processor_seconds() -> float:
    """Return the time on the processor of this process and of those it has started and seen end."""
    return sum(os.times()[:4])
