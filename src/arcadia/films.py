"""Videos of games as training goes on."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory, make_camera
from arcadia.errors import UserError
from arcadia.parameters import Snapshot
from arcadia.player import Player
from arcadia.video import check_video_extra, check_video_path, record

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
        updates: of the run when this session began.
    """

    def __init__(self, config: TrainConfig, make_env: EnvFactory, updates: int) -> None:
        self._config, self._make_env = config, make_env
        self._last = self._number(updates)
        self._folder = Path(config.runtime.run_dir or "") / "videos"
        for temporary in self._folder.glob(".training-*.tmp.mp4"):  # of an evaluator that was killed
            temporary.unlink(missing_ok=True)

    def is_due(self, updates: int) -> bool:
        """Return whether a run with so many updates has something new to film."""
        return self._number(updates) > self._last

    def film(self, snapshot: Snapshot, should_stop: Callable[[], bool]) -> Film:
        """Play a game with `snapshot` and film it.

        Args:
            should_stop: asked after every decision and every picture; what was made so far is then thrown away.
        """
        self._last = number = self._number(snapshot.updates)

        def check(frames: int = 0) -> None:
            if should_stop():
                raise _Interrupted

        path = self._folder / f"training-{snapshot.env_steps:012d}.mp4"
        try:
            path.parent.mkdir(exist_ok=True)
            check_video_path(path)
            player = Player(
                self._config,
                self._make_env,
                num_episodes=1,
                greedy=False,
                seed=FIRST_SEED + number,
                num_envs=1,
                record=True,
            )
            with contextlib.closing(player):
                player.start(snapshot)
                while player.step() is None:
                    check()
            assert player.recording is not None
            game = player.recording.games[0]
            record(self._config.env, player.recording, game, path, on_progress=check)
        except _Interrupted:
            return Film(path, snapshot.env_steps, math.nan, "not made, for the run ended first")
        except (UserError, OSError) as error:
            return Film(path, snapshot.env_steps, math.nan, str(error))
        return Film(path, snapshot.env_steps, game.score)

    def _number(self, updates: int) -> int:
        every = self._config.runtime.video_updates
        return 0 if every is None else updates // every


class _Interrupted(Exception):  # noqa: N818 - no error
    """Ends a film before its game has ended."""


def check_films(config: TrainConfig) -> None:
    """Raise UserError where an environment cannot be filmed here."""
    check_video_extra()
    try:
        make_camera(config.env, num_envs=1, seed=0).close()
    except UserError as error:
        raise UserError(f"video_updates: {error}") from None
