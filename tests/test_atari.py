"""Atari on the real emulator: episode borders, scores, frames, starts, limits and determinism.

An emulator takes a tenth of a second to start, so most tests read one recording of each kind of frame skip.
"""

import copy
import functools
from typing import Any, NamedTuple

import numpy as np
import pytest

from arcadia.config import EnvConfig
from arcadia.envs import EnvSpec, VectorEnv, make_vector_env
from arcadia.envs.atari import Atari
from arcadia.envs.names import AtariName
from arcadia.types import Timestep

B = 3
NOOP, FIRE = 0, 1
BREAKOUT = ["breakout", "Breakout-v4"]  # a fixed frame skip and a random one
Info = dict[str, np.ndarray]


def _make(name: str, *, num_envs: int = B, seed: int = 3, **settings: Any) -> VectorEnv:
    return make_vector_env(EnvConfig(env=name, **settings), num_envs=num_envs, seed=seed)


def _pong(
    skip: str,
    *,
    num_envs: int = B,
    sticky: float = 0.0,
    max_decisions: int | None = None,
    max_frames: int = 100_000,
    **settings: Any,
) -> Any:
    """Build Pong with limits that no id has."""
    frame_skip = 4 if skip == "fixed" else (4, 5)  # both are always 4
    name, config = AtariName("pong", frame_skip, sticky, max_decisions, max_frames), EnvConfig(**settings)
    return Atari(name, config, num_envs=num_envs, seed=3)


class Recording(NamedTuple):
    """Some rows of play."""

    spec: EnvSpec
    first: np.ndarray  # [B, ...] the observations of the reset
    steps: list[Timestep]
    copies: list[Timestep]  # of the steps, made when they were taken
    infos: list[Info]  # the emulator's own, of the reset and of every step

    def column(self, field: str) -> np.ndarray:
        """Return one field of all rows [N, B]."""
        return np.stack([getattr(step, field) for step in self.copies])

    def info(self, name: str) -> np.ndarray:
        """Return one of the emulator's own numbers, of the reset and all rows [N+1, B]."""
        return np.stack([info[name] for info in self.infos]).astype(np.int64)

    def resetting(self) -> np.ndarray:
        """Return which rows must reset: those after a row with reset_next [N, B]."""
        reset_next = self.column("reset_next")
        return np.concatenate([np.zeros_like(reset_next[:1]), reset_next[:-1]])


def _record(env: Any, num_rows: int, action: int | None = None) -> Recording:
    """Reset and play one action all the time, or random ones."""

    def info() -> Info:
        emulators = [emulator._ale for emulator in env._emulators]
        return {
            "lives": np.array([emulator.lives() for emulator in emulators]),
            "frame_number": np.array([emulator.getFrameNumber() for emulator in emulators]),
            "episode_frame_number": np.array([emulator.getEpisodeFrameNumber() for emulator in emulators]),
        }

    first, steps, copies = env.reset(), [], []
    infos = [info()]
    actions = np.random.default_rng(0).integers(env.spec.num_actions, size=(num_rows, env.num_envs))
    for row in actions if action is None else np.full_like(actions, action):
        steps.append(env.step(row))
        copies.append(copy.deepcopy(steps[-1]))
        infos.append(info())
    return Recording(env.spec, first, steps, copies, infos)


@functools.cache
def _breakout(name: str) -> Recording:
    """Record games in which the paddle stands still: five lives last about 130 decisions."""
    return _record(_make(name, frame_stack=3), 200, FIRE)


def _assert_restarts_follow_reset_next(recording: Recording) -> None:
    """Compare with the emulator's episode_frame_number, which falls where a game starts, and only there."""
    frame, resetting = recording.info("episode_frame_number"), recording.resetting()
    assert ((frame[1:] <= frame[:-1]) == resetting).all()
    assert (resetting.sum(0) >= 1).all()
    for field in ("reward", "terminated", "truncated", "reset_next"):
        assert not recording.column(field)[resetting].any()


