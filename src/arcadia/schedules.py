"""Settings that change over a run."""

import math

from arcadia.config import Schedule


def scheduled(value: float, schedule: Schedule, *, env_steps: int, total_steps: float, episodes: int) -> float:
    """Return a setting's value at a point of the run.

    constant: the value; linear: falling to 0 at `total_steps`; log_episodes: value / log10(10 + episodes / 100).
    """
    if schedule == "linear":
        return value * max(0.0, 1.0 - env_steps / total_steps)
    return value if schedule == "constant" else value / math.log10(10 + 0.01 * episodes)
