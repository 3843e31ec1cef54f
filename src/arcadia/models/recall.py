"""The way back through a torso, from the outputs that its layers are known to have had.

Where a rollout is learned from in one pass, every observation has been through the torso once already, with the same
parameters: acting keeps its layers' outputs, and only the way back is left to compute.
"""

from typing import Any

import torch
from torch import Tensor, nn

from arcadia.models.space_to_depth import SpaceToDepthConv2d
from arcadia.types import Activations


class Flatten(nn.Module):
    """[N, C, H, W] to [N, C * H * W]; the gradient comes back as convolutions want it: channels last in memory."""

    def forward(self, rows: Tensor) -> Tensor:
        if rows.requires_grad:
            rows.register_hook(_to_channels_last)  # type: ignore[no-untyped-call]
        return rows.flatten(1)


def _to_channels_last(rows: Tensor) -> Tensor:
    return rows.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def run(layers: nn.Sequential, rows: Tensor) -> tuple[Tensor, Activations]:
    """Return the output for `rows` [N, ...], and that of every ReLU on the way, without a gradient."""
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
            weight = layer.kernel if isinstance(layer, SpaceToDepthConv2d) else layer.weight
            rows = _Recalled.apply(rows, weight, layer.bias, next(outputs), layer)  # type: ignore[no-untyped-call]
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
        in_blocks = needs_rows and _divides_into_blocks(layer, rows)
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
            [needs_rows and not in_blocks, True, True],
        )
        if in_blocks:
            of_rows = _gradient_in_blocks(gradient, rows, weight, layer.stride[0])
        return of_rows, of_weight, of_bias, None, None


def _divides_into_blocks(layer: nn.Conv2d, rows: Tensor) -> bool:
    """Return whether `_gradient_in_blocks` is for this layer: it has a stride, which divides all sizes, on a CPU."""
    stride = layer.stride[0]
    divides = all(size % stride == 0 for size in (layer.kernel_size[0], *rows.shape[2:]))
    return stride > 1 and divides and not layer.padding[0] and not rows.is_cuda


def _gradient_in_blocks(gradient: Tensor, rows: Tensor, weight: Tensor, n: int) -> Tensor:
    """Return the gradient [N, C, H, W] of the rows of a convolution with stride n.

    To it, blocks of n x n pixels are single pixels of n * n * C channels, and its stride is 1: its way back is a
    convolution too, for A3C-FF's second twice as fast as oneDNN's. A pixel's channels stay together, unlike
    `space_to_depth`'s, for they are moved back in one piece.
    """
    channels, height, width = rows.shape[1:]
    k = weight.shape[2] // n
    kernel = weight.view(*weight.shape[:2], k, n, k, n).permute(3, 5, 1, 0, 2, 4)  # [n, n, C, O, k, k]
    blocks = nn.functional.conv2d(gradient, kernel.flatten(0, 2).flip(2, 3), padding=k - 1)
    pixels = blocks.permute(0, 2, 3, 1).reshape(-1, height // n, width // n, n, n, channels)
    return pixels.transpose(2, 3).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
