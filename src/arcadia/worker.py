"""The worker: pull, collect, compute the gradient, push."""

import math
from dataclasses import replace

import numpy as np
import torch

from arcadia.config import TrainConfig
from arcadia.devices import choose_device, send, translate_gpu_memory_errors
from arcadia.envs import EnvFactory
from arcadia.errors import DivergedError, UserError
from arcadia.gradients import Learner
from arcadia.loss import Targets, compute_targets
from arcadia.models import FlatParameters, build_model, torso_dtype
from arcadia.parameters import NOTHING, Counts, ParameterStore
from arcadia.rollout import RolloutCollector
from arcadia.stopwatch import Stopwatch
from arcadia.types import Rollout, UpdateReport

MAX_LOST_ROLLOUTS = 5  # in a row that taught nothing, for no gradient was finite
MAX_TAINTED_ROLLOUTS = 50  # in a row of which some gradient was not
LOSS_NAMES = ("loss", "policy_loss", "value_loss", "entropy", "clip_fraction", "gradient_norm")


def seeds(seed: int, worker: int, restart: int, count: int) -> list[int]:
    """Return `count` independent 30-bit seeds of one (seed, worker, restart count)."""
    state = np.random.SeedSequence((seed, worker, restart)).generate_state(count)
    return [int(value) >> 2 for value in state]


