"""What the scores of whole games say: evaluations in training and of a finished run."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from arcadia.checkpoint import best_checkpoint, load_checkpoint, load_newest
from arcadia.config import EVALUATION_SEED, TrainConfig
from arcadia.envs import EnvFactory, game_of, make_vector_env, repeats_itself
from arcadia.errors import DivergedError, UserError
from arcadia.files import write_atomically
from arcadia.games import environment_failures, play_games
from arcadia.metrics import is_finite
from arcadia.parameters import Snapshot
from arcadia.player import Evaluation, Game, Player, Recording
from arcadia.published import human_normalized
from arcadia.run_directory import load_config
from arcadia.types import Episode
from arcadia.validation import with_settings

GREEDY_TURNS = 3  # while both modes play, one decision in greedy games for so many in sampled ones
NUM_RESAMPLES = 10_000
PATIENCE = 4_500  # decisions without a reward in training's evaluations: five minutes of Atari


def summarize(episodes: Sequence[Episode], env: str, *, greedy: bool) -> dict[str, Any]:
    """Describe the scores of games on `env`.

    The 95% interval of the mean is the percentile bootstrap with 10,000 resamples (Efron 1979), from a fixed seed. It
    is None for a single game and where the most probable actions always lead to the same few games, which no interval
    can speak for; how many differ in score or length is `distinct_episodes`.
    """
    scores = np.array([episode.episode_return for episode in episodes])
    interval = None
    if len(scores) > 1 and not (greedy and repeats_itself(env)):
        rng, rows = np.random.default_rng(0), 10**6 // len(scores) + 1  # resamples at a time, for memory's sake
        sizes = [rows] * (NUM_RESAMPLES // rows) + [NUM_RESAMPLES % rows]
        means = np.concatenate([rng.choice(scores, (size, len(scores))).mean(1) for size in sizes])
        interval = np.percentile(means, [2.5, 97.5]).tolist()
    return {
        "episodes": len(scores),
        "distinct_episodes": len({(episode.episode_return, episode.length) for episode in episodes}),
        "mean": float(scores.mean()),
        "std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "median": float(np.median(scores)),
        "min": float(scores.min()),
        "max": float(scores.max()),
        "ci95": interval,
        "mean_length": float(np.mean([episode.length for episode in episodes])),
    }


class PeriodicEvaluator:
    """Evaluates a changing policy, sampled and greedy games side by side.

    Each mode plays on with one snapshot until its games are over and then takes the next, so that a greedy policy
    caught in an endless rally does not hold up the sampled games. A game that has brought no reward for PATIENCE
    decisions, such as Breakout with a ball that the most probable action never serves, counts as over.

    Args:
        snapshot: returns the current parameters.
        min_seconds: between two evaluations of one mode.
        restart: selects other games than those of an evaluator that has ended.
    """

    def __init__(
        self,
        config: TrainConfig,
        make_env: EnvFactory,
        snapshot: Callable[[], Snapshot],
        min_seconds: float = 0.0,
        restart: int = 0,
    ) -> None:
        self._take_snapshot, self._min_seconds = snapshot, min_seconds
        self._turn = 0
        self._modes = [
            _Mode(_player(config, make_env, greedy=greedy, restart=restart), GREEDY_TURNS if greedy else 1)
            for greedy in (False, True)
        ]

    def step(self) -> list[Evaluation]:
        """Play one decision in the modes that have something to play and whose turn it is; return what this completed.

        The sampled games, of which the best are kept, have more turns. An evaluation of which a game does not end holds
        no games.
        """
        finished = []
        self._turn += 1
        for mode in self._modes:
            if not mode.is_playing and time.monotonic() >= mode.next_start:
                snapshot = self._take_snapshot()
                if snapshot.updates != mode.updates:
                    mode.player.start(snapshot)
                    mode.is_playing, mode.updates = True, snapshot.updates
                    mode.next_start = time.monotonic() + self._min_seconds
            is_alone = not any(other.is_playing for other in self._modes if other is not mode)
            if mode.is_playing and (is_alone or self._turn % mode.turns == 0):
                try:
                    evaluation = mode.player.step()
                except UserError:  # a game does not end
                    evaluation = mode.player.without_games()
                if evaluation is not None:
                    mode.is_playing = False
                    finished.append(evaluation)
        return finished

    @property
    def is_idle(self) -> bool:
        """True while there is nothing new to evaluate."""
        return not any(mode.is_playing for mode in self._modes)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> list[Evaluation]:
        """Play one whole evaluation in each mode, unless the parameters are those of the last one."""
        finished = self.step()
        while not self.is_idle and not should_stop():
            finished += self.step()
        return finished


def evaluate_snapshot(
    config: TrainConfig,
    make_env: EnvFactory,
    snapshot: Snapshot,
    *,
    restart: int,
    should_stop: Callable[[], bool],
) -> Evaluation | None:
    """Play the sampled games of one of training's evaluations; return None if told to stop.

    Raises:
        UserError: a game does not end.
        DivergedError: the policy is not finite.
        ProcessError: the environment raised something.
    """
    with environment_failures():
        player = _player(config, make_env, greedy=False, restart=restart)
        with contextlib.closing(player):
            player.start(snapshot)
            evaluation = None
            while evaluation is None and not should_stop():
                evaluation = player.step()
            return evaluation


def _player(config: TrainConfig, make_env: EnvFactory, *, greedy: bool, restart: int) -> Player:
    """Build a player of training's evaluations, one game an environment."""
    num_episodes = config.runtime.eval_episodes
    return Player(
        config,
        make_env,
        num_episodes=num_episodes,
        greedy=greedy,
        seed=config.runtime.seed,
        stream=restart,
        num_envs=num_episodes,
        patience=PATIENCE,
    )


