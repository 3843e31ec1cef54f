"""Small environments with known solutions, factories that workers import by name, and tiny configurations."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from arcadia.config import EnvConfig, LossConfig, ModelConfig, OptimizerConfig, RuntimeConfig, TrainConfig
from arcadia.envs import VectorEnv, make_vector_env
from arcadia.envs.gym import GymVectorEnv
from arcadia.errors import UserError
from arcadia.types import Actions, Timestep

Reset = tuple[NDArray[Any], dict[str, Any]]
Step = tuple[NDArray[Any], float, bool, bool, dict[str, Any]]


class Memory(gymnasium.Env[NDArray[np.float32], int]):
    """Recall a cue. Observation: (cue, go). The cue, +-1, is in the first observation only, `go` in the last one only;
    the action there earns 1 if it names the cue (1 for +1, 0 for -1), else 0. All other actions are ignored.
    """

    NUM_STEPS = 9

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        self._cue = int(self.np_random.integers(2))
        return np.array([2 * self._cue - 1, 0], np.float32), {}

    def step(self, action: int) -> Step:
        self._step += 1
        if self._step == self.NUM_STEPS:
            return np.zeros(2, np.float32), float(action == self._cue), True, False, {}
        return np.array([0, self._step == self.NUM_STEPS - 1], np.float32), 0.0, False, False, {}


class ConstantReward(gymnasium.Env[NDArray[np.float32], int]):
    """Reward 1 for every step of an endless task that a time limit cuts into pieces. Observation: 3 random bits."""

    NUM_STEPS = 15

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        return self._bits(), {}

    def step(self, action: int) -> Step:
        self._step += 1
        return self._bits(), 1.0, False, self._step == self.NUM_STEPS, {}

    def _bits(self) -> NDArray[np.float32]:
        return self.np_random.integers(2, size=3).astype(np.float32)


class Balanced(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A pendulum that cannot fall: it stands upright whatever the torque, which earns 1, until a time limit.

    Observation: cosine and sine of the angle, angular velocity.
    """

    NUM_STEPS = 15

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-8, 8, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        return np.array([1, 0, 0], np.float32), {}

    def step(self, action: NDArray[np.float32]) -> Step:
        self._step += 1
        return np.array([1, 0, 0], np.float32), 1.0, False, self._step == self.NUM_STEPS, {}


