"""Records that cross borders between modules: the shape, dtype and unit of every field.

T: actions in a rollout. B: environments of one worker. S: width of the recurrent state.
An action is one of A choices, [...] int64, or D numbers, [..., D] float32, where -1 and 1 are the environment's bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcadia.devices import send
from arcadia.distributions import ActionDistribution

BoolArray = NDArray[np.bool_]
Observations = NDArray[Any]  # [B, *observation_shape], the environment's own dtype
Actions = NDArray[Any]  # [B] int64, or [B, D] float32
Rewards = NDArray[np.float32]
Picture = NDArray[np.uint8]  # [height, width, 3] RGB
Activations = tuple[Tensor, ...]  # [T*B, ...] each, the outputs of a torso's layers; empty where they are not kept


class Timestep(NamedTuple):
    """What B environments return for one action each (NEXT_STEP autoreset).

    `reset_next` marks environments whose next step ignores its action and starts a new episode.
    A lost life that the environment reports sets `terminated` without `reset_next`.
    """

    observation: Observations  # [B, ...]; the final observation of an episode is an ordinary row
    reward: Rewards  # [B] raw, unclipped
    terminated: BoolArray  # [B] nothing after this step belongs to its return
    truncated: BoolArray  # [B] a time limit: the return goes on, only the play stops
    reset_next: BoolArray  # [B] truncated | (terminated & game over)
    frames: NDArray[np.int64]  # [B] emulator frames that this step consumed, reset included
    forced: BoolArray | None = None  # [B] the environment chose another action itself; None where it never does
    cut: BoolArray | None = None  # [B] a truncated game that is no score (EnvConfig.stagger); None where none ever is
    # [B] all frames but the newest are those of the last step's observation; None: unknown. Who changes observations or
    # makes one step of several leaves it out.
    shifted: BoolArray | None = None


class ModelOutput(NamedTuple):
    """What a policy and value network says about T rows of B environments."""

    policy: ActionDistribution  # [T, B] distributions, parameters in float32
    value: Tensor  # [T, B] float32
    state: Tensor  # [B, S] float32, the recurrent state after the last row (S = 0 without a core)
    activations: Activations = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """T decisions of B environments, with everything that learning needs.

    Rows where `valid` is False are resets: their action was ignored and they count nowhere.
    """

    observation: Tensor  # [T+1, B, *input_shape] model input (normalised, in the torso's dtype)
    is_first: Tensor  # [T+1, B] bool, the recurrent state is reset before this row
    state: Tensor  # [B, S] float32, recurrent state before row 0
    action: Tensor  # [T, B] int64, or [T, B, D] float32
    reward: Tensor  # [T, B] float32, as learned from (clipped or scaled where the recipe says so)
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    valid: Tensor  # [T, B] bool
    forced: Tensor  # [T, B] bool, the environment chose another action itself: no lesson for the policy
    log_prob: Tensor  # [T, B] float32, log-probability (or density) of `action` when it was chosen
    value: Tensor  # [T+1, B] float32, predicted while acting; the last row is the bootstrap
    activations: Activations = ()  # of rows 0..T-1 while acting

    def to(self, device: torch.device) -> "Rollout":
        """Return the rollout with all of its tensors on `device`."""
        return Rollout.of([send(tensor, device) for tensor in (*self.tensors(), *self.activations)])

    def tensors(self) -> list[Tensor]:
        """Return all fields but the activations."""
        return [getattr(self, name) for name in _FIELDS]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Rollout":
        """Return the rollout of these fields, in order, the activations one after the other."""
        named = dict(zip(_FIELDS, tensors, strict=False))
        return cls(**named, activations=tuple(tensors[len(_FIELDS) :]))

    def environments(self, index: Tensor) -> "Rollout":
        """Return the rollout of the environments in `index` ([b] int64) only."""
        return Rollout(
            observation=self.observation.index_select(1, index),  # several times as fast as [:, index]
            is_first=self.is_first[:, index],
            state=self.state[index],
            action=self.action[:, index],
            reward=self.reward[:, index],
            terminated=self.terminated[:, index],
            truncated=self.truncated[:, index],
            valid=self.valid[:, index],
            forced=self.forced[:, index],
            log_prob=self.log_prob[:, index],
            value=self.value[:, index],
        )


_FIELDS = [field.name for field in fields(Rollout) if field.name != "activations"]


class StatisticsUpdate(NamedTuple):
    """How one rollout changes a worker's slot of the shared statistics: slot <- keep * slot + add."""

    keep: Tensor  # [K] float64
    add: Tensor  # [K] float64


class Loss(NamedTuple):
    """A scalar loss and its parts. Only `total` carries gradient."""

    total: Tensor  # [] policy + value_coefficient * value - entropy_coefficient * entropy
    policy: Tensor  # []
    value: Tensor  # [] squared error
    entropy: Tensor  # [] nats
    clip_fraction: Tensor  # [] share of valid rows whose probability ratio was clipped


class Episode(NamedTuple):
    """One finished whole game."""

    episode_return: float  # raw, undiscounted
    length: int  # decisions
    max_probability: float | None  # of the most probable action, mean over the game's decisions; None if continuous


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one call of a worker's update did."""

    worker: int
    num_steps: int  # T of its rollouts
    env_steps: int  # decisions on valid rows, 0 where nothing was learned from them
    frames: int
    updates: int  # optimizer steps
    skipped: tuple[int, ...]  # version at each update that was not finite and so not applied
    episodes: tuple[Episode, ...]
    staleness: tuple[int, ...]  # per optimizer step: updates by others since this worker's pull
    metrics: dict[str, float]  # finite figures only
    seconds: dict[str, float]  # of the worker's time since the last report, by what it went to
