"""When a run ends, and how it did."""

from pathlib import Path
from typing import Literal, NamedTuple

from arcadia.config import RuntimeConfig
from arcadia.parameters import ENV_STEPS, EPISODES, SharedState

StopReason = Literal["total_steps", "total_minutes", "total_episodes", "stop_score", "signal", "failure"]
REASONS: dict[StopReason, str] = {
    "total_steps": "total_steps reached",
    "total_minutes": "total_minutes over",
    "total_episodes": "total_episodes reached",
    "stop_score": "stop_score reached",
    "signal": "stopped by a signal",
}


class TrainResult(NamedTuple):
    """How a run ended."""

    run: Path
    reason: StopReason
    signal_number: int | None  # where that was the reason
    env_steps: int
    seconds: float  # of training, earlier sessions of a resumed run included
    mean_return: float | None  # of the last 100 episodes, or of fewer
    num_returns: int  # how many
    skipped_updates: int  # that were not finite and so not applied
    is_saved: bool  # whether the last checkpoint could be written


def limit_reached(state: SharedState, config: RuntimeConfig) -> Literal["total_steps", "total_episodes"] | None:
    """Return which limit the counters have reached, if any."""
    if state.counter(ENV_STEPS) >= config.total_steps:
        return "total_steps"
    if config.total_episodes is not None and state.counter(EPISODES) >= config.total_episodes:
        return "total_episodes"
    return None
