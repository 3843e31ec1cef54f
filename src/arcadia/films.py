"""Videos of games as training goes on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory
from arcadia.parameters import Snapshot
from arcadia.player import Player
from arcadia.types import UserError
from arcadia.video import record

FIRST_SEED = 3_000_000


class Film(NamedTuple):
    """A game filmed in training."""

    path: Path
    env_steps: int  # of the parameters that played it
    score: float
    problem: str = ""  # why there is no video


class PeriodicFilms:
    """Films a sampled game of a changing policy into RUN/videos/.

    Args:
        config: `video_updates` says how often.
        updates: the run's updates so far.
    """

    def __init__(self, config: TrainConfig, make_env: EnvFactory, updates: int) -> None:
        self._config, self._make_env = config, make_env
        self._last = self._number(updates)

    def film(self, snapshot: Snapshot, on_progress: Callable[[], None] = lambda: None) -> Film | None:
        """Play a game with `snapshot` and film it; None while no film is due.

        Args:
            on_progress: called after every decision and every picture.
        """
        runtime, number = self._config.runtime, self._number(snapshot.updates)
        if number == self._last:
            return None
        self._last = number
        path = Path(runtime.run_dir or "") / "videos" / f"training-{snapshot.env_steps:012d}.mp4"
        try:
            path.parent.mkdir(exist_ok=True)
            player = Player(
                self._config,
                self._make_env,
                num_episodes=1,
                greedy=False,
                seed=FIRST_SEED + number,
                num_envs=1,
                record=True,
            )
            player.start(snapshot)
            while player.step() is None:
                on_progress()
            assert player.recording is not None
            game = player.recording.games[0]
            record(self._config.env, player.recording, game, path, on_progress=lambda frames: on_progress())
        except (UserError, OSError) as error:
            return Film(path, snapshot.env_steps, math.nan, str(error))
        return Film(path, snapshot.env_steps, game.score)

    def _number(self, updates: int) -> int:
        every = self._config.runtime.video_updates
        return 0 if every is None else updates // every
