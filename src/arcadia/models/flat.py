"""A model's parameters and gradients as flat vectors."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from arcadia.devices import wait_for


class _Segment(NamedTuple):
    """A run of parameters of one dtype."""

    slice: slice  # in the flat vector [P]
    parameters: Tensor  # [n] buffer that the parameters are views of


class FlatParameters:
    """Re-point a model's parameters to flat buffers, in the order of `parameters()`.

    One flat float32 vector [P] stands for the whole model: `load` copies it in, `read` copies it out, and gradients are
    written into another. Where the model mixes dtypes, each run of equal dtype is one buffer.

    The vector is on the CPU, the model's buffers are where the model is. To a GPU and back it goes in one copy, through
    pinned memory: all that the GPU is asked after `load` sees the new parameters, `gradient` waits for its copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.size = sum(parameter.numel() for parameter in model.parameters())
        self._segments: list[_Segment] = []
        run: list[nn.Parameter] = []
        for parameter in model.parameters():
            if run and run[-1].dtype != parameter.dtype:
                self._add_segment(run)
                run = []
            run.append(parameter)
        self._add_segment(run)
        self._device = self._segments[0].parameters.device
        self._gradient = torch.zeros(self.size, device=self._device)
        if self._device.type == "cuda":
            self._pinned_parameters = torch.empty(self.size, pin_memory=True)
            self._pinned_gradient = torch.empty(self.size, pin_memory=True)
            self._loaded = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def _add_segment(self, run: list[nn.Parameter]) -> None:
        start = self._segments[-1].slice.stop if self._segments else 0
        size = sum(parameter.numel() for parameter in run)
        buffer = torch.empty(size, dtype=run[0].dtype, device=run[0].device)
        offset = 0
        for parameter in run:
            end = offset + parameter.numel()
            buffer[offset:end] = parameter.detach().flatten()
            parameter.data = buffer[offset:end].view(parameter.shape)
            offset = end
        self._segments.append(_Segment(slice(start, start + size), buffer))

    def load(self, flat: Tensor) -> None:
        """Copy `flat` [P] float32 into the model."""
        if self._device.type == "cuda":
            self._loaded.synchronize()  # the last copy has left the pinned memory
            flat = self._pinned_parameters.copy_(flat).to(self._device, non_blocking=True)
            self._loaded.record(torch.cuda.current_stream(self._device))
        for segment in self._segments:
            segment.parameters.copy_(flat[segment.slice])

    def read(self) -> Tensor:
        """Return a float32 copy [P] of the parameters."""
        return torch.cat([segment.parameters.float() for segment in self._segments]).cpu()

    def write_gradient(self) -> None:
        """Copy each parameter's gradient into the flat one: 0 where it has none."""
        offset = 0
        for parameter in self._model.parameters():
            place = self._gradient[offset : offset + parameter.numel()].view(parameter.shape)
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
            offset += parameter.numel()

    def gradient(self) -> Tensor:
        """Return the gradient [P] float32 that was written last, in a buffer on the CPU that the next overwrites."""
        if self._device.type != "cuda":
            return self._gradient
        self._pinned_gradient.copy_(self._gradient, non_blocking=True)
        wait_for(self._device)
        return self._pinned_gradient

    def assert_views(self) -> None:
        """Assert that the parameters still live in the flat buffers."""
        starts = {segment.slice.start: segment.parameters.data_ptr() for segment in self._segments}
        offset = pointer = 0
        for parameter in self._model.parameters():
            pointer = starts.get(offset, pointer)
            assert parameter.data_ptr() == pointer, "a parameter left its flat buffer"
            pointer += parameter.numel() * parameter.element_size()
            offset += parameter.numel()
