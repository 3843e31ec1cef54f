"""How many processors torch uses."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_torch_thread() -> Iterator[int]:
    """Let torch compute in one thread, and yield how many it had.

    Small networks gain nothing from more, and how many there are changes the last digits of a result.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)
