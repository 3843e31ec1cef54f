"""What it costs to look: training with everything on against everything off, and evaluation against the emulator alone.

python benchmarks/observing.py RUN      # a run of Pong; on an idle machine
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import arcadia
from arcadia.run_directory import load_config
from arcadia.speed import Training, env_only_steps_per_s

PAIRS = 12
SECONDS = 30.0  # half of what lies between two checkpoints by default
# A checkpoint falls due by the clock, which also counts the other side's turns: twice the default is as often.
ON = ("--wandb", "offline", "--video-updates", "1000", "--checkpoint-seconds", "120")
OFF = ("--eval-episodes", "0", "--checkpoint-seconds", "1000000", "--quiet")


def main(run: Path) -> None:
    """Print the two ratios, and what they are made of."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Training(("pong", *options), 2, 16, Path(folder) / name) for name, options in (("on", ON), ("off", OFF))
        ]
        with sides[0], sides[1]:
            for _ in range(PAIRS):
                on, off = (side.measure(SECONDS).steps_per_s for side in sides)
                pairs.append((on, off))
                print(f"training: everything on {on:,.0f}, off {off:,.0f} env_steps/s: {on / off:.1%}", flush=True)
    on, off = map(sum, zip(*pairs, strict=True))
    print(f"median {statistics.median(on / off for on, off in pairs):.1%}, all rounds together {on / off:.1%}")
    cores = os.cpu_count() or 1
    config = load_config(run).env
    before = env_only_steps_per_s(config, cores, config.num_envs or 16, 20)
    started = time.perf_counter()
    result = arcadia.evaluate(run, episodes=100)
    seconds = time.perf_counter() - started
    after = env_only_steps_per_s(config, cores, config.num_envs or 16, 20)
    steps_per_s, ceiling = result["mean_length"] * result["episodes"] / seconds, (before + after) / 2
    print(f"evaluation: 100 games in {seconds:.0f} s, {steps_per_s:,.0f} of {ceiling:,.0f} decisions/s: ", end="")
    print(f"{steps_per_s / ceiling:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
