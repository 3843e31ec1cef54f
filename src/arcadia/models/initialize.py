"""Initial parameters."""

import math

import torch
from torch import Tensor, nn

RELU_GAIN = math.sqrt(2.0)


def orthogonal(module: nn.Module, gain: float) -> None:
    """Give a layer orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) of `gain` and zero biases."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.orthogonal_(parameter, gain)


@torch.no_grad()
def xavier(module: nn.Module) -> None:
    """Give every layer inside `module` the initial parameters of rl_a3c_pytorch; those of heads are `head_rows`.

    Convolutions: Xavier uniform (Glorot and Bengio 2010) times the gain of ReLU; fully connected layers: the same
    without. Recurrent cells: Xavier uniform from the input, orthogonal from the state, forget bias 1. Other biases 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, RELU_GAIN if isinstance(layer, nn.Conv2d) else 1.0)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LSTMCell | nn.GRUCell):
            nn.init.xavier_uniform_(layer.weight_ih)
            nn.init.orthogonal_(layer.weight_hh)
            nn.init.zeros_(layer.bias_ih)
            nn.init.zeros_(layer.bias_hh)
            if isinstance(layer, nn.LSTMCell):
                _input, forget, *_ = layer.bias_ih.chunk(4)
                forget.fill_(1.0)


@torch.no_grad()
def head_rows(linear: nn.Linear, norm: float) -> None:
    """Give each row of the weights a random direction and this norm."""
    rows: Tensor = torch.randn_like(linear.weight)
    linear.weight.copy_(norm * rows / rows.norm(dim=1, keepdim=True))
