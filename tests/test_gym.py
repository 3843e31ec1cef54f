"""Gymnasium environments: episode borders on real ones, and the spaces that are refused."""

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest

from arcadia.config import EnvConfig
from arcadia.envs import EnvSpec, make_vector_env, spec_of
from arcadia.envs.gym import ActionRescaler, GymVectorEnv
from arcadia.errors import UserError
from arcadia.types import Timestep

B = 3


def _cart_pole(limit: int | None = None, seed: int = 3) -> GymVectorEnv:
    return GymVectorEnv(lambda: gymnasium.make("CartPole-v1", max_episode_steps=limit), num_envs=B, seed=seed)


def _push_left(env: GymVectorEnv, num_rows: int) -> list[Timestep]:
    """Reset and push left: the pole falls after 8 to 10 decisions."""
    env.reset()
    return [env.step(np.zeros(B, np.int64)) for _ in range(num_rows)]


def _column(steps: list[Timestep], field: str) -> np.ndarray:
    """Return one field of all rows [N, B]."""
    return np.stack([getattr(step, field) for step in steps])


def test_fallen_pole_terminates_and_a_limit_truncates() -> None:
    fallen, limited = _push_left(_cart_pole(), 30), _push_left(_cart_pole(limit=5), 30)
    assert _column(fallen, "terminated").any(0).all()
    assert not _column(fallen, "truncated").any()
    assert not _column(limited, "terminated").any()
    truncated = np.zeros((30, B), np.bool_)
    truncated[4::6] = True  # 5 decisions and the reset's row
    assert (_column(limited, "truncated") == truncated).all()
    for steps in (fallen, limited):
        ended = _column(steps, "terminated") | _column(steps, "truncated")
        assert (_column(steps, "reset_next") == ended).all()


@pytest.mark.parametrize("limit", [None, 5])
def test_row_after_reset_next_starts_an_episode_whatever_its_action(limit: int | None) -> None:
    env = _cart_pole(limit)
    env.reset()
    resetting, resets = np.zeros(B, np.bool_), 0
    for _ in range(40):
        step = env.step(np.zeros(B, np.int64))
        # CartPole starts within 0.05 of upright and gives 1 for every decision, the last one too.
        starts_anew = (np.abs(step.observation) <= 0.05).all(1)
        assert (starts_anew == resetting).all()
        assert (step.reward == np.where(resetting, 0, 1)).all()
        assert (step.frames == np.where(resetting, 0, 1)).all()
        assert not (step.terminated | step.truncated | step.reset_next)[resetting].any()
        resetting = step.reset_next
        resets += int(resetting.sum())
    assert resets >= 3 * B


def test_final_observation_is_an_ordinary_row() -> None:
    env = _cart_pole()
    steps = _push_left(env, 30)
    terminated, observation = _column(steps, "terminated"), _column(steps, "observation")
    assert terminated.any(0).all()
    assert (np.abs(observation[terminated][:, 2]) > 0.2095).all()  # the pole's angle at which it has fallen, rad


def test_first_environment_plays_what_gymnasium_plays() -> None:
    env, reference = _cart_pole(seed=5), gymnasium.make("CartPole-v1")
    expected, _ = reference.reset(seed=5)
    assert (env.reset()[0] == expected).all()
    rng, is_over = np.random.default_rng(0), False
    for _ in range(40):
        action = rng.integers(2, size=B)
        step = env.step(action)
        if is_over:
            (expected, _), reward, terminated = reference.reset(), 0.0, False
        else:
            expected, reward, terminated, _, _ = reference.step(action[0])
        is_over = terminated
        assert (step.observation[0] == expected).all()
        assert step.reward[0] == reward
        assert step.terminated[0] == terminated


def test_seed_decides_every_episode_and_later_resets_start_others() -> None:
    env, again = _cart_pole(seed=3), _cart_pole(seed=3)
    for _ in range(2):
        first, second = _push_left(env, 20), _push_left(again, 20)
        for field in Timestep._fields:
            assert (_column(first, field) == _column(second, field)).all()
    starts = np.concatenate([_cart_pole(seed=3).reset(), _cart_pole(seed=100).reset(), env.reset(), env.reset()])
    assert len({row.tobytes() for row in starts}) == 4 * B


