"""A training session: a new run, or a resumed one, from configuration to final checkpoint."""

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arcadia.checkpoint import Checkpoint, load_newest, restore
from arcadia.config import EnvConfig, RuntimeConfig, TrainConfig
from arcadia.devices import find_gpus
from arcadia.envs import EnvFactory, EnvSpec, make_vector_env, spec_of
from arcadia.errors import DivergedError, ProcessError, UserError
from arcadia.evaluation import evaluate_snapshot
from arcadia.films import check_films
from arcadia.metrics import WINDOW, RunningFigures, check_wandb
from arcadia.models import ActorCritic, FlatParameters, build_model
from arcadia.models.measure import fastest_dtype
from arcadia.parameters import ENV_STEPS, EPISODES, SharedState, Snapshot, create_shared_state, take_snapshot
from arcadia.run_directory import changed_versions, load_config, lock_run, make_directory, new_run, write_config
from arcadia.runtimes.ending import REASONS, TrainResult
from arcadia.runtimes.hogwild import num_cores, run_hogwild
from arcadia.runtimes.serial import run_serial
from arcadia.runtimes.signals import StopSignals
from arcadia.runtimes.supervise import Supervisor
from arcadia.stop_signals import stop_signals_handled
from arcadia.terminal import Display
from arcadia.threads import flushed_denormals, one_torch_thread
from arcadia.validation import validate, with_settings

MAX_ROLLOUT_BYTES = 2**37
LAST_EVALUATION_SECONDS = 60.0


def train(config: TrainConfig, *, make_env: EnvFactory = make_vector_env) -> TrainResult:
    """Train a new agent and write its run directory.

    Args:
        config: settings; those left to the machine (workers, dtype, run directory) are filled in.
        make_env: builds environments; importable by name, as workers do.

    Raises:
        UserError: a setting is unusable, or the run directory is.
        ProcessError: a worker or the evaluator died or diverged; a checkpoint has been written.
        DivergedError: training diverged in runtime serial; a checkpoint has been written.
    """
    validate(config)
    check_wandb(config)
    if config.runtime.video_updates is not None:
        check_films(config)
    spec = spec_of(config.env, make_env)
    config = resolve(config, spec)
    model = build_model(config.model, spec, seed=config.runtime.seed)  # one that cannot be built leaves no directory
    run = Path(config.runtime.run_dir) if config.runtime.run_dir else make_directory(config)
    config = with_settings(config, {"run_dir": run})
    with new_run(run, config):
        return _session(config, model, _create_state(config, model), run, make_env)


