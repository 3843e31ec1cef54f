"""Training speed against the environments' own, measured in turns in one run."""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcadia.config import TrainConfig
from arcadia.devices import find_gpus
from arcadia.envs import spec_of
from arcadia.errors import UserError
from arcadia.run_directory import load_config
from arcadia.runtimes.session import default_workers
from arcadia.speed import Training, random_play
from arcadia.validation import validate

ROUNDS = 5  # of env-only play and training, in turns
MAX_SECONDS = 86_400.0


def bench(
    config: TrainConfig,
    options: Sequence[str],
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
    `ROUNDS` times; whoever waits for its turn is stopped, and keeps its memory.

    Of each: `time` is what the workers' time went to, in shares, `staleness` the mean number of other workers' updates
    between a pull and a push (docs/metrics.md), `first_update_s` the seconds from the start of the command to the first
    update, `memory_mib` the most that the whole process tree was seen to hold after that: what each process has for
    itself, and once what they share. Where models are on GPUs: `gpu_utilization`, the share of the time in which a
    kernel ran, as samples of it say, `gpu_memory_mib`, in use on all of them (of several sizes together), both None
    where the driver does not say, and `copies_per_s`, of parameters to a GPU and gradients back.

    Args:
        config: what to train.
        options: of `arcadia train` that lead to `config`.
        num_workers: W; one per core where none is given.
        num_envs: B per worker; what `config` says where none is given.
        seconds: of each kind in all, for each W and B.

    Raises:
        UserError: an argument is out of range or names nothing, or an option does not go with measuring.
        ProcessError: a process of training or of random play ended or does not answer.
    """
    if not 1 <= seconds <= MAX_SECONDS:
        raise UserError(f"seconds must be from 1 to {MAX_SECONDS:,.0f}, got {seconds:g}")
    for name, values in (("num_envs", num_envs), ("num_workers", num_workers)):
        if any(value < 1 for value in values):
            raise UserError(f"{name} must be >= 1, got {min(values)}")
    runtime = config.runtime
    if runtime.runtime != "hogwild":
        raise UserError(f"bench measures processes: leave --runtime {runtime.runtime} out")
    for name in ("run_dir", "total_minutes", "stop_score"):
        if getattr(runtime, name) is not None:
            raise UserError(f"bench ends training itself and keeps nothing: leave --{name.replace('_', '-')} out")
    if runtime.total_episodes is not None:  # some recipes have such an end
        options = [*options, "--total-episodes", str(10**12)]
    sizes: dict[tuple[int, int], None] = {}  # in order, each once
    for workers in num_workers or (default_workers(config.env),):
        sized = replace(config, runtime=replace(runtime, num_workers=workers))
        for envs in num_envs or (sized.envs_per_worker,):
            validate(replace(sized, env=replace(config.env, num_envs=envs)))
            sizes[workers, envs] = None
    gpu_ids = find_gpus(runtime.gpu_ids, runtime.device)
    spec_of(config.env)  # an unknown environment is an error before anything starts
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = []
        for workers, envs in sizes:
            training = stack.enter_context(Training(options, workers, envs, folder / f"{workers}-{envs}", gpu_ids))
            play = stack.enter_context(random_play(config.env, workers, envs))
            on_progress(f"{workers} x {envs}: first update after {training.first_update_s:.1f} s")
            cases.append((play, training, list[float]()))
        for round_ in range(ROUNDS):
            for play, training, env_only in cases:
                env_only.append(play(seconds / ROUNDS))
                speed = training.measure(seconds / ROUNDS).steps_per_s
                on_progress(
                    f"round {round_ + 1}/{ROUNDS}, {training.num_workers} x {training.num_envs}: env only "
                    f"{env_only[-1]:,.0f}, training {speed:,.0f} env_steps/s"
                )
        return [_result(training, env_only, seconds) for _, training, env_only in cases]


def _result(training: Training, env_only: list[float], seconds: float) -> dict[str, Any]:
    trained = load_config(training.run)
    rounds = list(zip(training.rounds, env_only, strict=True))
    gpu_uses = [train.gpu_use for train, _ in rounds if train.gpu_use is not None]
    of_gpus: dict[str, float | None] = {}
    if trained.runtime.gpu_ids:
        of_gpus = {
            "gpu_utilization": statistics.fmean(use.utilization for use in gpu_uses) if gpu_uses else None,
            "gpu_memory_mib": max(use.memory_mib for use in gpu_uses) if gpu_uses else None,
            "copies_per_s": statistics.median(2 * train.updates_per_s for train, _ in rounds),
        }
    share = trained.runtime.eval_cpu_share
    return {
        "env": trained.env.env,
        "recipe": trained.recipe,
        "num_workers": training.num_workers,
        "num_envs": training.num_envs,
        "dtype": trained.model.dtype,
        "torso": trained.model.torso,
        "core": trained.model.core,
        "evaluator": f"on, at most {share:.0%} of the processor" if trained.runtime.eval_episodes else "off",
        "seconds": seconds,
        "env_only_steps_per_s": statistics.median(env_only),
        "train_steps_per_s": statistics.median(train.steps_per_s for train, _ in rounds),
        "train_frames_per_s": statistics.median(train.frames_per_s for train, _ in rounds),
        "ratio": statistics.median(train.steps_per_s / play for train, play in rounds),
        "time": {name: statistics.fmean(train.time[name] for train, _ in rounds) for name in rounds[0][0].time},
        "staleness": statistics.median(train.staleness for train, _ in rounds),
        "first_update_s": training.first_update_s,
        "memory_mib": training.memory_mib,
        **of_gpus,
        "rounds": [{"env_only_steps_per_s": play, "train_steps_per_s": train.steps_per_s} for train, play in rounds],
    }
