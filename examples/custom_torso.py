"""Train Pong with a network of your own, and evaluate it.

python examples/custom_torso.py
"""

import sys
from pathlib import Path

from torch import Tensor, nn

import arcadia


class ResidualTorso(nn.Module):
    """A small residual network: [N, 4, 84, 84] -> [N, 256]. Its inputs are already normalised."""

    def __init__(self, observation_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = observation_shape
        self.first = nn.Sequential(nn.Conv2d(channels, 32, kernel_size=8, stride=8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.last = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(32 * (height // 8) * (width // 8), 256), nn.ReLU())

    def forward(self, observation: Tensor) -> Tensor:
        features = self.first(observation)
        result: Tensor = self.last(features + self.block(features))
        return result


def main(run: Path, minutes: float = 10.0) -> None:
    arcadia.train("pong", make_torso=ResidualTorso, run_dir=str(run), total_minutes=minutes, seed=1)
    scores = arcadia.evaluate(run, episodes=5, make_torso=ResidualTorso)
    print(f"mean score of {scores['episodes']} games: {scores['mean']:.1f}")


if __name__ == "__main__":
    main(Path("runs/residual"), *map(float, sys.argv[1:]))