def test_records_are_not_overwritten_by_later_steps() -> None:
    env = _cart_pole()
    arrays = [env.reset()]
    copies = [arrays[0].copy()]
    for _ in range(20):
        step = env.step(np.zeros(B, np.int64))
        arrays += list(step[:-3])
        copies += [field.copy() for field in step[:-3]]
    env.reset()
    for array, copy in zip(arrays, copies, strict=True):
        assert (array == copy).all()


def test_records_have_the_promised_shapes_and_dtypes() -> None:
    env = make_vector_env(EnvConfig(env="Acrobot-v1"), num_envs=B, seed=0)
    observation = env.reset()
    step = env.step(np.array([0, 1, 2]))
    assert env.spec == spec_of(EnvConfig(env="Acrobot-v1"))
    assert env.spec.num_actions == 3
    assert env.spec.observation_shape == (6,)
    assert not env.spec.is_image
    for array in (observation, step.observation):
        assert array.shape == (B, 6)
        assert array.dtype == env.spec.observation_dtype
    dtypes = [getattr(step, field).dtype for field in Timestep._fields[1:-3]]
    # The agent decides everything, every game is whole, and nothing is stacked.
    assert (step.forced, step.cut, step.shifted) == (None, None, None)
    assert dtypes == [np.float32, np.bool_, np.bool_, np.bool_, np.int64]
    assert all(getattr(step, field).shape == (B,) for field in Timestep._fields[1:-3])


def test_staggered_environments_are_cut_once_each_at_another_part_of_the_time_limit() -> None:
    limit, num_envs = 12, 4
    make = lambda: gymnasium.make("Pendulum-v1", max_episode_steps=limit)  # noqa: E731
    env = GymVectorEnv(make, num_envs=num_envs, seed=3, stagger=True)
    env.reset()
    ends: list[list[tuple[int, bool]]] = [[] for _ in range(num_envs)]
    for t in range(1, 50):
        step = env.step(np.zeros((num_envs, 1), np.float32))
        assert step.cut is not None
        assert (step.truncated == step.reset_next).all()
        assert not step.terminated.any()
        for b in np.flatnonzero(step.truncated):
            ends[b].append((t, bool(step.cut[b])))
        assert not step.cut[~step.truncated].any()
    every = limit + 1  # and the reset's row
    assert ends[0] == [(12, False), (12 + every, False), (12 + 2 * every, False)]
    for b, first in ((1, 3), (2, 6), (3, 9)):
        assert ends[b] == [(first, True), *((first + i * every, False) for i in range(1, len(ends[b])))]


def test_what_ends_by_itself_or_has_no_time_limit_is_not_cut() -> None:
    # Poles pushed left fall after 9, 8 and 9 decisions: the second one just where it would be cut.
    fallen = GymVectorEnv(lambda: gymnasium.make("CartPole-v1", max_episode_steps=24), num_envs=3, seed=3, stagger=True)
    endless = GymVectorEnv(
        lambda: gymnasium.make("Pendulum-v1", max_episode_steps=-1), num_envs=3, seed=3, stagger=True
    )
    fallen.reset()
    endless.reset()
    steps = [fallen.step(np.zeros(3, np.int64)) for _ in range(10)]
    assert [int(t) + 1 for t in np.stack([step.terminated for step in steps]).argmax(0)] == [9, 8, 9]
    for step in steps:
        assert step.cut is not None
        assert not step.cut[step.terminated].any()
    for _ in range(300):
        step = endless.step(np.zeros((3, 1), np.float32))
        assert not step.truncated.any()


def test_action_outside_the_action_space_is_refused() -> None:
    env = _cart_pole()
    env.reset()
    for bad in (2, -1):
        with pytest.raises(ValueError, match=str(bad)):
            env.step(np.array([0, bad, 0]))
    with pytest.raises(ValueError, match=r"\(3,\), got \(2,\)"):
        env.step(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FrozenLake-v1", "observation space Discrete.*wrap the environment"),
        ("Blackjack-v1", "observation space Tuple.*wrap the environment"),
    ],
)
def test_unsupported_spaces_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_vector_env(EnvConfig(env=name), num_envs=B, seed=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Ant-v2", "GymV21Environment-v0"])
def test_environments_that_gymnasium_cannot_build_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} cannot be built") as raised:
        make_vector_env(EnvConfig(env=name), num_envs=B, seed=0)
    assert "\n" not in str(raised.value)


