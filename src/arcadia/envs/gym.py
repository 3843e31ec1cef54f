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
        makers: list[Callable[[], gymnasium.Env[Any, Any]]] = [make] * num_envs
        if stagger:
            makers = [partial(_cut, make, b / num_envs) for b in range(num_envs)]
        self._env = gymnasium.vector.SyncVectorEnv(makers)
        observations, actions = (
            self._env.single_observation_space,
            self._env.single_action_space,
        )
        if not isinstance(observations, Box) or len(observations.shape) not in (1, 3):
            raise UserError(
                f"observation space {observations} is not supported: wrap the environment so that it "
                "returns one array, [D] or [stack, H, W]"
            )
        num_actions, is_continuous = _actions(actions)
        self.spec = EnvSpec(observations.shape, np.dtype(observations.dtype), num_actions, is_continuous=is_continuous)
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
        return np.asarray(observation)

    def step(self, action: Actions) -> Timestep:
        check_actions(action, self.num_envs, self.spec)
        observation, reward, terminated, truncated, info = self._env.step(self.native_action(action))
        frames = (~self._resetting).astype(np.int64)
        self._resetting = terminated | truncated
        return Timestep(
            observation,
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


class _CutOnce(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncates the episode that its `limit`-th step belongs to and says so in `info`; the others are whole."""

    def __init__(self, env: gymnasium.Env[Any, Any], limit: int) -> None:
        super().__init__(env)
        self._steps_left = limit

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps_left -= 1
        if self._steps_left == 0 and not (terminated or truncated):
            truncated, info = True, info | {_CUT: True}
        return observation, reward, terminated, truncated, info


def _cut(make: Callable[[], gymnasium.Env[Any, Any]], share: float) -> gymnasium.Env[Any, Any]:
    """Build an environment whose play is cut once, after this share of its time limit (0: never)."""
    env = make()
    limit = None if env.spec is None else env.spec.max_episode_steps
    return env if limit is None else _CutOnce(env, int(share * limit))


class ActionRescaler:
    """Turns actions [B, D] into a space's own numbers: -1 and 1 are its bounds, and what lies outside is clipped.

    A dimension that lacks a bound takes the number as it is.
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
        return scaled.astype(self._dtype)


def _actions(space: gymnasium.Space[Any]) -> tuple[int, bool]:
    """Return the number of actions, or of their dimensions, and whether they are continuous."""
    if isinstance(space, Discrete) and space.start == 0:
        return int(space.n), False
    if isinstance(space, Box) and len(space.shape) == 1:
        return space.shape[0], True
    raise UserError(f"action space {space} is not supported: use discrete actions from 0, or a Box of one dimension")
