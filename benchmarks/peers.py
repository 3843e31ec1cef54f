"""Arcadia beside its peers on Pong: the same network, the same wrappers, every program in turn.

python benchmarks/peers.py SB3_PYTHON SF_PYTHON      # on an idle machine

SB3_PYTHON: Python of an environment for sb3_atari.py. SF_PYTHON: of one with "sample-factory[atari]" and
the ROM files of ale-py >= 0.12 copied into the folder ale_py/roms of its own ale-py.
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arcadia.speed import Training

ROUNDS = 5
SECONDS = 20
SF_WARM_UP_LINES = 2  # that say "Fps is", one every five seconds, from the first decision on
SF_START_SECONDS = 35
SF_FRAMESKIP = 4  # it counts frames


def speed_of(training: Training) -> float:
    """Return env_steps per second of a training that goes on for a while."""
    return training.measure(SECONDS).steps_per_s


def stable_baselines3(python: str, algorithm: str, vector: str) -> float:
    """Return decisions per second of Stable-Baselines3."""
    script = Path(__file__).with_name("sb3_atari.py")
    ended = subprocess.run(
        [python, script, algorithm, vector, str(SECONDS)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(ended.stdout.split()[-1])


def sample_factory(python: str, architecture: str, size: int) -> float:
    """Return decisions per second of Sample Factory's APPO: 2 workers of 8 environments, one epoch.

    Args:
        architecture: its name of the convolutions.
        size: of the fully connected layer.
    """
    options = {
        "env": "atari_pong",
        "num_workers": 2,
        "num_envs_per_worker": 8,
        "num_epochs": 1,
        "encoder_conv_architecture": architecture,
        "encoder_conv_mlp_layers": size,
        "async_rl": True,
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        command = [python, "-m", "sf_examples.atari.train_atari", f"--train_dir={folder}", "--experiment=bench"]
        command += [f"--{name}={value}" for name, value in options.items()]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(SF_START_SECONDS + SECONDS)
        except subprocess.TimeoutExpired:  # as it should: train_for_seconds does not end it dependably
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        speeds = [float(speed) for speed in re.findall(r"Fps is \(10 sec: ([\d.]+)", output.read())]
    return statistics.median([speed for speed in speeds if speed > 0][SF_WARM_UP_LINES:]) / SF_FRAMESKIP


def main(sb3_python: str, sf_python: str) -> None:
    """Print the speeds of every round, their medians and the medians of the rounds' ratios."""
    speeds = defaultdict(list)
    a3c = ("pong", "--recipe", "a3c-ff")
    nature = (*a3c, "--torso", "nature")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arcadia = {
            f"Arcadia, {network}, 2 x {envs} environments": stack.enter_context(
                Training(options, 2, envs, folder / f"{network} {envs}")
            )
            for network, options, envs in (("Nature", nature, 64), ("Nature", nature, 8), ("A3C-FF", a3c, 64))
        }
        programs: dict[str, Callable[[], float]] = {
            name: partial(speed_of, training) for name, training in arcadia.items()
        } | {
            "Stable-Baselines3 A2C, Nature, 16 environments in one process": partial(
                stable_baselines3, sb3_python, "a2c", "dummy"
            ),
            "Stable-Baselines3 A2C, Nature, 16 environments in 16 processes": partial(
                stable_baselines3, sb3_python, "a2c", "subproc"
            ),
            "Stable-Baselines3 PPO, Nature, 16 environments in one process, 4 epochs": partial(
                stable_baselines3, sb3_python, "ppo", "dummy"
            ),
            "Sample Factory APPO, Nature, 2 x 8 environments, 1 epoch": partial(
                sample_factory, sf_python, "convnet_atari", 512
            ),
            "Sample Factory APPO, A3C-FF, 2 x 8 environments, 1 epoch": partial(
                sample_factory, sf_python, "convnet_impala", 256
            ),
        }
        for _ in range(ROUNDS):
            for name, measure in programs.items():
                speeds[name].append(measure())
                print(f"{name}: {speeds[name][-1]:,.0f}", flush=True)
    for name, values in speeds.items():
        print(f"{name}: median {statistics.median(values):,.0f} decisions/s", end="")
        for ours in arcadia:
            ratio = statistics.median(mine / theirs for mine, theirs in zip(speeds[ours], values, strict=True))
            print(f"; {ours}: {ratio:.2f} times as fast", end="")
        print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
