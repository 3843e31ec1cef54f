"""The process that child processes are forked from, which has imported what they need and does nothing else.

A new interpreter for each would import PyTorch for seconds, on processors that others need. Nothing is computed in the
server, so that no thread or GPU context is lost in a fork.
"""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import struct
import sys
from collections.abc import Mapping
from multiprocessing import forkserver

from arcadia.stop_signals import STOP_SIGNALS, stop_signals_blocked

METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # system libraries elsewhere may not survive a fork
# glibc hands large buffers back to the system after every use and faults their pages in again at the next; keeping
# them makes the gradient a quarter cheaper. Other allocators ignore these. Read as a program starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the system call's number, for few C libraries have a function for it
SCHED_FLAG_KEEP_POLICY = 8
SLICE_NS = 50_000_000  # Linux itself gives 1.4 ms on two cores


def start() -> None:
    """Start the server, unless it runs already, and return at once: it imports while this process does."""
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    if METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["arcadia.preload"])
        with stop_signals_blocked():
            forkserver.ensure_running()


def become_child(environment: Mapping[str, str]) -> None:
    """Make a forked process its parent's own: with its environment variables, ending with it, in long turns.

    It is deaf to Ctrl-C, SIGTERM and SIGHUP, as it was from its first moment if this module has started the server.
    """
    end_with_parent()
    _take_long_turns()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    os.environ.clear()
    os.environ.update(environment)


def end_with_parent() -> None:
    """Let Linux end this process with its parent, even one that is stopped."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_long_turns() -> None:
    """Let Linux (6.12 or later) run this process for longer at a time where others wait for the same core.

    At every turn caches are filled again. Programs that ask for nothing are let in between.
    """
    number = SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is not None:
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = struct.pack("IIQiIQQQ", 48, 0, SCHED_FLAG_KEEP_POLICY, niceness, 0, SLICE_NS, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)  # older kernels ignore it
