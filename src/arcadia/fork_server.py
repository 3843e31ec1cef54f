"""The process that child processes are forked from, which has imported what they need and does nothing else.

A child of its own kind would import PyTorch for seconds, on processors that others need. Nothing but imports happens in
the server, so that no thread or GPU context is lost in a fork.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from multiprocessing import forkserver

from arcadia.stop_signals import stop_signals_blocked

# glibc hands large buffers back to the system after every use and faults their pages in again at the next; keeping
# them makes the gradient a quarter cheaper. Other allocators ignore these. Read as a program starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def start() -> None:
    """Start the server, unless it runs already, and return at once: it imports while this process does.

    Its children are deaf to Ctrl-C and SIGTERM from their first moment, and end when it does.
    """
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    multiprocessing.set_forkserver_preload(["arcadia.preload"])
    with stop_signals_blocked():
        forkserver.ensure_running()


def end_with_parent() -> None:
    """Let Linux end this process with its parent, even one that is stopped."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