def resume(
    run: Path,
    *,
    total_steps: int | None = None,
    total_minutes: float | None = None,
    total_episodes: int | None = None,
    stop_score: float | None = None,
    num_workers: int | None = None,
    gpu_ids: Sequence[int] | None = None,
    wandb: Literal["online", "offline", "disabled"] | None = None,
    quiet: bool = False,
    make_env: EnvFactory = make_vector_env,
) -> TrainResult:
    """Continue a run from its newest checkpoint, or from the start if it has none.

    Parameters, optimizer, statistics, counters and schedules continue exactly; environments restart with new seeds.
    The arguments that are given replace the run's settings.

    Raises:
        UserError: the directory, its configuration or its checkpoint is unusable, or a new limit is given that the run
            has reached already.
        ProcessError, DivergedError: as in `train`.
    """
    config = old = load_config(run)
    changes = {
        "total_steps": total_steps,
        "total_minutes": total_minutes,
        "total_episodes": total_episodes,
        "stop_score": stop_score,
        "num_workers": num_workers,
        "gpu_ids": gpu_ids,
        "device": None if gpu_ids is None else "cuda" if gpu_ids else "cpu",
        "wandb": wandb,
        "quiet": quiet,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    config = with_settings(config, given | {"run_dir": run})
    check_wandb(config)
    with lock_run(run):
        found = load_newest(run)
        checkpoint = found[1] if found is not None else None
        if checkpoint is not None:
            _check_limits(old.runtime, config.runtime, checkpoint)
        spec = spec_of(config.env, make_env)
        config = resolve(config, spec)
        model = build_model(config.model, spec, seed=config.runtime.seed)
        state = _create_state(config, model)
        if checkpoint is not None:
            restore(state, checkpoint)
        start = f"resumed at {checkpoint.env_steps:,} env_steps" if checkpoint else "no checkpoint yet: from the start"
        changed = changed_versions(run) + [
            f"{name} {before} -> {now}"
            for name, now in vars(config.runtime).items()
            if name != "run_dir" and (before := getattr(old.runtime, name)) != now
        ]
        write_config(run, config)
        return _session(config, model, state, run, make_env, checkpoint, ", ".join([start, *changed]))


def _check_limits(old: RuntimeConfig, new: RuntimeConfig, checkpoint: Checkpoint) -> None:
    """Raise UserError for a new limit that the run has reached: it would do nothing. The old one again may."""
    counts = checkpoint.counters.sum(0).tolist()
    reached = {
        "total_steps": counts[ENV_STEPS],
        "total_minutes": checkpoint.progress.get("seconds", 0.0) / 60,
        "total_episodes": counts[EPISODES],
    }
    for name, count in reached.items():
        limit = getattr(new, name)
        if limit is not None and limit != getattr(old, name) and limit <= count:
            raise UserError(
                f"{name} counts from the run's start, and it has {round(count, 2):,}: give more, got {limit:,}"
            )
    figures = RunningFigures(checkpoint.progress.get("recent_returns", ()))
    if new.stop_score != old.stop_score and figures.reach(new.stop_score):
        raise UserError(
            f"stop_score: the last {WINDOW} episodes average {figures.mean_return:.2f} already: give more, got "
            f"{new.stop_score:g}"
        )


def resolve(config: TrainConfig, spec: EnvSpec) -> TrainConfig:
    """Fill in what depends on the machine: workers, GPUs and dtype."""
    runtime, cores = config.runtime, num_cores()
    gpu_ids = find_gpus(runtime.gpu_ids, runtime.device)
    num_workers = runtime.num_workers or (default_workers(config.env) if runtime.runtime == "hogwild" else 1)
    config = dataclasses.replace(config, runtime=dataclasses.replace(runtime, num_workers=num_workers, gpu_ids=gpu_ids))
    rows = num_workers * (max(runtime.num_steps) + 1) * config.envs_per_worker
    size = 4 * rows * math.prod(spec.observation_shape)
    if size > MAX_ROLLOUT_BYTES:
        raise UserError(
            f"the rollouts of all workers need {size / 2**30:,.0f} GiB, at most {MAX_ROLLOUT_BYTES / 2**30:,.0f} are "
            "taken: lower num_steps, num_envs or num_workers"
        )
    if runtime.runtime == "hogwild" and num_workers > cores:
        warnings.warn(
            f"{num_workers} workers share {cores} cores; one worker per core with more --num-envs is faster",
            stacklevel=2,
        )
    dtype = config.model.dtype
    if dtype == "auto":
        is_reproducible = runtime.runtime == "serial" or num_workers == 1
        dtype = "float32" if is_reproducible else fastest_dtype(config, spec)
    return with_settings(config, {"dtype": dtype})


def default_workers(config: EnvConfig) -> int:
    """Return one worker per core, but no more than there are environments to share."""
    return num_cores() if config.num_envs else min(num_cores(), config.total_envs)


def _session(
    config: TrainConfig,
    model: ActorCritic,
    state: SharedState,
    run: Path,
    make_env: EnvFactory,
    checkpoint: Checkpoint | None = None,
    note: str = "",
) -> TrainResult:
    runtime = config.runtime
    where = f", GPU {' '.join(map(str, runtime.gpu_ids))}" if runtime.gpu_ids else ""
    title = (
        f"{config.env.env}, recipe {config.recipe}, seed {runtime.seed}: {runtime.num_workers} "
        f"{runtime.runtime} worker(s) x {config.envs_per_worker} envs, {config.model.dtype}{where}, in {run}"
    )
    signals = StopSignals()
    run_workers = run_hogwild if runtime.runtime == "hogwild" else run_serial
    with (
        one_torch_thread(),
        flushed_denormals(),
        stop_signals_handled(signals.handle),
        Display(title, quiet=runtime.quiet) as display,
    ):
        if note:
            display.line(note)
        supervisor = Supervisor(config, model, state, run, display, signals, checkpoint)
        try:
            reason = run_workers(config, state, supervisor, make_env)
        except Exception:
            supervisor.finish("failure")
            supervisor.close()
            raise
        result = supervisor.finish(reason)
        if runtime.eval_episodes and not supervisor.is_interrupted and not supervisor.is_evaluated:
            display.line(f"{REASONS[reason]}: checkpoint written; evaluating these parameters (Ctrl-C skips this)")
            _evaluate(config, take_snapshot(state), supervisor, display, make_env)
        supervisor.close()
        return result


def _evaluate(
    config: TrainConfig, snapshot: Snapshot, supervisor: Supervisor, display: Display, make_env: EnvFactory
) -> None:
    """Evaluate what training ends with, unless that takes long or is not wanted."""
    end = time.monotonic() + LAST_EVALUATION_SECONDS
    try:
        evaluation = evaluate_snapshot(
            config,
            make_env,
            snapshot,
            restart=supervisor.restarts,
            should_stop=lambda: supervisor.is_interrupted or time.monotonic() > end,
        )
    except (UserError, DivergedError, ProcessError) as error:
        display.warning(f"the last parameters were not evaluated: {str(error).splitlines()[0]}")
        return
    if evaluation is not None:
        supervisor.record_evaluation(evaluation)
    elif supervisor.is_interrupted:
        display.line("the last parameters were not evaluated")
    else:
        display.warning(f"the last parameters were not evaluated within {LAST_EVALUATION_SECONDS:.0f} s")


def _create_state(config: TrainConfig, model: ActorCritic) -> SharedState:
    assert config.runtime.num_workers is not None
    return create_shared_state(
        config.optimizer,
        FlatParameters(model).read(),
        num_workers=config.runtime.num_workers,
        statistics_size=model.statistics_size,
    )
