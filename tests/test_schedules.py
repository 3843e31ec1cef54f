"""Settings that change over a run."""

import pytest

from arcadia.config import Schedule
from arcadia.schedules import scheduled


def test_linear_falls_to_0_at_total_steps_and_constant_stays() -> None:
    def values(schedule: Schedule) -> list[float]:
        env_steps = (0, 250, 500, 1000, 1500)
        return [scheduled(0.2, schedule, env_steps=steps, total_steps=1000, episodes=7) for steps in env_steps]

    assert values("linear") == pytest.approx([0.2, 0.15, 0.1, 0.0, 0.0])
    assert values("constant") == [0.2] * 5


def test_log_episodes_by_hand() -> None:
    values = [
        scheduled(1e-3, "log_episodes", env_steps=0, total_steps=1, episodes=episodes)
        for episodes in (0, 9_000, 99_000)  # log10(10), log10(100), log10(1000)
    ]
    assert values == pytest.approx([1e-3, 5e-4, 1e-3 / 3])
