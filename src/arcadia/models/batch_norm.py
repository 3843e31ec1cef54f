"""Batch normalisation by running statistics that all workers share, in acting and learning alike."""

import torch
from torch import Tensor, nn

EPSILON = 1e-5


class RunningBatchNorm(nn.Module):
    """Normalise each channel of [N, C, H, W] by the running mean and variance, then scale and shift it (learned).

    Ioffe and Szegedy 2015 (arXiv:1502.03167) normalise by the batch at hand while learning; here the running statistics
    serve everywhere, so that the policy that learns is the one that acted. Before the first statistics: mean 0,
    variance 1.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.is_recording = False
        self.recorded = torch.zeros(2, channels, dtype=torch.float64)  # mean and mean square of the last batch

    def forward(self, features: Tensor) -> Tensor:
        if self.is_recording:
            self.recorded[0] = features.float().mean((0, 2, 3))
            self.recorded[1] = features.float().square().mean((0, 2, 3))
        return nn.functional.batch_norm(features, self.mean, self.variance, self.weight, self.bias, eps=EPSILON)
