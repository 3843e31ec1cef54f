"""Where the workers' models are: on the CPU, or on GPUs (A3G) beside shared parameters on the CPU."""

import contextlib
import gc
import os
import statistics
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from arcadia.errors import GpuMemoryError, UserError

CPU = torch.device("cpu")
DRIVER_SECONDS = 10.0  # allowed to nvidia-smi
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "_STATUS_NOT_INITIALIZED")  # cuBLAS's and cuDNN's handles need some too


@contextlib.contextmanager
def translate_gpu_memory_errors() -> Iterator[None]:
    """Raise GpuMemoryError where a GPU's memory does not suffice, for tensors, a context or a library's workspace."""
    try:
        yield
    except RuntimeError as error:
        if not any(part in str(error) for part in NO_MEMORY):
            raise
        first = str(error).splitlines()[0]
        raise GpuMemoryError(
            f"a GPU has too little memory ({first}): lower num_workers (a process each), num_envs or num_steps"
        ) from None


def find_gpus(gpu_ids: Sequence[int], device: Literal["cpu", "cuda"]) -> tuple[int, ...]:
    """Return the GPUs that these settings name; "cuda" alone names all that there are.

    Raises:
        UserError: there is none, or not this one.
    """
    if not gpu_ids and device == "cpu":
        return ()
    shown = f"gpu_ids {' '.join(map(str, gpu_ids))}" if gpu_ids else "device cuda"
    if not torch.cuda.is_available():
        raise UserError(
            f"{shown}: PyTorch {torch.__version__} finds no CUDA GPU: leave --{'gpu-ids' if gpu_ids else 'device'} out "
            "(to resume: give --gpu-ids without a number), or install PyTorch's CUDA build where there is one"
        )
    count = torch.cuda.device_count()
    for index in gpu_ids:
        if index >= count:
            raise UserError(
                f"{shown}: there is no GPU {index}, the last of {count} is {count - 1}: give --gpu-ids others"
            )
    return tuple(gpu_ids) or tuple(range(count))


def choose_device(gpu_ids: Sequence[int], worker: int) -> torch.device:
    """Return where this worker's model is, GPUs in turn, and make that GPU this process's current one.

    float32 is float32 there: TF32 is off.
    """
    if not gpu_ids:
        return CPU
    device = torch.device("cuda", gpu_ids[worker % len(gpu_ids)])
    torch.cuda.set_device(device)  # or pinned memory would take a context on GPU 0
    with warnings.catch_warnings(action="ignore"):  # newer names of this are not all known to PyTorch 2.6
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; a GPU copies it in its turn, from pinned memory, while the CPU goes on."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # others are copied once more, unpinned


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was asked to, copies to the CPU included."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class GpuUse(NamedTuple):
    """How busy GPUs are."""

    utilization: float  # share of the last second or so in which a kernel ran, mean over the GPUs
    memory_mib: float  # in use, of all GPUs, by whatever program


def read_gpu_use(gpu_ids: Sequence[int]) -> GpuUse | None:
    """Ask the driver's nvidia-smi about GPUs as CUDA numbers them; return None where it does not answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [visible.split(",")[index] if visible else str(index) for index in dict.fromkeys(gpu_ids)]
    query = ["nvidia-smi", f"--id={','.join(names)}", "--query-gpu=utilization.gpu,memory.used"]
    query.append("--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(query, check=True, capture_output=True, text=True, timeout=DRIVER_SECONDS).stdout
        percent, memory = zip(*(map(float, line.split(",")) for line in answer.splitlines()), strict=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return GpuUse(statistics.fmean(percent) / 100, sum(memory))


class GraphedFunction:
    """A function of tensors, whose kernels a GPU is given all at once, as a CUDA graph.

    A graph is captured at the first call with inputs of its shapes. The next call with such inputs overwrites what it
    returned.

    Args:
        function: neither waits for the GPU nor depends on anything but its inputs and on tensors that stay in place.
        device: where all of these are.
        as_graph: else it is just called.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, *, as_graph: bool) -> None:
        self._function, self._device, self._as_graph = function, device, as_graph
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, Any, tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        if not self._as_graph:
            return self._function(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            held = tuple(tensor.clone() for tensor in inputs)
            self._graphs[shapes] = (*self._capture(held), held)
        graph, outputs, held = self._graphs[shapes]
        for place, tensor in zip(held, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return outputs

    def _capture(self, held: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Return a graph that reads `held`, and what it writes."""
        gc.collect()  # during a capture it might free other graphs, which is an error then
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            aside, captured = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._function(*held)  # libraries set themselves up
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph, stream=captured):
                outputs = self._function(*held)
        return graph, outputs
