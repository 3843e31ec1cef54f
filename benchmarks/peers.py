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
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

from arcadia.speed import Training

ROUNDS = 5
SECONDS = 20
SF_SECONDS = 45  # it counts its frames by the thousand
SF_START_SECONDS = 25
SF_WARM_UP_LINES = 2  # of those that count frames, one every five seconds, once it has learned from some
SF_FRAMESKIP = 4


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


def sample_factory(python: str, architecture: str, size: int, *, is_async: bool) -> float:
    """Return decisions per second of Sample Factory's APPO: 2 workers of 8 environments, one epoch.

    They are counted from line to line of its log: the speed that it prints comes in steps of 100 decisions/s.

    Args:
        architecture: its name of the convolutions.
        size: of the fully connected layer.
        is_async: it plays and learns at once. Otherwise in turn, as its Atari example has it, and then its batches
            must use up a rollout of all environments.
    """
    options = {
        "env": "atari_pong",
        "num_workers": 2,
        "num_envs_per_worker": 8,
        "num_epochs": 1,
        "encoder_conv_architecture": architecture,
        "encoder_conv_mlp_layers": size,
        "async_rl": is_async,
        "num_batches_per_epoch": 4 if is_async else 8,
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        command = [python, "-m", "sf_examples.atari.train_atari", f"--train_dir={folder}", "--experiment=bench"]
        command += [f"--{name}={value}" for name, value in options.items()]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(SF_START_SECONDS + SF_SECONDS)
        except subprocess.TimeoutExpired:  # as it should: train_for_seconds does not end it dependably
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        counts = re.findall(r"\[([-\d]+ [:\d]+),(\d+)\].* Total num frames: ([1-9]\d*)\.", output.read())
    started, *_, ended = [
        (datetime.fromisoformat(f"{when}.{milliseconds}"), int(frames)) for when, milliseconds, frames in counts
    ][SF_WARM_UP_LINES:]
    return (ended[1] - started[1]) / (ended[0] - started[0]).total_seconds() / SF_FRAMESKIP


def main(sb3_python: str, sf_python: str) -> None:
    """Print the speeds of every round, their medians and the medians of the rounds' ratios."""
    speeds = defaultdict(list)
    a3c = ("pong", "--recipe", "a3c-ff")
    nature = (*a3c, "--torso", "nature")
    for_speed = (*nature, "--num-steps", "20", "--eval-episodes", "0")  # the others do not evaluate either
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arcadia = {
            f"Arcadia, {name}, 2 x {envs} environments": stack.enter_context(
                Training(options, 2, envs, folder / f"{name} {envs}")
            )
            for name, options, envs in (
                ("Nature", nature, 64),
                ("Nature, 20 steps, no evaluator", for_speed, 256),
                ("Nature", nature, 8),
                ("A3C-FF", a3c, 64),
            )
        }
        programs: Mapping[str, Callable[[], float]] = (
            {name: partial(speed_of, training) for name, training in arcadia.items()}
            | {
                "Stable-Baselines3 A2C, Nature, 16 environments in one process": partial(
                    stable_baselines3, sb3_python, "a2c", "dummy"
                ),
                "Stable-Baselines3 A2C, Nature, 16 environments in 16 processes": partial(
                    stable_baselines3, sb3_python, "a2c", "subproc"
                ),
                "Stable-Baselines3 PPO, Nature, 16 environments in one process, 4 epochs": partial(
                    stable_baselines3, sb3_python, "ppo", "dummy"
                ),
            }
            | {
                f"Sample Factory APPO, {name}, 2 x 8 environments, 1 epoch, {mode}": partial(
                    sample_factory, sf_python, *network, is_async=mode == "asynchronous"
                )
                for name, network, mode in (
                    ("Nature", ("convnet_atari", 512), "asynchronous"),
                    ("Nature", ("convnet_atari", 512), "synchronous"),
                    ("A3C-FF", ("convnet_impala", 256), "asynchronous"),
                )
            }
        )
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
