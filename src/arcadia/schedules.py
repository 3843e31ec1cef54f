"""Settings that change over a run."""

from arcadia.config import Schedule


def scheduled(value: float, schedule: Schedule, env_steps: int, total_steps: int) -> float:
    """Return a setting's value at `env_steps` of `total_steps`: constant, or falling linearly to 0."""
    return value if schedule == "constant" else value * max(0.0, 1.0 - env_steps / total_steps)
