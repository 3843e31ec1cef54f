"""How fast Atari games start and step: ale-py's own vector environment and Arcadia's in turns, random actions.

python benchmarks/emulators.py [GAME] [NUM_ENVS]      # in each of two processes; on an idle machine
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from ale_py.vector_env import AtariVectorEnv

from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env

NUM_PROCESSES = 2
SECONDS = 5.0
ROUNDS = 5


def ale_py(game: str, num_envs: int) -> tuple[Any, int]:
    """Return ale-py's environments, with the stack and the starts that Arcadia has, and the number of actions."""
    env = AtariVectorEnv(game, num_envs=num_envs, num_threads=1, frameskip=4, reward_clipping=False)
    env.reset(seed=0)
    return env, int(env.single_action_space.n)


def arcadia(game: str, num_envs: int) -> tuple[Any, int]:
    """Return Arcadia's environments and the number of actions."""
    env = make_vector_env(EnvConfig(env=game), num_envs=num_envs, seed=0)
    env.reset()
    return env, env.spec.num_actions


def play(connection: Connection, make: Callable[[str, int], tuple[Any, int]], game: str, num_envs: int) -> None:
    """Send the seconds until the games are ready, then, as often as asked, the rows per second of random play."""
    started = time.perf_counter()
    env, num_actions = make(game, num_envs)
    connection.send(time.perf_counter() - started)
    actions = np.random.default_rng(1).integers(num_actions, size=(1000, num_envs))
    steps = 0
    while connection.recv():
        before, started = steps, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            env.step(actions[steps % 1000])
            steps += 1
        connection.send((steps - before) * num_envs / (time.perf_counter() - started))


def main(game: str = "pong", num_envs: str = "64") -> None:
    """Print the medians of rounds in turns."""
    context = multiprocessing.get_context("spawn")
    sides: dict[str, list[Connection]] = {}
    for make in (ale_py, arcadia):
        sides[make.__name__] = []
        for _ in range(NUM_PROCESSES):
            ours, theirs = context.Pipe()
            context.Process(target=play, args=(theirs, make, game, int(num_envs)), daemon=True).start()
            sides[make.__name__].append(ours)
        ready = max(pipe.recv() for pipe in sides[make.__name__])
        print(f"{make.__name__:8} ready after {ready:5.1f} s", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, pipes in sides.items():
            for pipe in pipes:
                pipe.send(True)
            rates[name].append(sum(pipe.recv() for pipe in pipes))
    for name, of_rounds in rates.items():
        for pipe in sides[name]:
            pipe.send(False)
        print(f"{name:8} {statistics.median(of_rounds):7,.0f} rows/s")
    ratios = [b / a for a, b in zip(rates["ale_py"], rates["arcadia"], strict=True)]
    print(f"median ratio {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main(*sys.argv[1:])
