"""Normalisation of observations by running statistics that all workers share."""

import numpy as np
import torch
from torch import Tensor

from arcadia.config import ModelConfig
from arcadia.envs import EnvSpec
from arcadia.types import BoolArray, Observations

# Pixels unseen before the freeze would divide by nearly nothing. Units: of the observation.
PIXEL_STD_FLOOR = 5.0
VECTOR_STD_FLOOR = 0.01
CLIP = 20.0
PART = 64  # rows summed at a time, few enough to stay in the processor's cache


class ObservationNormalizer:
    """Turns raw observations into model inputs, and gathers the statistics for it.

    Inputs are (x - mean) / sqrt(var + floor^2), clipped to +-20, with one mean and variance per pixel (over the newest
    frame, applied to every frame of a stack) or per dimension, over all valid rows of all workers until
    `normalization_steps` of them were seen. Before the first statistics arrive, pixels are divided by 255.

    The shared statistics are one float64 vector [1 + 2K]: count, sum [K], sum of squares [K]. Sums of workers add up
    exactly, so each worker owns a slot and nothing is locked. `load` takes a snapshot that holds until the next.
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec, dtype: torch.dtype) -> None:
        self._kind = config.normalization
        self._dtype = dtype
        self._is_image = spec.is_image
        self._shape = spec.observation_shape[1:] if spec.is_image else spec.observation_shape
        self._num_elements = int(np.prod(self._shape))
        self._limit = config.normalization_steps
        self._count = -1.0
        self._floor = PIXEL_STD_FLOOR if spec.is_image else VECTOR_STD_FLOOR
        self._mean = torch.zeros(self._shape)
        self._scale = torch.ones(self._shape)
        self.load(torch.zeros(self.size, dtype=torch.float64))

    @property
    def size(self) -> int:
        """Length of the statistics vector (0 where none are kept)."""
        return 1 + 2 * self._num_elements if self._kind == "per_element" else 0

    @property
    def count(self) -> float:
        """Rows behind the snapshot."""
        return self._count

    @property
    def is_frozen(self) -> bool:
        """True once enough rows were seen: nothing is gathered any more."""
        return self._kind != "per_element" or self._count >= self._limit

    def load(self, statistics: Tensor) -> None:
        """Take a snapshot of the shared statistics [1 + 2K] float64."""
        if self._kind == "none" or (self._kind == "per_element" and statistics[0] == self._count):
            return
        if self._kind == "scale" or statistics[0] == 0:
            self._scale.fill_(1 / 255 if self._is_image else 1.0)
            self._count = 0.0
            return
        self._count = float(statistics[0])
        sums, squares = statistics[1:].view(2, *self._shape)
        mean = sums / self._count
        variance = (squares / self._count - mean.square()).clamp(min=0)
        self._mean.copy_(mean)
        self._scale.copy_((variance + self._floor**2).rsqrt())

    def apply(self, observation: Observations, out: Tensor) -> None:
        """Write the model input of `observation` [B, ...] into `out` [B, ...] (the model's dtype)."""
        raw = torch.from_numpy(observation)
        if self._kind == "none":
            out.copy_(raw)
        elif self._kind == "scale":
            out.copy_(raw * self._scale)
        else:
            out.copy_((raw - self._mean).mul_(self._scale).clamp_(-CLIP, CLIP))

    def gather(self, observation: Observations, valid: BoolArray) -> Tensor:
        """Return the statistics [1 + 2K] float64 of the rows of one rollout.

        Args:
            observation: [T, B, *shape], of images the newest frame only.
            valid: [T, B].
        """
        rows = torch.from_numpy(observation[valid]).flatten(1)  # [N, K]
        count = torch.tensor([float(len(rows))], dtype=torch.float64)
        sums = torch.zeros(2, self._num_elements, dtype=torch.float64)
        for part in torch.split(rows, PART):
            # float32 holds sums of fewer than 258 squared pixels exactly
            part = part.float() if rows.dtype == torch.uint8 else part.double()
            sums[0] += part.sum(0)
            sums[1] += part.square().sum(0)
        return torch.cat((count, sums.flatten()))
