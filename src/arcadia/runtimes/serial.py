"""All workers in this process, taking turns: bit-for-bit reproducible."""

import traceback

from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory
from arcadia.errors import DivergedError, ProcessError, UserError, summary_of
from arcadia.evaluation import PeriodicEvaluator
from arcadia.films import PeriodicFilms
from arcadia.parameters import UPDATES, SharedMemoryStore, SharedState, take_snapshot
from arcadia.runtimes.ending import StopReason
from arcadia.runtimes.supervise import Supervisor
from arcadia.worker import Worker


def run_serial(config: TrainConfig, state: SharedState, supervisor: Supervisor, make_env: EnvFactory) -> StopReason:
    """Train until the supervisor says stop, evaluating every `eval_updates` updates.

    Raises:
        ProcessError: an environment failed.
    """
    try:
        return _run(config, state, supervisor, make_env)
    except (DivergedError, ProcessError, UserError, OSError):
        raise
    except Exception as error:
        raise ProcessError(f"training failed: {summary_of(error)}\n{traceback.format_exc()}".rstrip()) from error


def _run(config: TrainConfig, state: SharedState, supervisor: Supervisor, make_env: EnvFactory) -> StopReason:
    runtime = config.runtime
    workers = []
    for worker in range(len(state.counters)):
        store = SharedMemoryStore(state, config.optimizer, worker=worker, total_steps=runtime.total_steps)
        workers.append(Worker(config, store, make_env, worker=worker, restart=supervisor.restarts))
    evaluator = None
    if runtime.eval_episodes:
        evaluator = PeriodicEvaluator(config, make_env, lambda: take_snapshot(state), restart=supervisor.restarts)
    films = PeriodicFilms(config, make_env, state.counter(UPDATES))
    evaluations = state.counter(UPDATES) // runtime.eval_updates
    while True:
        for worker_ in workers:
            reason = supervisor.tick()
            if reason is not None:
                return reason
            supervisor.record(worker_.update())
        due = state.counter(UPDATES) // runtime.eval_updates
        if evaluator is not None and due > evaluations:
            evaluations = due
            for evaluation in evaluator.run(should_stop=lambda: supervisor.is_interrupted):
                supervisor.record_evaluation(evaluation)
            if films.is_due(state.counter(UPDATES)):
                supervisor.record_film(films.film(take_snapshot(state), lambda: supervisor.is_interrupted))
