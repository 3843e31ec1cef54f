"""SIGINT and SIGTERM as a wish to stop."""

import math
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

ECHO_SECONDS = 0.5  # `timeout` sends its signal to the process and then to the group that it is in


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag; a second signal, later than an echo, ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._first = math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            raise SystemExit(128 + number)
