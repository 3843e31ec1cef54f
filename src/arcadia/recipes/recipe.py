"""What a recipe is."""

from dataclasses import dataclass

from arcadia.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Settings with their source."""

    description: str
    source: str
    config: TrainConfig
    protocol: str = ""
    """How the source trained and evaluated."""
    reported: str = ""
    """The scores that the source reported."""
    games: tuple[str, ...] = ()
    """The ids that the source lists; empty: any."""
    deviations: tuple[str, ...] = ()
    """Where ours differs from the source, and why."""
