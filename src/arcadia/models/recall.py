"""Learning from what acting has computed, as long as the parameters are still the same.

Where a rollout is learned from in one pass, every observation has been through the torso once already. Its layers'
outputs are kept, and only the way back is computed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from arcadia.types import Activations


class Flatten(nn.Module):
    """[N, C, H, W] to [N, C * H * W]; the gradient comes back as convolutions want it: channels last in memory."""

    def forward(self, rows: Tensor) -> Tensor:
        if rows.requires_grad:
            rows.register_hook(_to_channels_last)  # type: ignore[no-untyped-call]
        return rows.flatten(1)


def _to_channels_last(rows: Tensor) -> Tensor:
    return rows.contiguous(memory_format=torch.channels_last)


def run(layers: nn.Sequential, rows: Tensor) -> tuple[Tensor, Activations]:
    """Return the output for `rows` [N, ...], and that of every ReLU on the way."""
    outputs = []
    for layer in layers:
        rows = layer(rows)
        if isinstance(layer, nn.ReLU):
            outputs.append(rows)
    return rows, tuple(outputs)


def run_again(layers: nn.Sequential, rows: Tensor, activations: Activations) -> Tensor:
    """Return the output for `rows` that `run` gave with the same parameters, now with a gradient.

    Args:
        layers: convolutions and linear layers, each followed by ReLU, and Flatten in between.
        activations: of `run`.
    """
    outputs = iter(activations)
    for layer in layers:
        if isinstance(layer, Flatten):
            rows = layer(rows)
        elif not isinstance(layer, nn.ReLU):
            rows = _Recalled.apply(rows, layer.weight, layer.bias, next(outputs), layer)  # type: ignore[no-untyped-call]
    return rows


class _Recalled(torch.autograd.Function):
    """relu(layer(rows)), known to be `output`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, output: Tensor, layer: nn.Conv2d | nn.Linear
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, output)
        ctx.layer = layer
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        rows, weight, output = ctx.saved_tensors
        layer, needs_rows = ctx.layer, ctx.needs_input_grad[0]
        gradient = torch.ops.aten.threshold_backward(gradients[0], output, 0)
        if isinstance(layer, nn.Linear):
            of_rows = gradient @ weight if needs_rows else None
            return of_rows, gradient.t() @ rows, gradient.sum(0), None, None
        of_rows, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            rows,
            weight,
            [layer.out_channels],
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            [0, 0],
            layer.groups,
            [needs_rows, True, True],
        )
        return of_rows, of_weight, of_bias, None, None
