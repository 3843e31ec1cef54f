"""Torsos: one observation to one feature vector, [N, ...] -> [N, size]."""

import itertools
import math

from torch import Tensor, nn


def initialize(module: nn.Module, gain: float) -> None:
    """Give a layer orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) of `gain` and zero biases."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.orthogonal_(parameter, gain)


RELU_GAIN = math.sqrt(2.0)


class ConvTorso(nn.Module):
    """Strided convolutions and one fully connected layer, each followed by ReLU.

    Args:
        input_shape: (C, H, W).
        layers: (out_channels, kernel_size, stride) of each convolution.
        size: width of the fully connected layer.
    """

    def __init__(self, input_shape: tuple[int, ...], layers: tuple[tuple[int, int, int], ...], size: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        modules: list[nn.Module] = []
        for out_channels, kernel_size, stride in layers:
            if min(height, width) < kernel_size:
                raise ValueError(
                    f"observation {input_shape} is too small for a {kernel_size}x{kernel_size} convolution"
                )
            convolution = nn.Conv2d(channels, out_channels, kernel_size, stride)
            initialize(convolution, RELU_GAIN)
            modules += [convolution, nn.ReLU(inplace=True)]
            channels = out_channels
            height = (height - kernel_size) // stride + 1
            width = (width - kernel_size) // stride + 1
        linear = nn.Linear(channels * height * width, size)
        initialize(linear, RELU_GAIN)
        self.layers = nn.Sequential(*modules, nn.Flatten(), linear, nn.ReLU(inplace=True))
        self.size = size

    def forward(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(observation)
        return features


class MLPTorso(nn.Module):
    """Fully connected layers with tanh."""

    def __init__(self, input_shape: tuple[int, ...], hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden_sizes]
        modules: list[nn.Module] = [nn.Flatten()]
        for in_size, out_size in itertools.pairwise(sizes):
            linear = nn.Linear(in_size, out_size)
            initialize(linear, RELU_GAIN)
            modules += [linear, nn.Tanh()]
        self.layers = nn.Sequential(*modules)
        self.size = sizes[-1]

    def forward(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(observation)
        return features


def a3c_torso(input_shape: tuple[int, ...]) -> ConvTorso:
    """Build the network of Mnih et al. 2013 (arXiv:1312.5602), which the A3C paper uses."""
    return ConvTorso(input_shape, ((16, 8, 4), (32, 4, 2)), 256)


def nature_torso(input_shape: tuple[int, ...]) -> ConvTorso:
    """Build the network of Mnih et al. 2015 (Nature 518, 529-533)."""
    return ConvTorso(input_shape, ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512)
