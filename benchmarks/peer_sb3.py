"""Training speed of Stable-Baselines3 on Pong; run by benchmarks/peers.py in an environment of its own.

python benchmarks/peer_sb3.py a2c|ppo dummy|subproc NUM_ENVS SECONDS     # prints env_steps per second after the warm-up
"""

import sys
import time

import ale_py
import gymnasium
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

WARM_UP_SECONDS = 5.0


class Speed(BaseCallback):
    """Ends training after a while; counts the steps after the warm-up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._started = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self.steps_per_s = 0.0

    def _on_step(self) -> bool:
        return time.perf_counter() - self._started < WARM_UP_SECONDS + self._seconds

    def _on_rollout_start(self) -> None:
        """Measure from update to update, so that a rollout and the learning from it count together."""
        now = time.perf_counter()
        if now - self._started < WARM_UP_SECONDS:
            return
        if self._first is None:
            self._first = (now, self.num_timesteps)
        elif now > self._first[0]:
            self.steps_per_s = (self.num_timesteps - self._first[1]) / (now - self._first[0])


def main(algorithm: str, vec_env: str, num_envs: int, seconds: float) -> None:
    gymnasium.register_envs(ale_py)
    kind = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[vec_env]
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=num_envs, seed=0, vec_env_cls=kind), 4)
    # Their defaults for Atari (rl-baselines3-zoo): A2C with T = 5; PPO with T = 128, 4 epochs, minibatches of 256.
    if algorithm == "a2c":
        model = A2C("CnnPolicy", env, n_steps=5, ent_coef=0.01, vf_coef=0.25, device="cpu")
    else:
        model = PPO("CnnPolicy", env, n_steps=128, n_epochs=4, batch_size=256, device="cpu")
    speed = Speed(seconds)
    model.learn(10**9, callback=speed)
    env.close()
    print(speed.steps_per_s)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