def test_continuous_actions_reach_pendulum_between_its_bounds() -> None:
    """-1 and 1 are torques of -2 and 2 Nm; what lies outside is clipped."""
    actions = np.array([[-1.0], [0.25], [7.0]], np.float32)
    env = make_vector_env(EnvConfig(env="Pendulum-v1"), num_envs=B, seed=3)
    assert env.spec == EnvSpec((3,), np.dtype(np.float32), 1, is_continuous=True)
    env.reset()
    step = env.step(actions)
    for b, torque in enumerate((-2.0, 0.5, 2.0)):
        single = gymnasium.make("Pendulum-v1")
        single.reset(seed=3 + b)
        observation, reward, *_ = single.step(np.array([torque], np.float32))
        np.testing.assert_allclose(step.observation[b], observation, rtol=1e-6)
        assert step.reward[b] == pytest.approx(reward, rel=1e-6)


def test_actions_are_scaled_to_each_dimensions_bounds() -> None:
    low, high = np.array([0, -4, -np.inf, -1], np.float32), np.array([10, -2, np.inf, np.inf], np.float32)
    space = gymnasium.spaces.Box(low, high)
    actions = np.array([[-1, -1, -50, -3], [0, 0, 0.5, 0.5], [1, 1, 50, 3], [-9, 9, 7, 7]], np.float32)
    expected = [[0, -4, -50, -3], [5, -3, 0.5, 0.5], [10, -2, 50, 3], [0, -2, 7, 7]]
    scaled = ActionRescaler(space)(actions)
    assert scaled.dtype == np.float32
    assert scaled.tolist() == expected


