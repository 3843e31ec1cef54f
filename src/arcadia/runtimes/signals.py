"""Signals as a wish to stop."""

import math
import time
from types import FrameType

ECHO_SECONDS = 0.5  # `timeout` sends its signal to the process and then to the group that it is in


class StopSignals:
    """Turns signals into a flag; a second signal, later than an echo, ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._first = math.inf

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.number is None:
            self.number, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            raise SystemExit(128 + number)