class Worker:
    """One asynchronous actor-critic: its own environments and model, shared parameters.

    Args:
        config: resolved: workers are a number, `model.dtype` is "float32" or "bfloat16". The model is on the GPU that
            `runtime.gpu_ids` names for this worker, if it does; the loop is the same.
        store: the shared parameters.
        worker: index of this worker; with `restart` it selects its random numbers.
    """

    @translate_gpu_memory_errors()
    def __init__(
        self,
        config: TrainConfig,
        store: ParameterStore,
        make_env: EnvFactory,
        *,
        worker: int,
        restart: int = 0,
    ) -> None:
        env_seed, action_seed, batch_seed = seeds(config.runtime.seed, worker, restart, 3)
        env = make_env(config.env, num_envs=config.envs_per_worker, seed=env_seed)
        if env.num_envs != config.envs_per_worker:
            raise UserError(
                f"make_env must return num_envs = {config.envs_per_worker} environments, got {env.num_envs}"
            )
        lengths = config.runtime.num_steps
        self._num_steps = lengths[worker % len(lengths)]
        self._config, self._store, self._worker = config, store, worker
        self._lost_rollouts = self._tainted_rollouts = 0  # in a row
        self._device = choose_device(config.runtime.gpu_ids, worker)
        self._model = build_model(config.model, env.spec, seed=0, dtype=torso_dtype(config.model)).to(self._device)
        self._parameters = FlatParameters(self._model)
        self._store.pull(self._parameters)
        self._learner = Learner(self._model, self._parameters, config.loss)
        self._stopwatch = Stopwatch()
        self._collector = RolloutCollector(
            env,
            self._model,
            num_steps=self._num_steps,
            config=config.env,
            gamma=config.loss.gamma,
            reset_on_life_loss=config.model.reset_on_life_loss,
            keep_activations=config.loss.num_minibatches == 1,
            generator=torch.Generator().manual_seed(action_seed),
            stopwatch=self._stopwatch,
        )
        self._generator = torch.Generator().manual_seed(batch_seed)
        self._parameters.assert_views()
        self._stopwatch.restart()

    @translate_gpu_memory_errors()
    def update(self) -> UpdateReport:
        """Collect one rollout and learn from it, in one or more passes.

        A gradient that is not finite is not applied. A rollout is counted with the first that is. Nothing is learned
        from one that holds resets only.

        Raises:
            DivergedError: an observation or the policy is not finite, or the gradients of MAX_LOST_ROLLOUTS rollouts
                were not, or some of MAX_TAINTED_ROLLOUTS.
            GpuMemoryError: the GPU has too little memory.
        """
        lap = self._stopwatch.lap
        lap("waiting")
        version = self._store.pull(self._parameters)
        self._store.pull_statistics(self._model)
        lap("optimizer")
        try:
            self._check_losses()
            rollout = self._collector.collect()
        except DivergedError as error:
            raise DivergedError(f"worker {self._worker} at update {version}: {error}") from None
        targets = compute_targets(rollout, self._config.loss)
        loss_config = self._config.loss
        entropy_coefficient = self._store.scheduled(
            loss_config.entropy_coefficient, loss_config.entropy_schedule, loss_config.entropy_horizon
        )
        collector = self._collector
        counts = Counts(int(rollout.valid.sum()), collector.frames, len(collector.episodes))

        staleness: list[int] = []
        skipped: list[int] = []
        losses: list[list[float]] = []
        variance = explained_variance(rollout, targets)
        rollout, targets = rollout.to(self._device), targets.to(self._device)
        is_idle = counts.env_steps == 0  # all rows are resets
        for index in () if is_idle else self._minibatches():
            if staleness or skipped:
                version = self._store.pull(self._parameters)
                rollout = replace(rollout, activations=())  # they were those of other parameters
                lap("optimizer")
            part = (rollout, targets) if index is None else (rollout.environments(index), targets.environments(index))
            gradient, loss, norm = self._learner.compute_gradient(*part, entropy_coefficient)
            lap("learning")
            if not math.isfinite(norm):
                skipped.append(version)
                continue
            staleness.append(self._store.push(gradient, NOTHING if losses else counts) - version)
            if not losses:
                self._store.count(*NOTHING, collector.statistics())
            lap("optimizer")
            losses.append([*torch.stack(loss).tolist(), norm])

        if not losses:
            self._store.count(0, counts.frames if is_idle else 0, len(collector.episodes), None)
        metrics: dict[str, float] = {}
        if not is_idle:
            self._lost_rollouts = 0 if losses else self._lost_rollouts + 1
            self._tainted_rollouts = self._tainted_rollouts + 1 if skipped else 0
        if losses:
            optimizer = self._config.optimizer
            metrics = dict(zip(LOSS_NAMES, map(float, np.mean(losses, axis=0)), strict=True))
            metrics["explained_variance"] = variance
            metrics["entropy_coefficient"] = entropy_coefficient
            metrics["lr"] = self._store.scheduled(optimizer.lr, optimizer.schedule)
        lap("learning")
        seconds = self._stopwatch.read()
        return UpdateReport(
            worker=self._worker,
            num_steps=self._num_steps,
            env_steps=counts.env_steps if losses else 0,
            frames=counts.frames if losses or is_idle else 0,
            updates=len(losses),
            skipped=tuple(skipped),
            episodes=collector.episodes,
            staleness=tuple(staleness),
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            seconds=seconds,
        )

    def _check_losses(self) -> None:
        """Raise DivergedError where training goes on without learning."""
        advice = "none was applied: lower --lr or --max-grad-norm, or look for such rewards in the environment"
        if self._lost_rollouts == MAX_LOST_ROLLOUTS:
            raise DivergedError(
                f"every gradient of {MAX_LOST_ROLLOUTS} rollouts in a row was NaN or infinite, {advice}"
            )
        if self._tainted_rollouts == MAX_TAINTED_ROLLOUTS:
            raise DivergedError(f"gradients of {MAX_TAINTED_ROLLOUTS} rollouts in a row were NaN or infinite, {advice}")

    def _minibatches(self) -> list[torch.Tensor | None]:
        """Return the environments of each update; None stands for all of them."""
        config, num_envs = self._config.loss, self._config.envs_per_worker
        if config.num_minibatches == 1:
            return [None] * config.num_epochs
        num_parts = min(config.num_minibatches, num_envs)
        return [
            send(part, self._device)
            for _ in range(config.num_epochs)
            for part in torch.randperm(num_envs, generator=self._generator).tensor_split(num_parts)
        ]


def explained_variance(rollout: Rollout, targets: Targets) -> float:
    """Return 1 - Var[return - value] / Var[return] over valid rows (0 where the return does not vary)."""
    return_ = targets.return_[rollout.valid]
    error = return_ - rollout.value[:-1][rollout.valid]
    variance = float(return_.var(correction=0)) if len(return_) else 0.0
    return 1.0 - float(error.var(correction=0)) / variance if variance > 0 else 0.0
