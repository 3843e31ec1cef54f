"""Settings that change over a run."""

import pytest

from arcadia.schedules import scheduled


def test_linear_falls_to_0_at_total_steps_and_constant_stays() -> None:
    env_steps = (0, 250, 500, 1000, 1500)
    assert [scheduled(0.2, "linear", steps, 1000) for steps in env_steps] == pytest.approx([0.2, 0.15, 0.1, 0.0, 0.0])
    assert [scheduled(0.2, "constant", steps, 1000) for steps in env_steps] == [0.2] * 5
