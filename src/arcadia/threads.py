"""How torch computes: in how many threads, and how exactly near 0."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute in one thread.

    Small networks gain nothing from more, and how many there are changes the last digits of a result.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread take float32 numbers nearer to 0 than 1.2e-38 as 0, and float64 ones nearer than 2.2e-308.

    Adam's average of a gradient that has become 0 is among them after 700 to 900 updates, and Intel's processors are
    twenty times as slow with them.
    """
    was_on = float(torch.tensor(1e-39) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)
