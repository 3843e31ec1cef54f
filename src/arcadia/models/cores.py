"""Recurrent cores: features and state through T rows, with resets inside the sequence.

The state of every core is one tensor [B, state_size], so that rollouts carry it without knowing the core.
"""

import torch
from torch import Tensor, nn

from arcadia.models.initialize import orthogonal


class NoCore(nn.Module):
    """Features pass unchanged; the state is empty."""

    def __init__(self, in_size: int) -> None:
        super().__init__()
        self.size, self.state_size = in_size, 0

    def forward(self, features: Tensor, is_first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return features, state


class RecurrentCore(nn.Module):
    """A recurrent cell unrolled over T rows; where `is_first`, the state is zero before the row.

    forward(features [T, B, in_size], is_first [T, B] bool, state [B, state_size])
        -> (output [T, B, size], state after the last row)
    """

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell) -> None:
        super().__init__()
        orthogonal(cell, 1.0)
        self.cell = cell
        self.size = cell.hidden_size
        self.state_size = cell.hidden_size * (2 if isinstance(cell, nn.LSTMCell) else 1)

    def forward(self, features: Tensor, is_first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        keep = (~is_first).unsqueeze(-1).to(features.dtype)  # [T, B, 1]
        outputs = []
        for t in range(len(features)):
            state = state * keep[t]
            if isinstance(self.cell, nn.LSTMCell):
                hidden, memory = state.chunk(2, dim=-1)  # [B, size] each
                hidden, memory = self.cell(features[t], (hidden, memory))
                state = torch.cat((hidden, memory), dim=-1)
            else:
                hidden = state = self.cell(features[t], state)
            outputs.append(hidden)
        return torch.stack(outputs), state


def build_core(kind: str, in_size: int, size: int) -> NoCore | RecurrentCore:
    """Build the core named `kind` (none, lstm, gru)."""
    if kind == "none":
        return NoCore(in_size)
    return RecurrentCore(nn.LSTMCell(in_size, size) if kind == "lstm" else nn.GRUCell(in_size, size))
