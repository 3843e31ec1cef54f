"""The shared parameters and everything that goes with them, in shared memory and without locks."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcadia.config import OptimizerConfig, Schedule
from arcadia.errors import UserError
from arcadia.models import ActorCritic, FlatParameters
from arcadia.optimizers import apply_gradient, init_optimizer_state
from arcadia.schedules import scheduled
from arcadia.types import StatisticsUpdate

ENV_STEPS, FRAMES, UPDATES, EPISODES = range(4)  # columns of SharedState.counters


@dataclass(frozen=True, slots=True)
class SharedState:
    """Plain tensors in shared memory; passing it to a child process shares them."""

    parameters: Tensor  # [P] float32
    optimizer_state: dict[str, Tensor]  # name -> [C, P] or [C] float32; C = 1, or W for private statistics
    statistics: Tensor  # [W, K] float64, each worker writes its own row only
    counters: Tensor  # [W, 4] int64, each worker adds to its own row only
    heartbeats: Tensor  # [W + 1] int64, each worker and the evaluator count their signs of life in their own
    stop: Tensor  # [1] bool, asks every process to end

    def counter(self, column: int) -> int:
        """Return the sum of one counter over all workers."""
        return int(self.counters[:, column].sum())


def create_shared_state(
    config: OptimizerConfig, parameters: Tensor, *, num_workers: int, statistics_size: int
) -> SharedState:
    """Allocate the state of a new run in shared memory, optimizer statistics included.

    Args:
        parameters: [P] float32 initial parameters, copied.
        num_workers: W.
        statistics_size: K.
    """
    copies = 1 if config.shared_statistics else num_workers
    optimizer_state = init_optimizer_state(config, len(parameters), copies)
    return SharedState(
        parameters=share(parameters.clone()),
        optimizer_state={name: share(tensor) for name, tensor in optimizer_state.items()},
        statistics=share(torch.zeros(num_workers, statistics_size, dtype=torch.float64)),
        counters=share(torch.zeros(num_workers, 4, dtype=torch.int64)),
        heartbeats=share(torch.zeros(num_workers + 1, dtype=torch.int64)),
        stop=share(torch.zeros(1, dtype=torch.bool)),
    )


def share(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory.

    Raises:
        UserError: there is too little of it.
    """
    try:
        shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        size = tensor.numel() * tensor.element_size()
        raise UserError(
            f"no {size:,} bytes of shared memory, make /dev/shm larger (docker: --shm-size): {error}"
        ) from None
    return shared


class Snapshot(NamedTuple):
    """A private copy of what it takes to play, and when it was current."""

    parameters: NDArray[np.float32]  # [P]
    statistics: NDArray[np.float64]  # [K], summed over workers
    env_steps: int
    frames: int
    updates: int


def take_snapshot(state: SharedState) -> Snapshot:
    """Copy parameters and statistics. (NumPy arrays travel through a pipe without shared memory.)"""
    return Snapshot(
        parameters=state.parameters.numpy().copy(),
        statistics=state.statistics.sum(0).numpy(),
        env_steps=state.counter(ENV_STEPS),
        frames=state.counter(FRAMES),
        updates=state.counter(UPDATES),
    )


class Counts(NamedTuple):
    """What a rollout adds to the counters."""

    env_steps: int
    frames: int
    episodes: int


NOTHING = Counts(0, 0, 0)


class ParameterStore(Protocol):
    """Where a worker gets parameters from and sends gradients to."""

    def pull(self, parameters: FlatParameters) -> int:
        """Copy the newest parameters into a local model; return the version, in updates."""

    def pull_statistics(self, model: ActorCritic) -> None:
        """Let a model take a snapshot of the shared statistics."""

    def push(self, gradient: Tensor, rollout: Counts = NOTHING) -> int:
        """Apply a gradient [P] and count it, with the rollout that it is the first of; return the version before."""

    def count(self, env_steps: int, frames: int, episodes: int, statistics: StatisticsUpdate | None) -> None:
        """Add to the counters and the statistics without an update."""

    def scheduled(self, value: float, schedule: Schedule, horizon: float = 1.0) -> float:
        """Return a setting's value at this point of the run; linear schedules end at this share of total_steps."""


class SharedMemoryStore:
    """One worker's view of a SharedState. Implements ParameterStore.

    Args:
        worker: index of the worker, which is its row of counters and statistics.
        total_steps: end of linear schedules, in env_steps.
    """

    def __init__(self, state: SharedState, config: OptimizerConfig, *, worker: int, total_steps: int) -> None:
        self._state, self._config, self._total_steps = state, config, total_steps
        self._worker = worker
        self._parameters = state.parameters.detach()
        copy = 0 if config.shared_statistics else worker
        self._optimizer_state = {name: tensor[copy] for name, tensor in state.optimizer_state.items()}

    def pull(self, parameters: FlatParameters) -> int:
        version = self._state.counter(UPDATES)
        parameters.load(self._parameters)
        return version

    def pull_statistics(self, model: ActorCritic) -> None:
        model.load_statistics(self._state.statistics.sum(0))

    def push(self, gradient: Tensor, rollout: Counts = NOTHING) -> int:
        version = self._state.counter(UPDATES)
        config = self._config
        lr = self.scheduled(config.lr, config.schedule)
        apply_gradient(self._parameters, gradient, self._optimizer_state, config, lr)
        # One addition: a worker may be killed at any moment, and its counters must agree with each other.
        env_steps, frames, episodes = rollout
        self._state.counters[self._worker] += torch.tensor([env_steps, frames, 1, episodes])
        return version

    def count(self, env_steps: int, frames: int, episodes: int, statistics: StatisticsUpdate | None) -> None:
        self._state.counters[self._worker] += torch.tensor([env_steps, frames, 0, episodes])
        if statistics is not None:
            slot = self._state.statistics[self._worker]
            slot.copy_(slot * statistics.keep + statistics.add)  # at once: others may be reading

    def scheduled(self, value: float, schedule: Schedule, horizon: float = 1.0) -> float:
        return scheduled(
            value,
            schedule,
            env_steps=self._state.counter(ENV_STEPS),
            total_steps=horizon * self._total_steps,
            episodes=self._state.counter(EPISODES),
        )
