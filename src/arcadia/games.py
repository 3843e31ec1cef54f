"""Whole games with one snapshot, spread over processes."""

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from arcadia.child import Context, Death
from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory, spec_of
from arcadia.errors import DivergedError, ProcessError, UserError, summary_of
from arcadia.parameters import Snapshot, share
from arcadia.player import Player, Recording
from arcadia.processes import Children, check_importable
from arcadia.threads import one_torch_thread
from arcadia.types import Episode

GAMES_PER_PROCESS = 32  # at once, at most: the more, the faster is each
MIN_GAMES_PER_PROCESS = 2  # four games end sooner in two processes than in one
PROGRESS_SECONDS = 0.2
HEARTBEAT_SECONDS = 60.0


class Games(NamedTuple):
    """Finished games."""

    episodes: tuple[Episode, ...]
    recordings: list[Recording]  # one of each player; none where nothing was recorded
    seconds: float  # from the first decision to the last


class Part(NamedTuple):
    """What one player plays."""

    stream: int  # selects its games
    num_episodes: int
    num_envs: int
    greedy: bool
    seed: int
    record: bool


Progress = Callable[[int], None]  # told now and then how many games are over


def play_games(
    config: TrainConfig,
    make_env: EnvFactory,
    snapshot: Snapshot,
    *,
    episodes: int,
    num_envs: int,
    greedy: bool,
    seed: int,
    record: bool,
    on_progress: Progress,
) -> Games:
    """Play whole games, at most `num_envs` at once, every environment the same number of rounds, or one less.

    Emulators are spread over processes, a number that does not depend on the machine, for the seed's games depend on
    it; others, which may not like to be anywhere else than where they were made, play here.

    Raises:
        UserError: the snapshot does not fit the model, a game does not end, or no process could import `make_env`.
        DivergedError: the policy is not finite.
        ProcessError: the environment raised something, or a process died.
    """
    rounds = -(-episodes // num_envs)
    slots = -(-episodes // rounds)  # games at once
    num_players = 1
    with environment_failures():
        if spec_of(config.env, make_env).is_emulated:
            num_players = max(1, min(max(2, -(-num_envs // GAMES_PER_PROCESS)), slots // MIN_GAMES_PER_PROCESS))
    ends = [slots * index // num_players for index in range(num_players + 1)]
    parts = [
        Part(
            stream=index,
            num_episodes=episodes * end // slots - episodes * first // slots,
            num_envs=end - first,
            greedy=greedy,
            seed=seed,
            record=record,
        )
        for index, (first, end) in enumerate(itertools.pairwise(ends))
    ]
    if num_players == 1:
        with environment_failures(), one_torch_thread():
            return _play(config, make_env, snapshot, parts[0], on_progress)
    games = _play_in_processes(config, make_env, snapshot, parts, on_progress)
    return Games(
        tuple(episode for part in games for episode in part.episodes),
        [recording for part in games for recording in part.recordings],
        max(part.seconds for part in games),
    )


@contextlib.contextmanager
def environment_failures() -> Iterator[None]:
    """Turn what an environment raises into a ProcessError."""
    try:
        yield
    except (UserError, DivergedError):
        raise
    except Exception as error:
        raise ProcessError(f"the environment failed: {summary_of(error)}\n{traceback.format_exc()}") from error


def _play_in_processes(
    config: TrainConfig, make_env: EnvFactory, snapshot: Snapshot, parts: list[Part], on_progress: Progress
) -> list[Games]:
    check_importable(make_env=make_env)
    stop, heartbeats = share(torch.zeros(1, dtype=torch.bool)), share(torch.zeros(len(parts), dtype=torch.int64))
    children = Children(stop, heartbeats, HEARTBEAT_SECONDS, is_over=lambda: False)
    # What a process is started with goes through a pipe that a snapshot would fill.
    shared = share(torch.from_numpy(snapshot.parameters).clone()), share(torch.from_numpy(snapshot.statistics).clone())
    finished, games = [0] * len(parts), [Games((), [], 0.0)] * len(parts)
    playing = {f"player-{part.stream}": part for part in parts}
    try:
        for name, part in playing.items():
            children.start(part.stream, name, _play_in_child, (config, make_env, *shared, snapshot[2:], part))
        while playing:
            for message in children.receive(PROGRESS_SECONDS):
                match message:
                    case Death() if message.name in playing:
                        raise ProcessError(f"{message.name} {message.why}\n{message.traceback}".rstrip())
                    case UserError() | DivergedError():
                        raise message
                    case int(index), int(count):
                        finished[index] = count
                    case int(index), Games():
                        games[index] = message[1]
                        del playing[f"player-{index}"]
            on_progress(sum(finished))
    finally:
        for _ in children.end():
            pass
    return games


def _play_in_child(
    context: Context,
    config: TrainConfig,
    make_env: EnvFactory,
    parameters: Tensor,
    statistics: Tensor,
    counters: tuple[int, int, int],
    part: Part,
) -> None:
    told = 0.0

    def on_progress(count: int) -> None:
        nonlocal told
        context.beat()
        if context.should_stop():
            raise _Interrupted
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            context.send((part.stream, count))

    if context.should_stop():
        return
    try:
        games = _play(config, make_env, Snapshot(parameters.numpy(), statistics.numpy(), *counters), part, on_progress)
    except _Interrupted:
        return
    except (UserError, DivergedError) as error:
        context.send(error)
        return
    context.send((part.stream, len(games.episodes)))
    context.send((part.stream, games))


class _Interrupted(Exception):  # noqa: N818 - no error
    """Ends games of which nobody wants to know any more."""


def _play(config: TrainConfig, make_env: EnvFactory, snapshot: Snapshot, part: Part, on_progress: Progress) -> Games:
    player = Player(
        config,
        make_env,
        num_episodes=part.num_episodes,
        greedy=part.greedy,
        seed=part.seed,
        num_envs=part.num_envs,
        record=part.record,
        stream=part.stream,
    )
    with contextlib.closing(player):
        player.start(snapshot)
        started, evaluation = time.perf_counter(), None
        while evaluation is None:
            evaluation = player.step()
            on_progress(player.num_finished)
        seconds = time.perf_counter() - started
        return Games(evaluation.episodes, [player.recording] if player.recording is not None else [], seconds)
