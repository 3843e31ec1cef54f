"""The signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start children that are deaf to Ctrl-C and SIGTERM from their first moment, for they inherit the blocked mask.

    Signals reach the whole group of a terminal or of `timeout`, and are the parent's to decide, which gets them later.
    """
    resource_tracker.ensure_running()  # starting it unblocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
