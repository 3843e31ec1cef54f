"""Action distributions: what the output of a policy head means."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

_LOG_TWO_PI = math.log(2 * math.pi)
# Gauss-Hermite quadrature for the standard normal distribution: E[f(z)] = sum of weight * f(node)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_EDGE = 1 - 1e-6  # squashed actions beyond are taken as this: atanh stays finite in float32


class ActionDistribution(Protocol):
    """One distribution over actions for each of [...] rows. Densities are summed over action dimensions."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw an action for each row, [...] int64 or [..., D] float32."""

    def mode(self) -> Tensor:
        """Return the greedy action of each row."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability or log-density [...] of `action`."""

    def entropy(self) -> Tensor:
        """Return the entropy [...] in nats."""

    def probabilities(self) -> Tensor | None:
        """Return the probability of each action [..., A]; None where actions are continuous."""

    def is_finite(self) -> bool:
        """Return False where a parameter is NaN or infinite."""


class Categorical(NamedTuple):
    """A choice among A actions."""

    logits: Tensor  # [..., A] unnormalised log-probabilities

    def sample(self, generator: torch.Generator) -> Tensor:
        # The largest of the logits with Gumbel noise, -log of an exponential (Maddison et al. 2014, arXiv:1411.0030):
        # the actions that torch.multinomial draws with the same numbers, in a third of the time.
        noise = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - noise.log_()).argmax(-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        log_probs = self.logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def probabilities(self) -> Tensor:
        return self.logits.softmax(-1)

    def is_finite(self) -> bool:
        return math.isfinite(self.logits.sum())


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions of D real numbers."""

    mean: Tensor  # [..., D]
    std: Tensor  # [..., D]

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_density(action).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """Return the log density of each number [..., D]."""
        return -0.5 * ((x - self.mean) / self.std).square() - self.std.log() - 0.5 * _LOG_TWO_PI

    def entropy(self) -> Tensor:
        return (0.5 + 0.5 * _LOG_TWO_PI + self.std.log()).sum(-1)

    def probabilities(self) -> None:
        return None

    def is_finite(self) -> bool:
        return math.isfinite(self.mean.sum() + self.std.sum())


class SquashedGaussian(NamedTuple):
    """tanh of independent normal distributions: D numbers in (-1, 1), those beyond +-_EDGE put there.

    Haarnoja et al. 2018, arXiv:1801.01290, appendix C.
    """

    mean: Tensor  # [..., D] before tanh
    std: Tensor  # [..., D] before tanh

    @property
    def _gaussian(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.std)

    def sample(self, generator: torch.Generator) -> Tensor:
        return self._gaussian.sample(generator).tanh().clamp(-_EDGE, _EDGE)

    def mode(self) -> Tensor:
        """Return the median, tanh of the mean: the density may peak at the bounds."""
        return self.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density and, of dimensions at an edge, the log probability of all that is put there."""
        before = action.clamp(-_EDGE, _EDGE).atanh()
        inside = self._gaussian.log_density(before) - _log_slope(before)
        is_beyond = action.abs() >= _EDGE
        distance = (before.sign() * self.mean - before.abs()) / self.std
        # Others stay out of log_ndtr, whose gradient is not finite everywhere.
        beyond = torch.special.log_ndtr(torch.where(is_beyond, distance, 0.0))
        return torch.where(is_beyond, beyond, inside).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy of the Gaussian plus the mean of log |d tanh|, by quadrature."""
        nodes, weights = _quadrature(self.mean.device, self.mean.dtype)
        before = self.mean.unsqueeze(-1) + self.std.unsqueeze(-1) * nodes  # [..., D, 32]
        return self._gaussian.entropy() + (_log_slope(before) @ weights).sum(-1)

    def probabilities(self) -> None:
        return None

    def is_finite(self) -> bool:
        return self._gaussian.is_finite()


@cache
def _quadrature(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return nodes and weights [32]."""
    # Sent once: a CUDA graph cannot hold their way to a GPU.
    nodes, weights = (torch.as_tensor(part).to(device, dtype) for part in (_NODES, _WEIGHTS))
    return nodes, weights


def _log_slope(x: Tensor) -> Tensor:
    """Return log(1 - tanh(x)^2), finite for large x."""
    return 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))


def to_device(distribution: ActionDistribution, device: torch.device) -> ActionDistribution:
    """Return the distribution with its parameters on `device`; from a GPU they come in their turn."""
    kind: Any = type(distribution)
    parameters = cast(tuple[Tensor, ...], distribution)
    moved: ActionDistribution = kind(*(parameter.to(device, non_blocking=True) for parameter in parameters))
    return moved


def concatenate(distributions: Sequence[Any]) -> ActionDistribution:
    """Return distributions of one kind, [T, ...] each, as one along their first dimension."""
    kind: Any = type(distributions[0])
    joined: ActionDistribution = kind(*map(torch.cat, zip(*distributions, strict=True)))
    return joined
