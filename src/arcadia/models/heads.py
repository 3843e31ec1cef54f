"""Heads: features [..., size] to an action distribution, and to a value."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from arcadia.config import ModelConfig
from arcadia.distributions import ActionDistribution, Categorical, DiagonalGaussian, SquashedGaussian
from arcadia.envs import EnvSpec
from arcadia.models.initialize import orthogonal

STD_FLOOR = 1e-5  # as in the swing-up system of docs/systems/swingup.md
HEAD_GAIN = 0.01  # nearly the same action everywhere at the start


class CategoricalHead(nn.Module):
    """A categorical policy; nearly uniform at the start."""

    def __init__(self, in_size: int, num_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, num_actions)
        orthogonal(self.linear, HEAD_GAIN)

    def forward(self, features: Tensor) -> ActionDistribution:
        return Categorical(self.linear(features))


class GaussianHead(nn.Module):
    """A diagonal Gaussian policy, or the tanh of one.

    The standard deviation is softplus(linear(features)) + STD_FLOOR ("state"), or one learned number per dimension
    ("free"); `initial_std` at the start. The mean is linear in the features or, "clamped_tanh", twice the tanh of that
    clamped to [-1, 1], with a gradient that leads back from beyond the bounds.
    """

    def __init__(self, in_size: int, num_actions: int, config: ModelConfig) -> None:
        super().__init__()
        self._is_squashed, self._is_clamped = config.policy == "squashed", config.action_mean == "clamped_tanh"
        self.linear = nn.Linear(in_size, num_actions)
        orthogonal(self.linear, HEAD_GAIN)
        self.log_std: nn.Parameter | None = None
        if config.action_std == "free":
            self.log_std = nn.Parameter(torch.full((num_actions,), math.log(config.initial_std)))
        else:
            self.std = nn.Linear(in_size, num_actions)
            orthogonal(self.std, HEAD_GAIN)
            nn.init.constant_(self.std.bias, math.log(math.expm1(config.initial_std)))

    def forward(self, features: Tensor) -> ActionDistribution:
        mean = self.linear(features)
        if self._is_clamped:
            mean = _ClampedTanh.apply(mean)  # type: ignore[no-untyped-call]
        if self.log_std is None:
            std = nn.functional.softplus(self.std(features)) + STD_FLOOR
        else:
            std = self.log_std.exp().expand_as(mean)
        return SquashedGaussian(mean, std) if self._is_squashed else DiagonalGaussian(mean, std)


class _ClampedTanh(torch.autograd.Function):
    """clamp(2 tanh(x), -1, 1) with a gradient beyond the bounds, that of the bound, where descent leads inwards.

    The clamp's own is 0 there: nothing brings x back from where early, noisy gradients have driven it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = 2 * x.tanh()
        ctx.save_for_backward(y)
        return y.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,), (gradient,) = ctx.saved_tensors, gradients
        leads_inwards = gradient * y > 0
        slope = 2 - y.clamp(-1, 1).square() / 2  # of 2 tanh
        return torch.where((y.abs() <= 1) | leads_inwards, gradient * slope, 0.0)


class ValueHead(nn.Module):
    """State value [...]."""

    def __init__(self, in_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, 1)
        orthogonal(self.linear, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.linear(features).squeeze(-1)
        return value


def build_policy_head(in_size: int, spec: EnvSpec, config: ModelConfig) -> CategoricalHead | GaussianHead:
    """Build the head for the environment's actions."""
    if spec.is_continuous:
        return GaussianHead(in_size, spec.num_actions, config)
    return CategoricalHead(in_size, spec.num_actions)
