"""Where the workers' models are: on the CPU, or on GPUs (A3G) beside shared parameters on the CPU."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from arcadia.errors import GpuMemoryError, UserError

CPU = torch.device("cpu")


@contextlib.contextmanager
def translate_gpu_memory_errors() -> Iterator[None]:
    """Raise GpuMemoryError where a GPU's memory does not suffice, for tensors, a context or a library's workspace."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error) and "ALLOC_FAILED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise GpuMemoryError(
            f"a GPU has too little memory ({first}): lower num_workers (a process each), num_envs or num_steps"
        ) from None


def check_gpus(gpu_ids: Sequence[int]) -> None:
    """Raise UserError where a GPU is not there."""
    if not gpu_ids:
        return
    shown = " ".join(map(str, gpu_ids))
    if not torch.cuda.is_available():
        raise UserError(
            f"gpu_ids {shown}: PyTorch {torch.__version__} finds no CUDA GPU: leave --gpu-ids out (to resume: give it "
            "without a number), or install PyTorch's CUDA build where there is one"
        )
    count = torch.cuda.device_count()
    for index in gpu_ids:
        if index >= count:
            raise UserError(f"gpu_ids {shown}: there is no GPU {index}, the last of {count} is {count - 1}")


def choose_device(gpu_ids: Sequence[int], worker: int) -> torch.device:
    """Return where this worker's model is, GPUs in turn, and make that GPU this process's current one.

    float32 is float32 there: TF32 is off.
    """
    if not gpu_ids:
        return CPU
    device = torch.device("cuda", gpu_ids[worker % len(gpu_ids)])
    torch.cuda.set_device(device)  # or pinned memory would take a context on GPU 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device