@dataclass(slots=True)
class _Mode:
    """One mode of a PeriodicEvaluator."""

    player: Player
    turns: int  # it plays in one of so many
    is_playing: bool = False
    updates: int = 0  # of the last snapshot; untrained parameters are not evaluated
    next_start: float = 0.0  # monotonic seconds


def load_run_snapshot(run: Path, *, best: bool) -> tuple[Path, Snapshot]:
    """Read a run's newest or best parameters; return their file too.

    Raises:
        UserError: there are none yet, or the file is unusable.
    """
    if best:
        path = best_checkpoint(run)
        found = (path, load_checkpoint(path)) if path.exists() else None
    else:
        found = load_newest(run)
    if found is None:
        if best:
            raise UserError(f"{run} has no evaluation that was completed: take its newest parameters, without best")
        raise UserError(f"{run} has no checkpoint yet: train it longer")
    path, checkpoint = found
    env_steps, frames, updates, _ = checkpoint.counters.sum(0).tolist()
    parameters, statistics = checkpoint.parameters.numpy(), checkpoint.statistics.sum(0).numpy()
    return path, Snapshot(parameters, statistics, env_steps, frames, updates)


def _is_same_game(env: str, other: str) -> bool:
    """Return whether two ids are of one Atari game, or versions of one other environment."""
    game, other_game = game_of(env), game_of(other)
    if game is None and other_game is None:
        return env.rpartition("-v")[0] == other.rpartition("-v")[0] != ""
    return game == other_game


class Evaluated(NamedTuple):
    """Games played with a run's parameters."""

    config: TrainConfig
    result: dict[str, Any]  # summary and scores, with what was played
    games: list[tuple[Recording, Game]]  # in the order of the scores; none where nothing was recorded
    steps_per_s: float  # decisions, while the games were played


def evaluate_run(
    run: Path,
    *,
    episodes: int,
    greedy: bool = False,
    best: bool = False,
    num_envs: int = 64,
    seed: int = EVALUATION_SEED,
    env: str | None = None,
    noop_max: int | None = None,
    record: bool = False,
    on_progress: Callable[[int], None] = lambda finished: None,
    make_env: EnvFactory = make_vector_env,
) -> Evaluated:
    """Play whole games with a run's newest or best parameters.

    Args:
        num_envs: at most so many games at once, of Atari games in several processes.
        env: another id of the run's game, for its protocol, such as sticky actions.
        noop_max: a game starts with fewer than this many random no-ops.
        record: keep the recording from which videos are made.

    Raises:
        UserError: the run or its checkpoint is unusable, an argument is out of range, or a game does not end.
        DivergedError: the policy or a score is not finite.
        ProcessError: the environment raised something, or a process died.
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be an integer >= 1, got {value!r}")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be an integer >= 0, got {seed!r}")
    config = load_config(run)
    protocol = {name: value for name, value in (("env", env), ("noop_max", noop_max)) if value is not None}
    if env is not None and env != config.env.env and not _is_same_game(env, config.env.env):
        raise UserError(f"{run} has learned {config.env.env}, not {env}: give another id of the same game")
    config = with_settings(config, protocol)
    path, snapshot = load_run_snapshot(run, best=best)
    games = play_games(
        config,
        make_env,
        snapshot,
        episodes=episodes,
        num_envs=num_envs,
        greedy=greedy,
        seed=seed,
        record=record,
        on_progress=on_progress,
    )
    if not all(map(is_finite, games.episodes)):
        raise DivergedError(f"a score on {config.env.env} is NaN or infinite: look for the reason in the environment")
    mode = "greedy" if greedy else "sampled"
    result = {
        "env": config.env.env,
        "mode": mode,
        "checkpoint": path.name if not best else f"best/{path.name}",
        "env_steps": snapshot.env_steps,
        "frames": snapshot.frames,
        "seed": seed,
        "num_envs": num_envs,
        "protocol": "-".join(f"{name}-{value}".replace("/", "-") for name, value in protocol.items()) or None,
        **(summary := summarize(games.episodes, config.env.env, greedy=greedy)),
        "human_normalized": human_normalized(game_of(config.env.env), summary["mean"]),
        "scores": [episode.episode_return for episode in games.episodes],
    }
    recorded = [(recording, game) for recording in games.recordings for game in recording.games]
    return Evaluated(config, result, recorded, sum(episode.length for episode in games.episodes) / games.seconds)


def save_evaluation(run: Path, result: dict[str, Any]) -> Path:
    """Write the result of `evaluate_run` to RUN/evaluations/; return the file.

    Raises:
        UserError: it cannot be written.
    """
    path = run / "evaluations" / f"{evaluation_name(result, str(result['episodes']))}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, [(json.dumps(result, indent=2) + "\n").encode()])
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): copy the run to where it can") from None
    return path


def evaluation_name(result: dict[str, Any], what: str) -> str:
    """Return the name, without its suffix, of a file that holds `what` of an evaluation."""
    which = "best" if result["checkpoint"].startswith("best/") else "newest"
    protocol = f"-{result['protocol']}" if result["protocol"] else ""
    seed = "" if result["seed"] == EVALUATION_SEED else f"-seed-{result['seed']}"
    return f"{result['mode']}-{which}-{result['env_steps']:012d}{protocol}-{what}{seed}"
