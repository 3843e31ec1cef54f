"""Normalisation of observations by running statistics that all workers share."""

import math

import numpy as np
import torch
from torch import Tensor

from arcadia.config import ModelConfig
from arcadia.devices import CPU
from arcadia.envs import EnvSpec
from arcadia.types import BoolArray, Observations

# Pixels that hardly ever change would divide by nearly nothing. Units: of the observation.
PIXEL_STD_FLOOR = 5.0
VECTOR_STD_FLOOR = 0.01
CLIP = 20.0
# Rows at a time, few enough to stay in the processor's cache:
PART = 64  # summed
CONVERTED = 16  # turned into inputs
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
        input_shape: of one model input: [H, W, C] for convolutions, which are fastest with the channels last; else
            the observation's own, [C, H, W] or [D].
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec) -> None:
        self._kind = config.normalization
        self._is_image = spec.is_image
        self._channels = spec.frame_channels
        self._shape = self.input_shape = spec.observation_shape
        self._is_channels_last = spec.is_image and config.is_convolutional
        if self._is_channels_last:
            self.input_shape = (*self._shape[1:], self._shape[0])
        self._repeats = 1  # of the statistics of one frame, over a stack; one channel broadcasts by itself
        if spec.is_image:
            self._shape = (self._channels, *spec.observation_shape[1:])
            if self._channels > 1:
                self._repeats = spec.observation_shape[0] // self._channels
        self._num_elements = int(np.prod(self._shape))
        self._limit = math.inf
        if self._kind == "per_element" and config.normalization_steps is not None:
            self._limit = config.normalization_steps
        self._count = -1.0
        self._floor = PIXEL_STD_FLOOR if spec.is_image else VECTOR_STD_FLOOR
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
            if self._is_image and self._kind != "none":
                self._scale /= 255
        elif self._kind == "per_element" and statistics[0] != self._count:
            self._count = float(statistics[0])
            sums, squares = statistics[1:].view(2, *self._shape)
            mean = sums / self._count
            variance = (squares / self._count - mean.square()).clamp(min=0)
            self._mean = self._tile(mean)
            self._scale = self._tile((variance + self._floor**2).rsqrt())
        elif self._kind == "scalar":
            mean, std = statistics[1:] / statistics[0]
            self._mean = mean.float().view(1)
            self._scale = 1 / std.float().clamp(min=self._floor).view(1)
        self._mean, self._scale = self._mean.to(device), self._scale.to(device)

    def _tile(self, frame: Tensor) -> Tensor:
        return frame.float().repeat(self._repeats, 1, 1) if self._repeats > 1 else frame.float()

    def apply(self, observation: Observations, out: Tensor) -> None:
        """Write the model input of `observation` [B, ...] into `out` [B, *input_shape] (the model's dtype and device).

        The observation goes to the device in its own dtype.
        """
        raw = torch.from_numpy(observation).to(out.device)
        if not self._is_channels_last:
            self._convert(raw, out, self._mean, self._scale)
            return
        # All in the inputs' order in memory, for one long loop over a few observations at a time.
        order, stack = torch.channels_last, (1, *raw.shape[1:])
        mean, scale = (x.expand(stack).contiguous(memory_format=order) for x in (self._mean, self._scale))
        parts = torch.split(raw, CONVERTED), torch.split(self._by_channel(out), CONVERTED)
        for part, rows in zip(*parts, strict=True):
            self._convert(part.contiguous(memory_format=order), rows, mean, scale)

    def advance(self, observation: Observations, out: Tensor, before: Tensor, shifted: BoolArray) -> None:
        """Do as `apply` does, converting only the newest frame where the others are known.

        Args:
            before: [B, *input_shape] the model input of the observations before, by the same statistics.
            shifted: [B], each frame of the observation but the newest is the next one of the observation before.
        """
        self._shift(before, out)
        newest = slice(-self._channels, None)
        raw = torch.from_numpy(observation[:, newest]).to(out.device)
        self._convert(raw, self._by_channel(out)[:, newest], self._mean[newest], self._scale[newest])
        if not shifted.all():
            others = np.flatnonzero(~shifted)
            whole = torch.empty(len(others), *self.input_shape, dtype=out.dtype, device=out.device)
            self.apply(observation[others], whole)
            out[torch.from_numpy(others).to(out.device)] = whole

    def _by_channel(self, inputs: Tensor) -> Tensor:
        """Return a view [B, C, H, W] of the model inputs of images, vectors as they are."""
        return inputs.movedim(-1, 1) if self._is_channels_last else inputs

    def _convert(self, raw: Tensor, out: Tensor, mean: Tensor, scale: Tensor) -> None:
        if self._kind == "none":
            out.copy_(raw)
        elif self._kind == "scale":
            out.copy_(raw * scale)
        else:
            out.copy_((raw - mean).mul_(scale).clamp_(-CLIP, CLIP))

    def _shift(self, before: Tensor, out: Tensor) -> None:
        """Copy all frames of a stack but the oldest one place on; the newest is still to be written."""
        if self._is_channels_last:  # in one piece
            out.view(-1)[: -self._channels] = before.view(-1)[self._channels :]
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
            return _decaying(rows.float())
        count = torch.tensor([float(len(rows))], dtype=torch.float64)
        sums = torch.zeros(2, self._num_elements, dtype=torch.float64)
        for part in torch.split(rows, PART):
            # float32 holds sums of fewer than 258 squared pixels exactly
            part = part.float() if rows.dtype == torch.uint8 else part.double()
            sums[0] += part.sum(0)
            sums[1] += part.square().sum(0)
        return 1.0, torch.cat((count, sums.flatten()))


def _decaying(rows: Tensor) -> tuple[float, Tensor]:
    """Return what N rows [N, K] leave of earlier averages, and what they add: weight, weighted mean and std."""
    ages = torch.arange(len(rows) - 1, -1, -1, dtype=torch.float64)
    weights = (1 - SCALAR_DECAY) * SCALAR_DECAY**ages  # [N]
    moments = torch.stack((torch.ones(len(rows)), rows.mean(1), rows.std(1, correction=0)))  # [3, N]
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
