"""All workers in this process, taking turns: bit-for-bit reproducible."""

import traceback

from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory
from arcadia.evaluation import PeriodicEvaluator
from arcadia.parameters import UPDATES, SharedMemoryStore, SharedState, take_snapshot
from arcadia.runtimes.supervise import StopReason, Supervisor
from arcadia.types import DivergedError, ProcessError, summary_of
from arcadia.worker import Worker


def run_serial(config: TrainConfig, state: SharedState, supervisor: Supervisor, make_env: EnvFactory) -> StopReason:
    """Train until the supervisor says stop, evaluating every `eval_updates` updates.

    Raises:
        ProcessError: a worker failed.
    """
    runtime = config.runtime
    workers = []
    for worker in range(len(state.counters)):
        store = SharedMemoryStore(state, config.optimizer, worker=worker, total_steps=runtime.total_steps)
        workers.append(Worker(config, store, make_env, worker=worker, restart=supervisor.restarts))
    evaluator = None
    if runtime.eval_episodes:
        evaluator = PeriodicEvaluator(config, make_env, lambda: take_snapshot(state))
    evaluations = state.counter(UPDATES) // runtime.eval_updates
    while True:
        for worker_ in workers:
            reason = supervisor.tick()
            if reason is not None:
                return reason
            try:
                supervisor.record(worker_.update())
            except DivergedError:
                raise
            except Exception as error:
                why = f"worker-{workers.index(worker_)} failed: {summary_of(error)}"
                raise ProcessError(f"{why}\n{traceback.format_exc()}".rstrip()) from error
        due = state.counter(UPDATES) // runtime.eval_updates
        if evaluator is not None and due > evaluations:
            evaluations = due
            for evaluation in evaluator.run(should_stop=lambda: supervisor.is_interrupted):
                supervisor.record_evaluation(evaluation)
