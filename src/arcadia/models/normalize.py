"""Normalisation of observations by running statistics that all workers share."""

import math

import numpy as np
import torch
from torch import Tensor

from arcadia.config import ModelConfig
from arcadia.devices import CPU, send
from arcadia.envs import EnvSpec
from arcadia.models.space_to_depth import space_to_depth
from arcadia.models.torsos import CONV_TORSOS
from arcadia.types import BoolArray, Observations

# Pixels that hardly ever change would divide by nearly nothing. Units: of the observation.
PIXEL_STD_FLOOR = 5.0
VECTOR_STD_FLOOR = 0.01
CLIP = 20.0
PART = 32  # rows summed at a time, few enough to stay in the processor's cache
SCALAR_DECAY = 0.9999  # per observation


class ObservationNormalizer:
    """Turns raw observations into model inputs, and gathers the statistics for it.

    per_element: inputs are (x - mean) / sqrt(var + floor^2), clipped to +-20, with one mean and variance per pixel
    (over the newest frame, applied to every frame of a stack) or per dimension, over all valid rows of all workers, or
    the first `normalization_steps` of them. Shared statistics: one float64 vector [1 + 2K]: count, sum [K], sum of
    squares [K].

    scalar: inputs are (x - m) / max(s, floor), clipped to +-20, where m and s are decaying averages, over all
    workers, of the mean and the standard deviation of an observation's newest frame, corrected for their start (as
    Adam does). Shared statistics [3]: weight, weighted mean, weighted standard deviation.

    Before the first statistics arrive, pixels are divided by 255. Each worker owns a slot of statistics and nothing
    is locked; the sum over slots is what `load` takes a snapshot of, which holds until the next.

    Attributes:
        input_shape: of one model input: for our convolutions [H / n, W / n, C * n * n], in blocks of n x n pixels
            (`ConvLayers.block_size`), each frame of a stack a part of the last dimension; else the observation's own,
            [C, H, W] or [D].
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec) -> None:
        self._kind = config.normalization
        self._is_image, self._is_pixels = spec.is_image, spec.is_pixels
        self._channels = spec.frame_channels
        self._shape = self.input_shape = spec.observation_shape
        self._block_size: int | None = None  # n; None where inputs have the observation's own shape
        self._num_frames = 1
        if spec.is_image:
            channels, height, width = spec.observation_shape
            self._shape = (self._channels, height, width)
            self._num_frames = channels // self._channels
            if config.is_convolutional:
                n = self._block_size = CONV_TORSOS[config.torso].block_size(height, width)
                self.input_shape = (height // n, width // n, channels * n * n)
        self._num_elements = int(np.prod(self._shape))
        self._limit = math.inf
        if self._kind == "per_element" and config.normalization_steps is not None:
            self._limit = config.normalization_steps
        self._count = -1.0
        self._floor = PIXEL_STD_FLOOR if spec.is_pixels else VECTOR_STD_FLOOR
        self._mean = torch.zeros(1)
        self._scale = torch.ones(1)
        self.load(torch.zeros(self.size, dtype=torch.float64))

    @property
    def size(self) -> int:
        """Length of the statistics vector (0 where none are kept)."""
        return {"per_element": 1 + 2 * self._num_elements, "scalar": 3}.get(self._kind, 0)

    @property
    def is_frozen(self) -> bool:
        """True where nothing is gathered: no statistics are kept, or enough rows were seen."""
        return self.size == 0 or self._count >= self._limit

    def load(self, statistics: Tensor, device: torch.device = CPU) -> None:
        """Take a snapshot of the shared statistics [size] float64, for inputs on `device`."""
        if self.size == 0 or statistics[0] == 0:
            self._count = 0.0
            self._scale = torch.ones(1)
            if self._is_pixels and self._kind != "none":
                self._scale /= 255
        elif self._kind == "per_element" and statistics[0] != self._count:
            self._count = float(statistics[0])
            sums, squares = statistics[1:].view(2, *self._shape)
            mean = sums / self._count
            variance = (squares / self._count - mean.square()).clamp(min=0)
            scale = (variance + self._floor**2).rsqrt()
            self._mean, self._scale = mean.float(), scale.float()
        elif self._kind == "scalar":
            mean, std = statistics[1:] / statistics[0]
            self._mean = mean.float().view(1)
            self._scale = 1 / std.float().clamp(min=self._floor).view(1)
        self._mean, self._scale = send(self._mean, device), send(self._scale, device)

    def apply(self, observation: Observations, out: Tensor) -> None:
        """Write the model input of `observation` [B, ...] into `out` [B, *input_shape] (the model's dtype and device).

        The observation goes to the device in its own dtype.
        """
        raw = send(torch.from_numpy(observation), out.device)
        for frame, inputs in zip(raw.chunk(self._num_frames, 1), self._frames(out), strict=True):
            self._convert(frame, inputs)

    def advance(self, observation: Observations, out: Tensor, before: Tensor, shifted: BoolArray) -> None:
        """Do as `apply` does, converting only the newest frame where the others are known.

        Args:
            before: [B, *input_shape] the model input of the observations before. Frames keep the statistics that they
                were converted with.
            shifted: [B], each frame of the observation but the newest is the next one of the observation before.
        """
        self._shift(before, out)
        self._convert(send(torch.from_numpy(self.newest(observation)), out.device), self._frames(out)[-1])
        if not shifted.all():
            others = np.flatnonzero(~shifted)
            whole = torch.empty(len(others), *self.input_shape, dtype=out.dtype, device=out.device)
            self.apply(observation[others], whole)
            out[send(torch.from_numpy(others), out.device)] = whole

    def _frames(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return views of the frames of model inputs, oldest first; vectors are one frame."""
        return inputs.chunk(self._num_frames, -1 if self._block_size else 1)

    def _convert(self, raw: Tensor, out: Tensor) -> None:
        """Write one frame of the model inputs, made of raw ones [B, *frame]."""
        values = raw
        if self._kind != "none":
            # Bytes become float32 first, which is vectorised, unlike arithmetic of two dtypes.
            values = raw.to(torch.promote_types(raw.dtype, torch.float32), copy=True)
            if self._kind == "scale":
                values *= self._scale
            else:
                values.sub_(self._mean).mul_(self._scale).clamp_(-CLIP, CLIP)
        if self._block_size:
            space_to_depth(values.to(out.dtype), self._block_size, out)
        else:
            out.copy_(values)

    def _shift(self, before: Tensor, out: Tensor) -> None:
        """Copy all frames of a stack but the oldest one place on; the newest is still to be written."""
        if self._block_size:  # in one piece
            size = self.input_shape[-1] // self._num_frames
            out.view(-1)[:-size] = before.view(-1)[size:]
        else:
            out[:, : -self._channels] = before[:, self._channels :]

    def newest(self, observation: Observations) -> Observations:
        """Return what the statistics are made of: of images [B, ...] the newest frame, of vectors all."""
        return observation[:, -self._channels :] if self._is_image else observation

    def gather(self, newest: Observations, valid: BoolArray) -> tuple[float, Tensor]:
        """Return the statistics [size] float64 of one rollout, and the factor to keep the earlier ones by.

        Args:
            newest: [T, B, ...] as `newest` returns them.
            valid: [T, B].
        """
        rows = torch.from_numpy(newest[valid]).flatten(1)  # [N, K]
        if self._kind == "scalar":
            return _decaying(rows)
        count = torch.tensor([float(len(rows))], dtype=torch.float64)
        sums = torch.zeros(2, self._num_elements, dtype=torch.float64)
        for part in torch.split(rows, PART):
            # float32 holds sums of fewer than 258 squared pixels exactly
            part = part.to(torch.float32 if rows.dtype == torch.uint8 else torch.float64)
            sums[0] += part.sum(0)
            sums[1] += part.square_().sum(0)
        return 1.0, torch.cat((count, sums.flatten()))


def _decaying(rows: Tensor) -> tuple[float, Tensor]:
    """Return what N rows [N, K] leave of earlier averages, and what they add: weight, weighted mean and std."""
    ages = torch.arange(len(rows) - 1, -1, -1, dtype=torch.float64)
    weights = (1 - SCALAR_DECAY) * SCALAR_DECAY**ages  # [N]
    moments = torch.ones(3, len(rows))
    for part, moment in zip(torch.split(rows, PART), torch.split(moments, PART, 1), strict=True):
        part = part.float()
        moment[1] = part.mean(1)
        moment[2] = (part - moment[1].unsqueeze(1)).square_().mean(1).sqrt_()
    return SCALAR_DECAY ** len(rows), moments.double() @ weights


class RewardNormalizer:
    """Divides rewards by the running standard deviation of the discounted return, clipped to +-10.

    The return is the discounted sum of an episode's rewards up to now, over all valid rows of all workers (as in
    OpenAI Baselines' VecNormalize). Shared statistics [3] float64: count, sum, sum of squares.
    """

    SIZE = 3
    CLIP = 10.0

    def __init__(self) -> None:
        self._scale = 1.0

    def load(self, statistics: Tensor) -> None:
        """Take a snapshot of the shared statistics [3]; it holds until the next."""
        count, total, squares = statistics.tolist()
        if count > 0:
            variance = squares / count - (total / count) ** 2
            self._scale = 1 / math.sqrt(max(variance, 0.0) + 1e-8)

    def apply(self, reward: Tensor) -> Tensor:
        """Return the scaled rewards."""
        return (reward * self._scale).clamp(-self.CLIP, self.CLIP)

    def gather(self, returns: Tensor) -> Tensor:
        """Return the statistics [3] of the finite ones of discounted returns [N]."""
        returns = returns[returns.isfinite()].double()
        return torch.stack((torch.tensor(float(len(returns))).double(), returns.sum(), returns.square().sum()))