@pytest.mark.parametrize("name", BREAKOUT)
def test_action_outside_the_action_space_is_refused_and_the_game_goes_on(name: str) -> None:
    env = _make(name, num_envs=1)
    env.reset()
    for bad in (env.spec.num_actions, -1, 10**9):
        with pytest.raises(ValueError, match=str(bad)):
            env.step(np.array([bad]))
    for shape in ((2,), (1, 1), ()):
        with pytest.raises(ValueError, match="shape"):
            env.step(np.zeros(shape, np.int64))
    env.step(np.array([env.spec.num_actions - 1]))


@pytest.mark.parametrize("name", BREAKOUT)
def test_records_have_the_promised_shapes_and_dtypes(name: str) -> None:
    recording = _breakout(name)
    assert recording.spec == EnvSpec((3, 84, 84), np.dtype(np.uint8), 4, is_emulated=True)
    assert recording.spec.is_image
    for observation in (recording.first, recording.steps[0].observation):
        assert (observation.shape, observation.dtype) == ((B, 3, 84, 84), np.uint8)
    assert recording.steps[0].cut is None
    fields = [field for field in Timestep._fields[1:] if field != "cut"]
    assert {field: getattr(recording.steps[0], field).dtype for field in fields} == {
        "reward": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "reset_next": np.bool_,
        "frames": np.int64,
        "forced": np.bool_,
        "shifted": np.bool_,
    }
    assert all(getattr(recording.steps[0], field).shape == (B,) for field in fields)


@pytest.mark.parametrize("name", BREAKOUT)
def test_lost_life_ends_the_return_but_never_the_game(name: str) -> None:
    recording = _breakout(name)
    lives, resetting = recording.info("lives"), recording.resetting()
    lost = (lives[1:] < lives[:-1]) & ~resetting
    terminated, reset_next = recording.column("terminated"), recording.column("reset_next")
    assert (terminated == lost).all()
    assert (reset_next == (lost & (lives[1:] == 0))).all()
    assert not recording.column("truncated").any()
    assert (recording.column("frames")[~resetting] <= 4).all()  # the row after a lost life is an ordinary one
    assert ((terminated & ~reset_next).sum(0) >= 4).all()
    assert (reset_next.sum(0) >= 1).all()


@pytest.mark.parametrize("name", BREAKOUT)
def test_lost_life_is_not_seen_where_the_config_says_so(name: str) -> None:
    recording = _record(_make(name, num_envs=1, terminal_on_life_loss=False), 200, FIRE)
    assert (recording.column("terminated") == recording.column("reset_next")).all()
    assert recording.column("terminated").sum() == 1  # one whole game
    _assert_restarts_follow_reset_next(recording)


@pytest.mark.parametrize("terminal_on_life_loss", [True, False])
def test_game_over_with_lives_left_is_a_game_over(terminal_on_life_loss: bool) -> None:
    # In Adventure, which always reports one life, running down and right meets a dragon in the 86th decision.
    env = _make("adventure", num_envs=1, noop_max=1, terminal_on_life_loss=terminal_on_life_loss)
    recording = _record(env, 100, action=8)
    assert (recording.info("lives") == 1).all()
    assert (recording.column("terminated") == recording.column("reset_next")).all()
    _assert_restarts_follow_reset_next(recording)


@pytest.mark.parametrize("name", BREAKOUT)
def test_games_restart_exactly_on_the_rows_after_reset_next(name: str) -> None:
    _assert_restarts_follow_reset_next(_breakout(name))


@pytest.mark.parametrize("name", BREAKOUT)
def test_frames_equal_the_emulators_counter(name: str) -> None:
    recording = _breakout(name)
    counter = recording.info("frame_number")
    assert (recording.column("frames").cumsum(0) == counter[1:] - counter[0]).all()
    assert recording.resetting().any(0).all()


@pytest.mark.parametrize("name", BREAKOUT)
def test_stack_moves_by_one_frame_with_the_newest_last(name: str) -> None:
    recording = _breakout(name)
    before, moved = recording.first, 0
    for step, resetting in zip(recording.copies, recording.resetting(), strict=True):
        after = step.observation
        for b in range(B):
            if resetting[b]:
                old = {frame.tobytes() for frame in before[b] if frame.any()}
                assert not old & {frame.tobytes() for frame in after[b]}  # nothing of the last game
            else:
                assert (after[b, :-1] == before[b, 1:]).all()
                moved += (after[b, -1] != before[b, -1]).any()
        before = after
    assert moved > 100


