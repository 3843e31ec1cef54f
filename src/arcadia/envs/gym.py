"""Gymnasium environments with discrete actions, in gymnasium's synchronous vector loop."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from arcadia.envs.interface import EnvSpec, check_actions
from arcadia.types import Observations, Timestep, UserError


class GymVectorEnv:
    """B gymnasium environments. Every termination is the end of a game.

    Args:
        make: builds one environment.
        num_envs: B.
        seed: environment b is seeded with seed + b.

    Raises:
        UserError: the observation is not one array, or the actions are not discrete.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], *, num_envs: int, seed: int) -> None:
        self._env = gymnasium.vector.SyncVectorEnv([make] * num_envs)
        observations, actions = (
            self._env.single_observation_space,
            self._env.single_action_space,
        )
        if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) not in (1, 3):
            raise UserError(
                f"observation space {observations} is not supported: wrap the environment so that it "
                "returns one array, [D] or [stack, H, W]"
            )
        if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0:
            raise UserError(f"action space {actions} is not supported: use discrete actions from 0")
        self.spec = EnvSpec(observations.shape, np.dtype(observations.dtype), int(actions.n))
        self.num_envs = num_envs
        self._seed: int | None = seed
        self._resetting = np.zeros(num_envs, np.bool_)

    def reset(self) -> Observations:
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None  # later resets play on with the same random numbers
        self._resetting[:] = False
        return np.asarray(observation)

    def step(self, action: NDArray[np.int64]) -> Timestep:
        check_actions(action, self.num_envs, self.spec.num_actions)
        observation, reward, terminated, truncated, _ = self._env.step(action)
        frames = (~self._resetting).astype(np.int64)
        self._resetting = terminated | truncated
        return Timestep(
            observation,
            reward.astype(np.float32),
            terminated,
            truncated,
            self._resetting.copy(),
            frames,
        )

    def close(self) -> None:
        self._env.close()
