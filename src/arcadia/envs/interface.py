"""What the rest of Arcadia knows about environments."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from arcadia.config import EnvConfig
from arcadia.types import Observations, Timestep


class EnvSpec(NamedTuple):
    """Shapes that a model is built from."""

    observation_shape: tuple[int, ...]  # of one environment: (stack * frame_channels, H, W) or (D,)
    observation_dtype: np.dtype[np.generic]
    num_actions: int
    frame_channels: int = 1  # of one frame of a stack: 1 or, in colour, 3

    @property
    def is_image(self) -> bool:
        """True for stacks of pixel frames."""
        return len(self.observation_shape) == 3


class VectorEnv(Protocol):
    """B environments stepped together, NEXT_STEP autoreset.

    After a row with `reset_next`, the next step of that environment ignores its action, starts a
    new episode and returns reward 0 and the first observation.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self) -> Observations:
        """Start an episode in every environment and return the observations [B, ...].

        The first call seeds the environments; later ones start other games.
        """

    def step(self, action: NDArray[np.int64]) -> Timestep:
        """Apply one action [B] int64 to each environment.

        Raises:
            ValueError: an action lies outside [0, num_actions).
        """

    def close(self) -> None:
        """Release what the environments hold."""


class EnvFactory(Protocol):
    """Builds the B environments of one worker; called in the worker's own process."""

    def __call__(self, config: EnvConfig, *, num_envs: int, seed: int, num_threads: int = 1) -> VectorEnv: ...


def check_actions(action: NDArray[np.int64], num_envs: int, num_actions: int) -> None:
    """Raise ValueError for a wrong shape or range. (The emulator would hang for ever.)"""
    if action.shape != (num_envs,):
        raise ValueError(f"action must have shape ({num_envs},), got {action.shape}")
    if action.min() < 0 or action.max() >= num_actions:
        raise ValueError(f"actions must lie in [0, {num_actions}), got {action.tolist()}")
