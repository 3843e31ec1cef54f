"""Heads: features [..., size] to logits and value."""

from torch import Tensor, nn

from arcadia.models.initialize import orthogonal


class CategoricalHead(nn.Module):
    """Logits [..., A] of a categorical policy; nearly uniform at the start."""

    def __init__(self, in_size: int, num_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, num_actions)
        orthogonal(self.linear, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features)
        return logits


class ValueHead(nn.Module):
    """State value [...]."""

    def __init__(self, in_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, 1)
        orthogonal(self.linear, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.linear(features).squeeze(-1)
        return value
