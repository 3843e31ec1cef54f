"""Where the time of a process goes."""

import time


class Stopwatch:
    """Adds up laps by name."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget all laps; the next begins now."""
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the lap before as `name`."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Return the seconds of each name since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds
