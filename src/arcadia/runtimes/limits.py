"""When a run is over."""

from typing import Literal

from arcadia.config import RuntimeConfig
from arcadia.parameters import ENV_STEPS, EPISODES, SharedState

StopReason = Literal["total_steps", "total_minutes", "total_episodes", "stop_score", "signal", "failure"]


def limit_reached(state: SharedState, config: RuntimeConfig) -> Literal["total_steps", "total_episodes"] | None:
    """Return which limit the counters have reached, if any."""
    if state.counter(ENV_STEPS) >= config.total_steps:
        return "total_steps"
    if config.total_episodes is not None and state.counter(EPISODES) >= config.total_episodes:
        return "total_episodes"
    return None
