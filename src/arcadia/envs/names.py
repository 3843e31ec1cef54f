"""Atari ids as users write them, and the protocol that each name promises."""

import re
from typing import NamedTuple

_ID = re.compile(
    r"^(?P<namespace>ALE/)?(?P<game>[A-Za-z0-9_ -]+?)(?P<variant>NoFrameskip|Deterministic)?(-v(?P<version>\d+))?$"
)


class AtariName(NamedTuple):
    """A game and the protocol that its id stands for."""

    game: str  # ROM name, such as "space_invaders"
    frame_skip: int | tuple[int, int]  # frames per decision; (low, high) draws from low..high-1
    sticky_probability: float  # chance that the emulator repeats the previous action, per frame
    max_decisions: int | None  # time limit in decisions
    max_frames: int  # time limit in emulator frames

    def with_limit(self, max_decisions: int) -> "AtariName":
        """Return the same protocol with this time limit in decisions."""
        frames = self.frame_skip if isinstance(self.frame_skip, int) else self.frame_skip[1]
        return self._replace(max_decisions=max_decisions, max_frames=max_decisions * frames)


def simplify(name: str) -> str:
    """Return `name` without case and separators: SpaceInvaders and space_invaders agree."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def parse_atari_name(name: str, games: dict[str, str]) -> AtariName | None:
    """Parse an Atari id; None if its form or game is not Atari's.

    `NoFrameskip` ids read every frame in gym; like everybody's preprocessing, ours then skips 4.
    Time limits: -v0 10,000 decisions, -v3 and -v4 100,000, all others 108,000 frames.

    Args:
        name: pong, Pong-v0, PongNoFrameskip-v4, PongDeterministic-v4, ALE/Pong-v5, ...
        games: simplified game name -> ROM name.
    """
    match = _ID.match(name)
    if match is None:
        return None
    game = games.get(simplify(match["game"]))
    variant, version = match["variant"], match["version"]
    if game is None:
        return None
    if version is None and variant is None and match["namespace"] is None:
        return AtariName(game, 4, 0.0, None, 108_000)
    if version == "5" and variant is None:
        return AtariName(game, 4, 0.25, None, 108_000)
    if match["namespace"] is not None or version not in ("0", "3", "4"):
        return None
    frame_skip: int | tuple[int, int] = (2, 5)
    if variant == "NoFrameskip":
        frame_skip = 4
    elif variant == "Deterministic":
        frame_skip = 3 if game == "space_invaders" else 4
    protocol = AtariName(game, frame_skip, 0.25 if version == "0" else 0.0, None, 0)
    return protocol.with_limit(10_000 if version == "0" else 100_000)
