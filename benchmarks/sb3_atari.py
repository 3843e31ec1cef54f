"""Speed of Stable-Baselines3 on Atari, in decisions per second: the Nature network, 16 environments.

pip install stable-baselines3 ale-py opencv-python-headless && python benchmarks/sb3_atari.py a2c dummy 30
"""

import sys
import time
from functools import partial

import ale_py
import gymnasium
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

NUM_ENVS = 16
WARM_UP_SECONDS = 5.0
# PPO as in RL Baselines3 Zoo; A2C's defaults are those of Atari
ALGORITHMS = {"a2c": A2C, "ppo": partial(PPO, n_steps=128, n_epochs=4, batch_size=256)}
VECTORS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}


class Clock(BaseCallback):
    """Measures whole rounds of acting and learning after a warm-up, and ends training after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._begin = time.perf_counter() + WARM_UP_SECONDS
        self._end = self._begin + seconds
        self._rounds: list[tuple[float, int]] = []  # time and decisions at their starts

    def _on_rollout_start(self) -> None:
        if time.perf_counter() >= self._begin:
            self._rounds.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return time.perf_counter() < self._end or len(self._rounds) < 2

    @property
    def steps_per_s(self) -> float:
        """Return the decisions per second."""
        (started, before), (ended, after) = self._rounds[0], self._rounds[-1]
        return (after - before) / (ended - started)


def main(algorithm: str, vector: str, seconds: float) -> None:
    """Train and print the speed."""
    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", NUM_ENVS, seed=1, vec_env_cls=VECTORS[vector]), 4)
    clock = Clock(seconds)
    ALGORITHMS[algorithm]("CnnPolicy", env, device="cpu").learn(10**9, callback=clock)
    print(clock.steps_per_s)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
