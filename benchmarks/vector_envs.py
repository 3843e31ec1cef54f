"""How fast 16 environments step by different libraries, random actions, one thread (AsyncVectorEnv: 16 processes).

pip install envpool && python benchmarks/vector_envs.py      # on an idle machine
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import envpool
import gymnasium
import numpy as np
import pybullet_envs_gymnasium  # noqa: F401 - registers its environments

IDS = ("CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3", "HalfCheetah-v5")
BULLET = "InvertedPendulumSwingupBulletEnv-v0"
NUM_ENVS = 16
SECONDS = 2.0
ROUNDS = 3


def steps_per_s(env: Any, space: gymnasium.Space[Any]) -> float:
    """Return the rows per second of random play, those of resets included."""
    rng = np.random.default_rng(1)
    if isinstance(space, gymnasium.spaces.Discrete):
        actions = rng.integers(space.n, size=(1000, NUM_ENVS))
    else:
        actions = rng.uniform(space.low, space.high, (1000, NUM_ENVS, *space.shape)).astype(np.float32)
    env.reset()
    for action in actions[:100]:
        env.step(action)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        env.step(actions[steps % 1000])
        steps += 1
    rate = steps * NUM_ENVS / (time.perf_counter() - started)
    env.close()
    return rate


def main() -> None:
    """Print medians of rounds in which the libraries take turns."""
    print(f"{'rows/s':36}{'SyncVectorEnv':>16}{'AsyncVectorEnv':>16}{'EnvPool':>12}")
    for name in (*IDS, BULLET):
        makers: list[Callable[[], Any]] = [
            lambda name=name: gymnasium.make_vec(name, NUM_ENVS, "sync"),
            lambda name=name: gymnasium.make_vec(name, NUM_ENVS, "async"),
        ]
        if name != BULLET:
            makers.append(lambda name=name: envpool.make_gymnasium(name, num_envs=NUM_ENVS, num_threads=1))
        space = gymnasium.make(name).action_space
        rounds = [[steps_per_s(make(), space) for make in makers] for _ in range(ROUNDS)]
        medians = [statistics.median(rates) for rates in zip(*rounds, strict=True)]
        print(f"{name:36}" + "".join(f"{rate:16,.0f}" for rate in medians), flush=True)


if __name__ == "__main__":
    main()
