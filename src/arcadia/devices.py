"""Where the workers' models are: on the CPU, or on GPUs (A3G) beside shared parameters on the CPU."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from arcadia.errors import UserError

CPU = torch.device("cpu")


@contextlib.contextmanager
def out_of_gpu_memory() -> Iterator[None]:
    """Raise UserError where a GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError("a GPU has no memory left: lower num_workers (a process each), num_envs or num_steps") from None


def check_gpus(gpu_ids: Sequence[int]) -> None:
    """Raise UserError where a GPU is not there."""
    if not gpu_ids:
        return
    shown = " ".join(map(str, gpu_ids))
    if not torch.cuda.is_available():
        raise UserError(
            f"gpu_ids {shown}: PyTorch {torch.__version__} finds no CUDA GPU: leave --gpu-ids out, or install its CUDA "
            "build where there is one"
        )
    count = torch.cuda.device_count()
    for index in gpu_ids:
        if index >= count:
            raise UserError(f"gpu_ids {shown}: there is no GPU {index}, the last of {count} is {count - 1}")


def worker_device(gpu_ids: Sequence[int], worker: int) -> torch.device:
    """Return where this worker's model is, round-robin; of several GPUs its process touches no other."""
    if not gpu_ids:
        return CPU
    device = torch.device("cuda", gpu_ids[worker % len(gpu_ids)])
    torch.cuda.set_device(device)  # pinned memory takes a context on the current one
    return device
