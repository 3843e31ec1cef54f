"""The signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is gone


@contextlib.contextmanager
def stop_signals_handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handle` have the signals; in another thread than the main one nothing changes.

    SIGHUP stays ignored where it is, as under nohup.
    """
    before = {}
    with contextlib.suppress(ValueError):  # in another thread
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start children that are deaf to these signals from their first moment, for they inherit the blocked mask.

    Signals reach the whole group of a terminal or of `timeout`, and are the parent's to decide, which gets them later.
    """
    resource_tracker.ensure_running()  # starting it unblocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
