"""Train on an environment of your own, evaluate it, and act with it.

python examples/custom_environment.py
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import arcadia
from arcadia.config import EnvConfig
from arcadia.envs import GymVectorEnv

Observation = NDArray[np.float32]


class Corridor(gymnasium.Env[Observation, int]):
    """Walk to the door. Observation: (position, door), both from -1 to 1. Actions: left, right. -0.01 a step, 1 at the
    door, at most 50 steps."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps, self._position = 0, 0.0
        self._door = float(self.np_random.choice([-1.0, 1.0]))
        return self._observation(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._position += 0.1 if action == 1 else -0.1
        self._position = max(-1.0, min(1.0, self._position))
        is_there = abs(self._position - self._door) < 0.05
        return self._observation(), 1.0 if is_there else -0.01, is_there, self._steps == 50, {}

    def _observation(self) -> Observation:
        return np.array([self._position, self._door], np.float32)


def make_corridors(config: EnvConfig, *, num_envs: int, seed: int) -> GymVectorEnv:
    """Build the environments of one worker. Workers import this function by its name."""
    return GymVectorEnv(Corridor, num_envs=num_envs, seed=seed)


def main(run: Path) -> None:
    result = arcadia.train("corridor", make_env=make_corridors, run_dir=str(run), total_steps=60_000, seed=1)
    print(f"trained for {result.env_steps:,} env_steps in {result.seconds:.0f} s")

    scores = arcadia.evaluate(run, episodes=20, greedy=True, make_env=make_corridors)
    print(f"mean score of {scores['episodes']} games: {scores['mean']:.2f}")

    agent = arcadia.load(run, make_env=make_corridors)
    env = Corridor()
    observation, _ = env.reset(seed=3)
    terminated, truncated, steps = False, False, 0
    while not (terminated or truncated):
        observation, _, terminated, truncated, _ = env.step(int(agent.act(observation, greedy=True)))
        steps += 1
    print(f"the door was reached in {steps} steps" if terminated else "the door was not found")


if __name__ == "__main__":
    main(Path("runs/corridor"))