@pytest.mark.parametrize("name", BREAKOUT)
def test_records_are_not_overwritten_by_later_steps(name: str) -> None:
    recording = _breakout(name)
    for step, copied in zip(recording.steps, recording.copies, strict=True):
        assert all(map(np.array_equal, step, copied))


@pytest.mark.parametrize("name", BREAKOUT)
def test_fire_starts_the_first_ball_and_none_after_it(name: str) -> None:
    """Without FIRE no ball is ever in play; FIRE at the game's start serves one ball, a lost life none."""
    for fire_on_reset, balls in ((True, 1), (False, 0)):
        recording = _record(_make(name, num_envs=1, fire_on_reset=fire_on_reset, noop_max=1), 120, NOOP)
        assert recording.column("terminated").sum() == balls


@pytest.mark.parametrize("name", ["backgammon", "VideoCheckers-v4"])
def test_games_that_offer_no_no_op_start_with_some_too(name: str) -> None:
    env: Any = _make(name, num_envs=1, fire_on_reset=False)
    assert "NOOP" not in env.action_names
    recordings = [_record(env, 1) for _ in range(4)]
    assert len({int(recording.infos[0]["episode_frame_number"][0]) for recording in recordings}) >= 2


@pytest.mark.parametrize("name", ["space_invaders", "SpaceInvaders-v4"])
def test_rewards_are_raw(name: str) -> None:
    rewards = _record(_make(name, num_envs=1, clip_rewards=True), 200).column("reward")
    assert set(np.unique(rewards)) <= {0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 200.0}
    assert rewards.max() > 1


@pytest.mark.parametrize("skip", ["fixed", "random"])
def test_game_starts_differ_and_stay_within_the_no_ops(skip: str) -> None:
    noop_max = 5
    limit = {"max_frames": 16} if skip == "fixed" else {"max_decisions": 4}
    recording = _record(_pong(skip, num_envs=2, noop_max=noop_max, **limit), 100, NOOP)
    resetting = recording.resetting()
    starts = recording.column("frames")[resetting]  # FIRE, then fewer than noop_max no-ops
    assert len(starts) >= 30
    assert len(np.unique(starts)) >= 3
    assert starts.min() >= 1
    # The emulator starts with a frame. FIRE and each no-op take a frame or, where the skip is random, a decision.
    assert starts.max() <= (noop_max if skip == "fixed" else 1 + 4 * noop_max)
    assert (recording.info("episode_frame_number")[1:][resetting] == starts).all()


@pytest.mark.parametrize("name", BREAKOUT)
def test_later_resets_start_other_games(name: str) -> None:
    env = _make(name, num_envs=2)
    starts = set()
    for _ in range(4):
        recording = _record(env, 1, NOOP)
        starts |= set(recording.infos[0]["episode_frame_number"].tolist())
        assert (recording.column("frames") <= 4).all()
    assert len(starts) >= 4


@pytest.mark.parametrize(("skip", "limit"), [("fixed", {"max_frames": 4}), ("random", {"max_decisions": 1})])
def test_reset_while_a_reset_is_due_starts_counting_anew(skip: str, limit: dict[str, int]) -> None:
    env = _pong(skip, num_envs=2, **limit)
    for _ in range(2):
        recording = _record(env, 1, NOOP)
        assert recording.column("reset_next").all()
        assert (recording.column("frames") == 4).all()


def test_life_that_is_lost_in_the_no_ops_terminates_nothing() -> None:
    name = AtariName("breakout", (4, 5), 0.0, 3, 108_000)
    recording = _record(Atari(name, EnvConfig(noop_max=80), num_envs=1, seed=3), 40, NOOP)
    lives, resetting = recording.info("lives"), recording.resetting()
    assert ((lives[1:] < lives[:-1]) & resetting).any()
    assert not recording.column("terminated")[resetting].any()


