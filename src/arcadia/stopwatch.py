"""Where the time of a process goes."""

import time


class Stopwatch:
    """Adds up laps by name."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the lap before as `name`."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def shares(self) -> dict[str, float]:
        """Return the share of each name in all laps since the last call (they add up to 1), and start anew."""
        seconds, self._seconds = self._seconds, {}
        total = sum(seconds.values())
        return {name: part / total for name, part in seconds.items()}