class Target(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Hit a target in two dimensions: the reward is minus the squared distance to it. The bounds are 0 and 10."""

    NUM_STEPS = 10

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 10, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(0, 10, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        return self._move(), {}

    def step(self, action: NDArray[np.float32]) -> Step:
        self._step += 1
        reward = -float(((action - self._target) ** 2).sum())
        return self._move(), reward, self._step == self.NUM_STEPS, False, {}

    def _move(self) -> NDArray[np.float32]:
        self._target = self.np_random.uniform(1, 9, 2).astype(np.float32)
        return self._target


class Crash(gymnasium.Env[NDArray[np.float32], int]):
    """Raises in its 20th step."""

    MESSAGE = "the toy environment broke"

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> Step:
        self._step += 1
        if self._step == 20:
            raise ArithmeticError(self.MESSAGE)
        return np.zeros(3, np.float32), 1.0, False, False, {}


class Endless(Crash):
    """Never ends: no decision is a reset."""

    def step(self, action: int) -> Step:
        return np.zeros(3, np.float32), 1.0, False, False, {}


class Late(Endless):
    """Takes 2 seconds for its first reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        if seed is not None:
            time.sleep(2)
        return super().reset(seed=seed)


class Unserved(Endless):
    """Pays 1 for its 10th and its 20th decision, then nothing more, and never ends."""

    def step(self, action: int) -> Step:
        self._step += 1
        return np.zeros(3, np.float32), float(self._step in (10, 20)), False, False, {}


class Misshapen(Crash):
    """Its 20th observation has another shape."""

    def step(self, action: int) -> Step:
        self._step += 1
        return np.zeros(3 + (self._step == 20), np.float32), 1.0, False, False, {}


class Broken(Crash):
    """Cannot be built."""

    def __init__(self) -> None:
        raise ArithmeticError(self.MESSAGE)


class Exit(Crash):
    """Ends its process, politely, in its 20th step."""

    def step(self, action: int) -> Step:
        if self._step == 19:
            raise SystemExit(0)
        return super().step(action)


class RareNan(ConstantReward):
    """The reward of every 100th step is NaN."""

    PERIOD = 100

    def __init__(self) -> None:
        super().__init__()
        self._all_steps = 0

    def step(self, action: int) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        self._all_steps += 1
        return observation, float("nan") if self._all_steps % self.PERIOD == 0 else reward, terminated, truncated, info


class OnlyNan(RareNan):
    """From the 40th step on every reward is NaN."""

    def step(self, action: int) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("nan") if self._all_steps >= 40 else reward, terminated, truncated, info


class NanObservation(Crash):
    """The 20th observation is NaN."""

    VALUE = np.nan

    def step(self, action: int) -> Step:
        if self._step == 19:
            return np.full(3, self.VALUE, np.float32), 1.0, False, False, {}
        return super().step(action)


class InfiniteObservation(NanObservation):
    VALUE = np.inf


class Choice(gymnasium.Env[NDArray[np.float32], int]):
    """Action 1 in the first step: a long game of 30 steps that scores 30. Action 0: it is over, and scores 0."""

    LONG = 30

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        return np.ones(2, np.float32), {}

    def step(self, action: int) -> Step:
        self._step += 1
        if self._step == 1 and action == 0:
            return np.zeros(2, np.float32), 0.0, True, False, {}
        return np.zeros(2, np.float32), 1.0, self._step == self.LONG, False, {}


class Numbered(gymnasium.Env[NDArray[np.float32], int]):
    """Always plays the same game: of 1 + seed % 4 steps, the seed being that of its first reset, with reward 5 each."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._number = self._number if seed is None else 1 + seed % 4
        self._step = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> Step:
        self._step += 1
        return np.zeros(2, np.float32), 5.0, self._step == self._number, False, {}


class Catch(gymnasium.Env[NDArray[np.uint8], int]):
    """Catch a falling ball: a stack of 1 frame of 36 x 36 pixels, cells of 5 x 5, ball and paddle bright. Actions move
    the paddle left, not at all or right. The episode ends with the ball in the paddle's row: 1 if caught, else -1.
    """

    CELLS, CELL = 7, 5

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, 36, 36), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._row, self._paddle = 0, self.CELLS // 2
        self._column = int(self.np_random.integers(self.CELLS))
        return self._picture(), {}

    def step(self, action: int) -> Step:
        self._row += 1
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.CELLS - 1)
        over = self._row == self.CELLS - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if over else 0.0
        return self._picture(), reward, over, False, {}

    def _picture(self) -> NDArray[np.uint8]:
        picture = np.zeros((1, 36, 36), np.uint8)
        for row, column in ((self._row, self._column), (self.CELLS - 1, self._paddle)):
            top, left = self.CELL * row, self.CELL * column
            picture[0, top : top + self.CELL, left : left + self.CELL] = 255
        return picture


class LatePixels(gymnasium.Env[NDArray[np.uint8], int]):
    """A stack of 4 frames of 36 x 36 pixels. The left or the right half of the inside is bright: action 0 or 1 earns 1
    in that step, the other nothing. The border, one pixel wide, is black until the environment has made
    `NUM_CALM_STEPS` steps in all; then each step paints it black or white at random.
    """

    SIZE = 36
    NUM_STEPS = 10
    NUM_CALM_STEPS = 120

    def __init__(self) -> None:
        shape = (4, self.SIZE, self.SIZE)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._lifetime = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self._step = 0
        self._frames = np.zeros(self.observation_space.shape or (), np.uint8)
        return self._draw(), {}

    def step(self, action: int) -> Step:
        self._step += 1
        self._lifetime += 1
        reward = float(action == self._side)
        return self._draw(), reward, self._step == self.NUM_STEPS, False, {}

    def _draw(self) -> NDArray[np.uint8]:
        self._side = int(self.np_random.integers(2))
        half = self.SIZE // 2
        frame = np.zeros((self.SIZE, self.SIZE), np.uint8)
        frame[:, half * self._side : half * (self._side + 1)] = 200
        frame[self.border()] = 255 * int(self.np_random.integers(2)) * (self._lifetime >= self.NUM_CALM_STEPS)
        self._frames = np.concatenate((self._frames[1:], frame[None]))
        return self._frames.copy()

    @classmethod
    def border(cls) -> NDArray[np.bool_]:
        """Return the mask [H, W] of the border."""
        mask = np.ones((cls.SIZE, cls.SIZE), np.bool_)
        mask[1:-1, 1:-1] = False
        return mask


def make_memory(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Memory, num_envs=num_envs, seed=seed)


def make_constant_reward(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(ConstantReward, num_envs=num_envs, seed=seed)


def make_balanced(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Balanced, num_envs=num_envs, seed=seed)


def make_target(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Target, num_envs=num_envs, seed=seed)


def make_crash(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Crash, num_envs=num_envs, seed=seed)


def make_endless(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Endless, num_envs=num_envs, seed=seed)


def make_unserved(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Unserved, num_envs=num_envs, seed=seed)


def make_exit(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Exit, num_envs=num_envs, seed=seed)


def make_rare_nan(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(RareNan, num_envs=num_envs, seed=seed)


def make_only_nan(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(OnlyNan, num_envs=num_envs, seed=seed)


def make_nan_observation(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(NanObservation, num_envs=num_envs, seed=seed)


def make_infinite_observation(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(InfiniteObservation, num_envs=num_envs, seed=seed)


def make_half_nan(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    """The first environment is well, the second one breaks."""
    kinds = iter([ConstantReward, OnlyNan] * 10)
    return GymVectorEnv(lambda: next(kinds)(), num_envs=num_envs, seed=seed)


def make_choice(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Choice, num_envs=num_envs, seed=seed)


def make_numbered(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Numbered, num_envs=num_envs, seed=seed)


def make_restless(config: EnvConfig, *, num_envs: int, seed: int) -> Any:
    """Build emulators that go on when they are dismissed."""
    env: Any = make_vector_env(config, num_envs=num_envs, seed=seed)
    env.dismiss = lambda index: None
    return env


def make_catch(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(Catch, num_envs=num_envs, seed=seed)


def make_late_pixels(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    return GymVectorEnv(LatePixels, num_envs=num_envs, seed=seed)


def make_crash_in_the_evaluator(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    """Break where neither one environment (for its shapes) nor a worker's number of them is asked for."""
    env = ConstantReward if num_envs in (1, config.num_envs) else Crash
    return GymVectorEnv(env, num_envs=num_envs, seed=seed)


# Settings of our own, so that the tuning of a recipe changes no test.
TOY = TrainConfig(
    recipe="toy",
    env=EnvConfig(num_envs=8, clip_rewards=False),
    model=ModelConfig(torso="mlp", hidden_sizes=(64, 64), core="none", normalization="per_element"),
    loss=LossConfig(
        gamma=0.99,
        advantage="gae",
        gae_lambda=0.95,
        normalize_advantage=True,
        value_coefficient=0.5,
        entropy_coefficient=0.0,
        reduction="mean",
        max_grad_norm=0.5,
        num_epochs=4,
        num_minibatches=1,
        clip_range=0.2,
    ),
    optimizer=OptimizerConfig(optimizer="adam", lr=1e-3, schedule="constant", epsilon=1e-5, shared_statistics=True),
    runtime=RuntimeConfig(num_steps=(64,), total_steps=1_000_000, seed=1),
)


def configure(base: TrainConfig, env: str, run: Path, **settings: Any) -> TrainConfig:
    """Return `base` with `settings` put into whichever section has a field of that name."""
    settings |= {"env": env, "run_dir": str(run)}
    sections = {}
    for name in ("env", "model", "loss", "optimizer", "runtime"):
        section = getattr(base, name)
        own = {key: settings.pop(key) for key in vars(section) if key in settings}
        if isinstance(own.get("num_steps"), int):
            own["num_steps"] = (own["num_steps"],)
        sections[name] = dataclasses.replace(section, **own)
    assert not settings, f"no such fields: {settings}"
    return dataclasses.replace(base, **sections)


class EndlessPong:
    """Games of Pong of which none ends; the 50th step is `event`."""

    def __init__(self, env: VectorEnv, event: Callable[[], None]) -> None:
        self._env, self._event, self._steps = env, event, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: Actions) -> Timestep:
        self._steps += 1
        if self._steps == 50:
            self._event()
        timestep = self._env.step(action)
        return timestep._replace(reset_next=np.zeros_like(timestep.reset_next))


@dataclasses.dataclass(frozen=True)
class MakeEndlessPong:
    """Builds EndlessPong; no `event` happens in the first process of an evaluation, which has two of five games."""

    event: Callable[[], None]
    spares_first: bool = True

    def __call__(self, config: EnvConfig, *, num_envs: int, seed: int) -> Any:
        env = make_vector_env(config, num_envs=num_envs, seed=seed)
        return EndlessPong(env, _nothing if self.spares_first and num_envs == 2 else self.event)


def _nothing() -> None:
    pass


def fail() -> None:
    raise ArithmeticError("broken")


def refuse() -> None:
    raise UserError("no more of this")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(0)


def leave_a_mark() -> None:
    """Say in the folder PLAYING that this process plays."""
    (Path(os.environ["PLAYING"]) / str(os.getpid())).touch()
