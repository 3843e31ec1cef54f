"""Signals as a wish to stop."""

import math
import time
from types import FrameType, TracebackType
from typing import Self

from arcadia.stop_signals import stop_signals_handled

ECHO_SECONDS = 0.5  # `timeout` sends its signal to the process and then to the group that it is in


class StopSignals:
    """Turns STOP_SIGNALS into a flag; a second signal, later than an echo, ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._first = math.inf
        self._handled = stop_signals_handled(self._handle)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handled.__exit__(kind, error, traceback)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            raise SystemExit(128 + number)
