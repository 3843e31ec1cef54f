"""Play a trained control agent in a plain gymnasium loop.

arcadia train Pendulum-v1 --run-dir runs/pendulum
python examples/evaluate_in_gymnasium.py runs/pendulum
"""

import sys
from pathlib import Path

import gymnasium

import arcadia
from arcadia.run_directory import load_config


def main(run: str) -> float:
    """Play one episode with the most probable actions; return its score."""
    env = gymnasium.make(load_config(Path(run)).env.env)
    agent = arcadia.load(run)
    observation, _ = env.reset(seed=0)
    score, terminated, truncated = 0.0, False, False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation, greedy=True))
        score += float(reward)
    return score


if __name__ == "__main__":
    print(f"score {main(sys.argv[1]):.1f}")
