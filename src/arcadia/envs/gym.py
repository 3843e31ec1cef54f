"""Gymnasium environments in gymnasium's synchronous vector loop."""

from collections.abc import Callable
from functools import partial
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from arcadia.envs.interface import EnvSpec, check_actions
from arcadia.errors import UserError
from arcadia.types import Actions, Observations, Picture, Timestep

_CUT = "arcadia_cut"  # in gymnasium's `info`


class GymVectorEnv:
    """B gymnasium environments. Every termination is the end of a game.

    Images may have their channels first or, where that is the smallest size, last: [H, W, C] become [C, H, W].

    Args:
        make: builds one environment.
        num_envs: B.
        seed: environment b is seeded with seed + b.
        stagger: environment b is truncated once, after b / B of the time limit in its gymnasium spec, if it has one.

    Raises:
        UserError: the observation is not one array, or the actions are neither discrete nor a vector.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]], *, num_envs: int, seed: int, stagger: bool = False
    ) -> None:
        self._env = gymnasium.vector.SyncVectorEnv(
            [partial(_Episodes, make, b / num_envs if stagger else 0.0) for b in range(num_envs)]
        )
        observations, actions = (
            self._env.single_observation_space,
            self._env.single_action_space,
        )
        if not isinstance(observations, Box) or len(observations.shape) not in (1, 3):
            raise UserError(
                f"observation space {observations} is not supported: wrap the environment so that it "
                "returns one array, [D], [C, H, W] or [H, W, C]"
            )
        shape = observations.shape
        self._is_channels_last = len(shape) == 3 and shape[2] < min(shape[:2])
        if self._is_channels_last:
            shape = (shape[2], *shape[:2])
        num_actions, is_continuous = _actions(actions)
        self.spec = EnvSpec(
            shape,
            np.dtype(observations.dtype),
            num_actions,
            frame_channels=shape[0] if len(shape) == 3 else 1,
            is_continuous=is_continuous,
        )
        self.num_envs = num_envs
        self.action_names = tuple(map(str, range(num_actions)))
        self.steps_per_s = float(self._env.metadata.get("render_fps", 30))
        self._rescale = ActionRescaler(actions) if isinstance(actions, Box) else None
        self._seed: int | None = seed
        self._resetting = np.zeros(num_envs, np.bool_)
        self._no_cut = np.zeros(num_envs, np.bool_) if stagger else None

    def reset(self) -> Observations:
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None  # later resets play on with the same random numbers
        self._resetting[:] = False
        return self._channels_first(observation)

    def _channels_first(self, observation: Observations) -> Observations:
        return np.ascontiguousarray(np.moveaxis(observation, -1, 1)) if self._is_channels_last else observation

    def step(self, action: Actions) -> Timestep:
        check_actions(action, self.num_envs, self.spec)
        observation, reward, terminated, truncated, info = self._env.step(self.native_action(action))
        frames = (~self._resetting).astype(np.int64)
        self._resetting = terminated | truncated
        return Timestep(
            self._channels_first(observation),
            reward.astype(np.float32),
            terminated,
            truncated,
            self._resetting.copy(),
            frames,
            cut=info.get(_CUT, self._no_cut),
        )

    def native_action(self, action: Actions) -> Actions:
        return action if self._rescale is None else self._rescale(action)

    def picture(self, index: int) -> Picture:
        """Return what environment `index` shows. Only where it was made with render_mode "rgb_array".

        Raises:
            UserError: it cannot be drawn on this machine.
        """
        try:
            return np.asarray(self._env.envs[index].render(), np.uint8)
        except Exception as error:  # each engine has its own
            is_mujoco = "mujoco" in type(self._env.envs[index].unwrapped).__module__
            advice = " (without a screen, set MUJOCO_GL=egl or MUJOCO_GL=osmesa)" if is_mujoco else ""
            raise UserError(f"the environment cannot be drawn here{advice}: {error}") from None

    def close(self) -> None:
        self._env.close()


class _Episodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Drops what is in `info`, which gymnasium cannot always put together for several environments.

    Args:
        make: builds the environment.
        share: of its time limit, if it has one, after which it is truncated once, and `info` says so; 0: never.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], share: float) -> None:
        super().__init__(make())
        limit = None if self.env.spec is None else self.env.spec.max_episode_steps
        self._steps_left = int(share * (limit or 0))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(**kwargs)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self._steps_left -= 1
        is_cut = self._steps_left == 0 and not (terminated or truncated)
        return observation, reward, terminated, truncated or is_cut, {_CUT: True} if is_cut else {}


class ActionRescaler:
    """Turns actions [B, D] into a space's own numbers: -1 and 1 are its bounds, and what lies outside is clipped.

    A dimension that lacks a bound takes the number as it is. Whole numbers are the nearest ones.
    """

    def __init__(self, space: Box) -> None:
        is_bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._limit = np.where(is_bounded, 1.0, np.inf)
        with np.errstate(invalid="ignore"):  # inf - inf, where there are no bounds
            self._center = np.where(is_bounded, (low + high) / 2, 0.0)
            self._half = np.where(is_bounded, (high - low) / 2, 1.0)
        self._dtype = space.dtype

    def __call__(self, action: Actions) -> Actions:
        scaled: Actions = self._center + action.clip(-self._limit, self._limit) * self._half
        if np.issubdtype(self._dtype, np.integer):
            scaled = scaled.round()
        return scaled.astype(self._dtype)


def _actions(space: gymnasium.Space[Any]) -> tuple[int, bool]:
    """Return the number of actions, or of their dimensions, and whether they are continuous."""
    if isinstance(space, Discrete) and space.start == 0:
        return int(space.n), False
    if isinstance(space, Box) and len(space.shape) == 1:
        return space.shape[0], True
    raise UserError(f"action space {space} is not supported: use discrete actions from 0, or a Box of one dimension")
