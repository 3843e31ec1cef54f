"""What published systems ask of Atari: action subsets, forced actions, stacks after lost lives, colours, limits."""

from typing import Any

import numpy as np
import pytest

from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env
from arcadia.envs.atari import Atari
from arcadia.envs.emulator import Emulator
from arcadia.envs.names import AtariName
from arcadia.errors import UserError
from arcadia.types import Timestep

B = 2
NOOP, FIRE, RIGHT = 0, 1, 2
RESET = -1
BREAKOUT = ["breakout", "Breakout-v4"]  # a fixed frame skip and a random one


class Log:
    """Watches what an Atari object sends to its emulators, RESET where a game starts, and what they say of lives."""

    def __init__(self, env: Atari) -> None:
        self.actions: list[np.ndarray] = []  # [B] of every step
        self.lives: list[np.ndarray] = []  # [B] of every reset and step
        actions = np.zeros(env.num_envs, np.int64)
        for b, emulator in enumerate(env._emulators):
            self._watch(emulator, actions[b : b + 1])
        step, reset = env.step, env.reset

        def watched_step(action: np.ndarray) -> Timestep:
            timestep = step(action)
            self.actions.append(actions.copy())
            self._note_lives(env)
            return timestep

        def watched_reset() -> Any:
            observation = reset()
            self._note_lives(env)
            return observation

        vars(env).update(step=watched_step, reset=watched_reset)

    def _note_lives(self, env: Atari) -> None:
        self.lives.append(np.array([emulator.lives for emulator in env._emulators]))

    def _watch(self, emulator: Emulator, last_action: np.ndarray) -> None:
        step, reset = emulator.step, emulator.reset

        def watched_step(action: int, *pictures: np.ndarray) -> float:
            last_action[:] = action
            return step(action, *pictures)

        def watched_reset(picture: np.ndarray) -> None:
            last_action[:] = RESET
            reset(picture)

        vars(emulator).update(step=watched_step, reset=watched_reset)


def _make(name: str, **settings: Any) -> tuple[Atari, Log]:
    env = make_vector_env(EnvConfig(env=name, **settings), num_envs=B, seed=3)
    assert isinstance(env, Atari)
    return env, Log(env)


def _play(env: Atari, num_rows: int, action: int) -> tuple[np.ndarray, list[Timestep]]:
    first = env.reset()
    return first, [env.step(np.full(env.num_envs, action)) for _ in range(num_rows)]


@pytest.mark.parametrize("name", BREAKOUT)
def test_forced_actions_start_every_game_and_every_life(name: str) -> None:
    env, log = _make(name, noop_max=1, fire_on_reset=False, forced_actions=(FIRE, RIGHT))
    _, steps = _play(env, 260, NOOP)
    actions, lives = np.stack(log.actions), np.stack(log.lives)
    forced = np.stack([step.forced for step in steps])
    reset_next = np.stack([step.reset_next for step in steps])
    for b in range(B):
        expected: list[int] = [FIRE, RIGHT]  # of the rows to come
        restarts = 0
        for row in range(len(steps)):
            if row and reset_next[row - 1, b]:
                assert not forced[row, b]
                assert actions[row, b] == RESET
                expected, restarts = [FIRE, RIGHT], restarts + 1
                continue
            if expected:
                assert forced[row, b]
                assert actions[row, b] == expected.pop(0)
            else:
                assert not forced[row, b]
                assert actions[row, b] == NOOP
            if lives[row + 1, b] < lives[row, b] and not reset_next[row, b]:
                expected = [FIRE, RIGHT]
        assert restarts >= 1, "a ball was served after every lost life, so the games end"


def test_first_forced_action_is_repeated_at_random_at_a_games_start_alone() -> None:
    env, _ = _make("breakout", noop_max=1, fire_on_reset=False, forced_actions=(FIRE,), forced_start_max=30)
    runs = []
    for _ in range(12):
        _, steps = _play(env, 40, NOOP)
        forced = np.stack([step.forced for step in steps])
        terminated = np.stack([step.terminated for step in steps])
        for b in range(B):
            start = int(np.argmin(forced[:, b]))
            runs.append(start)
            after_lost_life = np.flatnonzero(terminated[:-1, b] & (np.arange(39) >= start)) + 1
            assert (np.flatnonzero(forced[start:, b]) + start).tolist() == after_lost_life.tolist()
    assert 1 <= min(runs) <= 5
    assert 25 <= max(runs) <= 30