@pytest.mark.parametrize("skip", ["fixed", "random"])
def test_limit_in_frames_truncates(skip: str) -> None:
    limit = 60
    recording = _record(_pong(skip, num_envs=2, max_frames=limit), 60, NOOP)
    truncated = recording.column("truncated")
    assert (recording.column("reset_next") == truncated).all()
    assert not recording.column("terminated").any()
    assert (truncated.sum(0) >= 2).all()
    frame = recording.info("episode_frame_number")
    assert (frame[1:][truncated] >= limit).all()
    assert frame.max() < limit + 30 * (1 if skip == "fixed" else 4) + 4  # FIRE and no-ops do not count
    _assert_restarts_follow_reset_next(recording)


def test_limit_in_frames_is_exact_without_no_ops() -> None:
    env = _pong("fixed", num_envs=1, max_frames=60, noop_max=1, fire_on_reset=False)
    rows = np.flatnonzero(_record(env, 48, NOOP).column("truncated"))
    assert rows.tolist() == [14, 30, 46]  # 15 decisions of 4 frames, then a row for the reset


def test_limit_in_decisions_truncates_exactly_there() -> None:
    limit = 7
    recording = _record(_pong("random", num_envs=2, max_decisions=limit, noop_max=1), 3 * (limit + 1), NOOP)
    expected = np.zeros((3 * (limit + 1), 2), np.bool_)
    expected[limit - 1 :: limit + 1] = True  # each episode takes one more row for its reset
    assert (recording.column("truncated") == expected).all()
    assert (recording.column("reset_next") == expected).all()
    assert not recording.column("terminated").any()
    _assert_restarts_follow_reset_next(recording)


@pytest.mark.parametrize("name", ["ALE/Breakout-v5", "Breakout-v0"])
def test_seed_decides_every_game(name: str) -> None:
    def play(seed: int) -> list[bytes]:
        env = _make(name, num_envs=2, seed=seed)
        steps = _record(env, 60).copies + _record(env, 20).copies  # the second reset too
        return [b"".join(np.ascontiguousarray(field).tobytes() for field in step) for step in steps]

    one = play(3)
    assert play(3) == one
    assert play(9) != one


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("pong", {4}),
        ("ALE/Pong-v5", {4}),
        ("SpaceInvadersDeterministic-v4", {3}),
        ("Pong-v4", {2, 3, 4}),
        ("Pong-v0", {2, 3, 4}),
    ],
)
def test_decision_takes_the_frames_that_the_name_promises(name: str, frames: set[int]) -> None:
    counts = _record(_make(name, num_envs=1), 100).column("frames")
    assert set(np.unique(counts)) == frames
    if len(frames) > 1:
        assert 2.75 < counts.mean() < 3.25


def _is_reproduced_by_another_seed(env: VectorEnv) -> bool:
    """Play the same random actions in two environments, which differ in nothing but their seeds."""
    env.reset()
    for action in np.random.default_rng(0).integers(6, size=30):
        observation = env.step(np.full(2, action)).observation
    return bool((observation[0] == observation[1]).all())


@pytest.mark.parametrize(("name", "is_sticky"), [("PongNoFrameskip-v4", False), ("ALE/Pong-v5", True)])
def test_actions_stick_as_the_name_promises(name: str, is_sticky: bool) -> None:
    assert _is_reproduced_by_another_seed(_make(name, num_envs=2, noop_max=1)) == (not is_sticky)


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_actions_stick_where_the_skip_is_random_too(sticky: float) -> None:
    env = _pong("random", num_envs=2, sticky=sticky, noop_max=1)
    assert _is_reproduced_by_another_seed(env) == (sticky == 0)


def test_games_that_are_dismissed_stand_still_until_the_next_reset():
    env, other = (make_vector_env(EnvConfig(env="pong"), num_envs=3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(env.reset(), other.reset())
    env.dismiss(0)
    for t in range(100):
        step, expected = (each.step(np.full(3, 2 + t % 2)) for each in (env, other))
        assert step.frames.tolist() == [0, 4, 4]
        np.testing.assert_array_equal(step.observation[1:], expected.observation[1:])
        np.testing.assert_array_equal(step.reward, expected.reward * [0, 1, 1])
    assert (expected.observation[0] != step.observation[0]).any()
    env.reset()
    assert env.step(np.zeros(3, np.int64)).frames.tolist() == [4, 4, 4]