def test_continuous_actions_of_a_wrong_shape_or_nan_are_refused() -> None:
    env = make_vector_env(EnvConfig(env="Pendulum-v1"), num_envs=B, seed=3)
    env.reset()
    with pytest.raises(ValueError, match=r"\(3, 1\), got \(3,\)"):
        env.step(np.zeros(B, np.float32))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([[0], [np.nan], [0]], np.float32))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("BipedalWalker-v3", "box2d"),
        ("HalfCheetah-v5", "mujoco"),
        ("InvertedPendulumSwingupBulletEnv-v0", "pybullet"),
        ("pong", "atari"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(name: str, extra: str) -> None:
    """In a process of its own, where the packages cannot be imported."""
    code = (
        "import sys\n"
        "for package in ('Box2D', 'mujoco', 'pybullet_envs_gymnasium', 'ale_py'): sys.modules[package] = None\n"
        "from arcadia.cli import main\n"
        f"sys.exit(main(['train', {name!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert f'pip install "arcadia[{extra}]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_mujoco_says_of_a_simulation_is_a_warning_and_of_its_models_is_nothing() -> None:
    mujoco = pytest.importorskip("mujoco")
    spec_of(EnvConfig(env="HalfCheetah-v5"))
    say = mujoco.get_mju_user_warning()
    with warnings.catch_warnings(action="error"):
        say("compiler attribute 'settotalmass' is deprecated")
    with pytest.warns(UserWarning, match="MuJoCo: Nan, Inf or huge value in QACC"):
        say("Nan, Inf or huge value in QACC at DOF 0. The simulation is unstable.")


class _Spaces(gymnasium.Env[Any, Any]):
    """An environment of any spaces."""

    def __init__(self, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions


@pytest.mark.parametrize("shape", [(), (2, 3), (2, 3, 4, 5)])
def test_observations_that_are_neither_vectors_nor_stacks_are_refused(shape: tuple[int, ...]) -> None:
    box = gymnasium.spaces.Box(0, 1, shape)
    with pytest.raises(UserError, match="observation space"):
        GymVectorEnv(lambda: _Spaces(box, gymnasium.spaces.Discrete(2)), num_envs=B, seed=0)


def test_actions_that_do_not_start_at_0_are_refused() -> None:
    box = gymnasium.spaces.Box(0, 1, (4,))
    with pytest.raises(UserError, match="action space"):
        GymVectorEnv(lambda: _Spaces(box, gymnasium.spaces.Discrete(2, start=1)), num_envs=B, seed=0)


class _Drawn(gymnasium.Env[Any, Any]):
    """Random images of a shape and dtype; `info` is never twice of one kind."""

    def __init__(self, shape: tuple[int, ...], dtype: type = np.uint8, high: float = 255) -> None:
        self.observation_space = gymnasium.spaces.Box(0, high, shape, dtype)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.drawn: list[np.ndarray] = []

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.drawn.append(self.observation_space.sample())
        kinds = [3, "three", None, np.zeros(len(self.drawn)), {"three": [3]}]
        return self.drawn[-1], {"kind": kinds[self.np_random.integers(len(kinds))]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self._draw()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self._draw()
        return observation, 0.0, False, False, info


@pytest.mark.parametrize(
    ("shape", "is_last"),
    [((6, 7, 3), True), ((9, 8, 1), True), ((3, 6, 7), False), ((4, 4, 4), False), ((7, 3, 6), False)],
)
def test_channels_come_first_wherever_an_environment_has_them(shape: tuple[int, ...], is_last: bool) -> None:
    made: list[_Drawn] = []

    def make() -> _Drawn:
        made.append(_Drawn(shape))
        return made[-1]

    env = GymVectorEnv(make, num_envs=B, seed=0)
    expected_shape = (shape[2], *shape[:2]) if is_last else shape
    assert env.spec.observation_shape == expected_shape
    assert env.spec.frame_channels == expected_shape[0], "each channel has statistics of its own"
    observations = [env.reset(), *(env.step(np.zeros(B, np.int64)).observation for _ in range(3))]
    for t, observation in enumerate(observations):
        assert observation.shape == (B, *expected_shape)
        assert observation.flags.c_contiguous
        for b in range(B):
            drawn = made[b].drawn[t]
            for c in range(expected_shape[0]):
                assert (observation[b, c] == (drawn[:, :, c] if is_last else drawn[c])).all()


def test_only_bytes_are_pixels() -> None:
    for dtype, high, is_pixels in ((np.uint8, 255, True), (np.float32, 1, False), (np.int64, 9, False)):
        env = GymVectorEnv(lambda dtype=dtype, high=high: _Drawn((3, 6, 7), dtype, high), num_envs=B, seed=0)
        assert env.spec.is_image
        assert env.spec.is_pixels == is_pixels


def test_what_info_holds_does_not_matter() -> None:
    env = GymVectorEnv(lambda: _Drawn((2, 6, 7)), num_envs=B, seed=0)
    env.reset()
    for _ in range(50):
        env.step(np.zeros(B, np.int64))


def test_a_time_limit_of_ones_own_takes_the_place_of_the_environments() -> None:
    env = make_vector_env(EnvConfig(env="Pendulum-v1", max_episode_steps=7), num_envs=B, seed=3)
    env.reset()
    truncated = [env.step(np.zeros((B, 1), np.float32)).truncated.all() for _ in range(8)]
    assert truncated == [False] * 6 + [True, False]
    env = make_vector_env(EnvConfig(env="Pendulum-v1", max_episode_steps=10_000), num_envs=B, seed=3)
    env.reset()
    truncated = [env.step(np.zeros((B, 1), np.float32)).truncated.all() for _ in range(200)]
    assert truncated == [False] * 199 + [True], "its own limit is lower"


@pytest.mark.parametrize(
    "make", [lambda: None, lambda: gymnasium.make("CartPole-v1"), lambda: gymnasium.make_vec("CartPole-v1")]
)
def test_what_is_no_vector_environment_of_ours_is_refused(make: Any) -> None:
    with pytest.raises(UserError, match="make_env must return a VectorEnv, such as"):
        spec_of(EnvConfig(env="mine"), lambda config, **_: make())


def test_whole_numbers_are_the_nearest_ones() -> None:
    rescale = ActionRescaler(gymnasium.spaces.Box(0, 10, (2,), np.int64))
    action = np.array([[-1, 1 - 1e-6], [0.13, -0.13]], np.float32)
    assert rescale(action).tolist() == [[0, 10], [6, 4]]
    assert rescale(action).dtype == np.int64