def test_what_is_forced_on_a_game_does_not_depend_on_whether_others_go_on() -> None:
    settings = {"noop_max": 1, "forced_actions": (FIRE,), "forced_start_max": 30, "max_episode_steps": 10}
    runs = []
    for is_dismissed in (True, False):
        env, _ = _make("breakout", **settings)
        env.reset()
        if is_dismissed:
            env.dismiss(0)
        forced = [env.step(np.full(B, NOOP)).forced for _ in range(100)]
        runs.append([row[1] for row in forced if row is not None])
    assert runs[0] == runs[1]
    assert 50 < sum(runs[0]) < 100


def test_games_without_fire_are_not_forced() -> None:
    env, _ = _make("ms_pacman", forced_actions=(FIRE,), noop_max=1)
    _, steps = _play(env, 5, NOOP)
    assert not any(step.forced.any() for step in steps)


def test_forced_action_that_the_game_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"forced_actions \(1, 9\) must be below 4"):
        _make("breakout", forced_actions=(1, 9))


@pytest.mark.parametrize("name", BREAKOUT)
def test_without_noop_action_a_is_the_games_action_a_plus_1(name: str) -> None:
    env, log = _make(name, drop_noop=True)
    assert env.spec.num_actions == 3
    env.reset()
    for action in range(3):
        env.step(np.array([action, 2 - action]))
    assert np.stack(log.actions).tolist() == [[1, 3], [2, 2], [3, 1]]
    with pytest.raises(ValueError, match="3"):
        env.step(np.array([3, 0]))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", BREAKOUT)
def test_newest_frame_fills_the_stack_after_a_lost_life(name: str, terminal: bool) -> None:
    env, log = _make(name, refill_on_life_loss=True, forced_actions=(FIRE,), terminal_on_life_loss=terminal)
    first, steps = _play(env, 200, RIGHT)
    assert all((first[:, 0] == first[:, i]).all() for i in range(4)), "a game's first frame too"
    lives = np.stack(log.lives)
    before, refills = first, 0
    reset_last = np.zeros(B, np.bool_)
    for row, step in enumerate(steps):
        for b in range(B):
            stack = step.observation[b]
            lost = lives[row + 1, b] < lives[row, b] and not step.reset_next[b]
            assert step.shifted[b] == (not (reset_last[b] or lost))
            if reset_last[b] or lost:
                assert (stack == stack[-1]).all()
                refills += lost
                assert step.terminated[b] == (lost and terminal)
            else:
                assert (stack[:-1] == before[b][1:]).all()
        before, reset_last = step.observation, step.reset_next
    assert refills >= 4


@pytest.mark.parametrize("name", BREAKOUT)
def test_colour_frames_are_stacked_oldest_first(name: str) -> None:
    env, _ = _make(name, color=True, frame_stack=2, frame_size=(50, 60))
    assert env.spec.observation_shape == (6, 50, 60)
    assert env.spec.frame_channels == 3
    first, steps = _play(env, 20, RIGHT)
    assert (first[:, :3] == first[:, 3:]).all()
    before = first
    for step in steps:
        assert step.observation.shape == (B, 6, 50, 60)
        assert (step.observation[:, :3] == before[:, 3:]).all()
        before = step.observation
    red, _green, blue = before[0, 3:].reshape(3, -1).astype(int).mean(1)
    assert red != blue


@pytest.mark.parametrize("name", ["PongNoFrameskip-v4", "Pong-v0"])
def test_time_limit_of_the_config_replaces_that_of_the_name(name: str) -> None:
    env, _ = _make(name, max_episode_steps=7, noop_max=1, fire_on_reset=False)
    _, steps = _play(env, 24, NOOP)
    truncated = np.stack([step.truncated for step in steps])
    assert np.flatnonzero(truncated[:, 0]).tolist() == [6, 14, 22]  # 7 decisions, then a row for the reset


def test_life_that_is_lost_while_a_forced_action_waits_starts_them_anew() -> None:
    name = AtariName("breakout", 4, 0.0, None, 108_000)
    config = EnvConfig(noop_max=1, fire_on_reset=False, forced_actions=(FIRE, *[RIGHT] * 60))
    env = Atari(name, config, num_envs=1, seed=0)
    log = Log(env)
    _play(env, 150, NOOP)
    actions, lives = np.concatenate(log.actions), np.concatenate(log.lives)
    lost = np.flatnonzero(lives[1:] < lives[:-1])
    assert len(lost) >= 2
    assert (actions[lost[:-1] + 1] == FIRE).all(), "each new life is served at once"
