"""What the rest of Arcadia knows about environments."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from torch import nn

from arcadia.config import EnvConfig
from arcadia.types import Actions, Observations, Picture, Timestep

TorsoFactory = Callable[[tuple[int, ...]], nn.Module]
"""Builds a torso for observations of a shape: [N, *shape] -> [N, torso.size]."""


class EnvSpec(NamedTuple):
    """What a model is built from, and a player has to know."""

    observation_shape: tuple[int, ...]  # of one environment: (stack * frame_channels, H, W) or (D,)
    observation_dtype: np.dtype[np.generic]
    num_actions: int  # A choices or, of continuous actions, D dimensions
    frame_channels: int = 1  # of one frame of a stack
    is_continuous: bool = False
    make_torso: TorsoFactory | None = None  # the caller's own
    is_emulated: bool = False  # games on an emulator, which any process may build: an EmulatedEnv

    @property
    def is_image(self) -> bool:
        """True for [C, H, W]."""
        return len(self.observation_shape) == 3

    @property
    def is_pixels(self) -> bool:
        """True for images of bytes."""
        return self.is_image and self.observation_dtype == np.uint8


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

    def step(self, action: Actions) -> Timestep:
        """Apply one action to each environment: [B] int64 or, if continuous, [B, D] float32.

        Later steps leave the arrays that it returns alone, for they are read until then.

        -1 and 1 are the bounds of a continuous action, wherever the environment has them, and what lies outside is
        clipped to them; a dimension without bounds takes the number as it is.

        Raises:
            ValueError: an action lies outside [0, num_actions), or is not finite.
        """

    def native_action(self, action: Actions) -> Actions:
        """Return what the underlying environment's own `step` takes for actions of this interface."""

    def close(self) -> None:
        """Release what the environments hold."""


class EmulatedEnv(VectorEnv, Protocol):
    """Environments whose spec says `is_emulated`."""

    def dismiss(self, index: int) -> None:
        """Until the next reset, nobody wants environment `index` any more: it stands still."""


class Camera(VectorEnv, Protocol):
    """Environments that also show what a person would see.

    With the seed and the actions of other environments it goes through the same games.
    """

    steps_per_s: float  # decisions per second at the pace that people play at
    action_names: tuple[str, ...]  # of A choices, or of D dimensions

    def picture(self, index: int) -> Picture:
        """Return environment `index` as it is now, [height, width, 3] uint8 RGB."""


class EnvFactory(Protocol):
    """Builds the B environments of one worker; called in the worker's own process."""

    def __call__(self, config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv: ...


def check_actions(action: Actions, num_envs: int, spec: EnvSpec) -> None:
    """Raise ValueError for a wrong shape or range. (The emulator would hang for ever.)"""
    shape = (num_envs, spec.num_actions) if spec.is_continuous else (num_envs,)
    if action.shape != shape:
        raise ValueError(f"action must have shape {shape}, got {action.shape}")
    if spec.is_continuous:
        if not np.isfinite(action).all():
            raise ValueError(f"actions must be finite, got {action.tolist()}")
    elif action.min() < 0 or action.max() >= spec.num_actions:
        raise ValueError(f"actions must lie in [0, {spec.num_actions}), got {action.tolist()}")
