"""Training speed beside Stable-Baselines3 on Pong: the same frames, Nature's network, 16 environments, in turns.

python -m venv peers && peers/bin/pip install torch stable-baselines3 ale-py opencv-python-headless
python benchmarks/peers.py peers/bin/python      # on an idle machine
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
SECONDS = 20.0
WARM_UP_SECONDS = 5.0
NUM_ENVS = 16
PEERS = [(algorithm, vec_env) for algorithm in ("a2c", "ppo") for vec_env in ("dummy", "subproc")]


def arcadia(run: Path) -> float:
    """Train with the recipe a3c-ff and Nature's network, all outputs on; return env_steps per second."""
    command = [sys.executable, "-m", "arcadia", "train", "pong", "--recipe", "a3c-ff", "--torso", "nature"]
    command += ["--num-envs", str(NUM_ENVS), "--run-dir", str(run), "--total-steps", "1000000000"]
    command += ["--total-minutes", str((WARM_UP_SECONDS + SECONDS + 5) / 60)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    rows = [row for row in rows if row["seconds"] >= rows[0]["seconds"] + WARM_UP_SECONDS]
    first, last = rows[0], rows[-2]  # the last is written after the workers have stopped
    return float((last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"]))


def peer(python: str, algorithm: str, vec_env: str) -> float:
    """Train with Stable-Baselines3; return env_steps per second."""
    command = [python, str(Path(__file__).with_name("peer_sb3.py")), algorithm, vec_env, str(NUM_ENVS), str(SECONDS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(python: str) -> None:
    """Print the speeds of every round, and the medians of the ratios."""
    ratios: dict[tuple[str, str], list[float]] = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(ROUNDS):
            ours = arcadia(Path(folder) / str(round_))
            line = [f"arcadia {ours:,.0f}"]
            for name in PEERS:
                theirs = peer(python, *name)
                ratios[name].append(ours / theirs)
                line.append(f"{' '.join(name)} {theirs:,.0f}")
            print(", ".join(line), "env_steps/s", flush=True)
    for name, values in ratios.items():
        print(f"against {' '.join(name)}: {statistics.median(values):.2f} times as fast")


if __name__ == "__main__":
    main(sys.argv[1])
