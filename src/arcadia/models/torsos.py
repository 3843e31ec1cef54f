"""Torsos: one observation to one feature vector, [N, ...] -> [N, size].

Images come in blocks of n x n pixels, [N, H / n, W / n, C * n * n], for our convolutions, and as [N, C, H, W] for other
torsos.

Each returns the activations of its layers too, or none. Given those that the same parameters had for the same
observations, it computes nothing again.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from arcadia.envs import TorsoFactory
from arcadia.errors import UserError, summary_of
from arcadia.models.batch_norm import RunningBatchNorm
from arcadia.models.initialize import RELU_GAIN, orthogonal
from arcadia.models.recall import Flatten, run, run_again
from arcadia.models.space_to_depth import SpaceToDepthConv2d
from arcadia.types import Activations


class Convolution(NamedTuple):
    """One convolution; its kernel is square."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0


class ConvLayers(NamedTuple):
    """What a ConvTorso is made of."""

    convolutions: tuple[Convolution, ...]
    size: int | None  # width of the fully connected layer; None: the last convolution's output is the feature vector
    max_pool: bool = False  # 2x2 after every convolution
    batch_norm: bool = False  # after every convolution

    def block_size(self, height: int, width: int) -> int:
        """Return n: images of this size are to come in blocks of n x n pixels.

        n is the first convolution's stride or, where that does not divide all sizes, 1.
        """
        first = self.convolutions[0]
        divides = all(size % first.stride == 0 for size in (first.kernel_size, height, width))
        return first.stride if divides and not first.padding else 1


CONV_TORSOS = {
    # Mnih et al. 2013, arXiv:1312.5602, which the A3C paper uses
    "a3c": ConvLayers((Convolution(16, 8, 4), Convolution(32, 4, 2)), 256),
    "a3c_bn": ConvLayers((Convolution(16, 8, 4), Convolution(64, 4, 2)), 256, batch_norm=True),
    # Mnih et al. 2015, Nature 518, 529-533
    "nature": ConvLayers((Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1)), 512),
    "nature_2": ConvLayers((Convolution(32, 8, 4), Convolution(64, 4, 2)), 512),
    "narrow_8": ConvLayers((Convolution(8, 8, 4), Convolution(16, 4, 2), Convolution(32, 3, 2)), 256),
    "narrow_16": ConvLayers((Convolution(16, 8, 4), Convolution(16, 4, 2), Convolution(32, 3, 2)), 256),
    "max_pool": ConvLayers(
        (Convolution(32, 5, 1, 2), Convolution(32, 5, 1, 1), Convolution(64, 4, 1, 1), Convolution(64, 3, 1, 1)),
        None,
        max_pool=True,
    ),
}


class ConvTorso(nn.Module):
    """Convolutions, each followed by the batch normalisation or max-pooling that `layers` asks for and ReLU; then a
    fully connected layer with ReLU.

    Args:
        observation_shape: (C, H, W).

    Raises:
        UserError: the observation is too small.
    """

    def __init__(self, observation_shape: tuple[int, ...], layers: ConvLayers) -> None:
        super().__init__()
        channels, height, width = observation_shape
        modules: list[nn.Module] = []
        block_size = layers.block_size(height, width)
        for out_channels, kernel_size, stride, padding in layers.convolutions:
            if block_size > 1 and not modules:
                convolution: nn.Conv2d = SpaceToDepthConv2d(channels, out_channels, kernel_size, block_size)
            else:
                convolution = nn.Conv2d(channels, out_channels, kernel_size, stride, padding)
            orthogonal(convolution, RELU_GAIN)
            modules.append(convolution)
            if layers.batch_norm:
                modules.append(RunningBatchNorm(out_channels))
            channels = out_channels
            height = (height + 2 * padding - kernel_size) // stride + 1
            width = (width + 2 * padding - kernel_size) // stride + 1
            if layers.max_pool:
                modules.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise UserError(
                    f"observation {observation_shape} is too small for this torso: use larger frames or another --torso"
                )
            modules.append(nn.ReLU(inplace=True))
        modules.append(Flatten())
        self.size = channels * height * width
        if layers.size is not None:
            linear = nn.Linear(self.size, layers.size)
            orthogonal(linear, RELU_GAIN)
            modules += [linear, nn.ReLU(inplace=True)]
            self.size = layers.size
        self.layers = nn.Sequential(*modules)
        self._can_recall = not (layers.batch_norm or layers.max_pool)

    def forward(self, observation: Tensor, activations: Activations = ()) -> tuple[Tensor, Activations]:
        rows = observation.movedim(-1, 1)  # [N, C * n * n, H / n, W / n], the channels last in memory
        if not self._can_recall:
            return self.layers(rows), ()
        if not activations:
            features, activations = run(self.layers, rows)
            if not torch.is_grad_enabled():
                return features, activations
        return run_again(self.layers, rows, activations), activations


ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLPTorso(nn.Module):
    """Fully connected layers, each followed by an activation."""

    def __init__(self, input_shape: tuple[int, ...], hidden_sizes: tuple[int, ...], activation: str) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden_sizes]
        modules: list[nn.Module] = [nn.Flatten()]
        for in_size, out_size in itertools.pairwise(sizes):
            linear = nn.Linear(in_size, out_size)
            orthogonal(linear, RELU_GAIN)
            modules += [linear, ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*modules)
        self.size = sizes[-1]

    def forward(self, observation: Tensor, activations: Activations = ()) -> tuple[Tensor, Activations]:
        return self.layers(observation), ()


class CustomTorso(nn.Module):
    """A torso of the caller's.

    Args:
        make: builds it: [N, *input_shape] -> [N, size], both of `dtype`.

    Raises:
        UserError: it cannot be used.
    """

    def __init__(self, input_shape: tuple[int, ...], make: TorsoFactory, dtype: torch.dtype) -> None:
        super().__init__()
        rows = torch.linspace(-1, 1, 2 * math.prod(input_shape)).view(2, *input_shape).to(dtype)
        try:
            self.layers = make(input_shape).to(dtype)
            before = [buffer.clone() for buffer in self.layers.buffers()]
            features, again = self.layers(rows), self.layers(rows)
            shape = tuple(features.shape)
            is_pure = bool((features == again).all()) and all(
                bool((old == new).all()) for old, new in zip(before, self.layers.buffers(), strict=True)
            )
        except Exception as error:  # whatever the caller's own code raises
            raise UserError(f"make_torso: no features for observations {input_shape}: {summary_of(error)}") from error
        if len(shape) != 2 or shape[0] != 2:
            raise UserError(f"make_torso: features of two observations must have shape (2, size), got {shape}")
        if not is_pure:
            raise UserError(
                "make_torso: features of the same observations change from call to call (BatchNorm, dropout, ...), and "
                "workers do not share what changes: use LayerNorm or GroupNorm, and no dropout"
            )
        self.size = shape[1]

    def forward(self, observation: Tensor, activations: Activations = ()) -> tuple[Tensor, Activations]:
        return self.layers(observation), ()
