"""arcadia bench."""

import json
import sys
from dataclasses import dataclass
from typing import Any

from arcadia.cli.common import Switch, env_first, parse_known
from arcadia.cli.train import parse_config


@dataclass(frozen=True)
class BenchArguments:
    num_workers: tuple[int, ...] = ()
    """Processes, in training and in the env-only measurement; of several numbers each is measured. Default: one per
    core."""
    num_envs: tuple[int, ...] = ()
    """Environments per process; of several numbers each is measured. Default: the recipe's."""
    seconds: float = 30.0
    """Seconds of env-only play and of training, each, measured in turns; of each number of workers and envs. Training
    is measured for some ten seconds a round at least."""
    json: Switch = False
    """Print the result as JSON, a line for each number of workers and envs."""


def bench(arguments: list[str]) -> int:
    arguments, _ = env_first(arguments)
    given, options = parse_known(
        BenchArguments,
        prog="arcadia bench",
        description="Measure training speed against the environments' own, interleaved in one run: arcadia bench pong. "
        "Takes the options of `arcadia train` too, such as --recipe a3c-ff --torso nature.",
        args=arguments,
    )
    config = parse_config(options, prog="arcadia bench")
    from arcadia.bench import bench

    results = bench(
        config,
        options,
        num_workers=given.num_workers,
        num_envs=given.num_envs,
        seconds=given.seconds,
        on_progress=lambda text: print(text, file=sys.stderr),
    )
    if given.json:
        for result in results:
            print(json.dumps(result))
    else:
        print_results(results)
    return 0


def print_results(results: list[dict[str, Any]]) -> None:
    """Print one result in lines, or several as a table."""
    if len(results) == 1:
        _print_one(results[0])
    else:
        _print_table(results)


def _heading(result: dict[str, Any]) -> str:
    network = result["torso"] if result["core"] == "none" else f"{result['torso']} + {result['core']}"
    return f"{result['env']}, recipe {result['recipe']}, network {network}, evaluator {result['evaluator']}"


def _print_one(result: dict[str, Any]) -> None:
    print(
        f"{_heading(result)}, {result['num_workers']} workers x {result['num_envs']} envs, {result['dtype']}\n"
        f"env only      {result['env_only_steps_per_s']:,.0f} env_steps/s\n"
        f"training      {result['train_steps_per_s']:,.0f} env_steps/s "
        f"({result['train_frames_per_s']:,.0f} frames/s)\n"
        f"ratio         {result['ratio']:.1%}\n"
        f"time          {', '.join(f'{name} {share:.1%}' for name, share in result['time'].items())}\n"
        f"staleness     {result['staleness']:.2f} updates\n"
        f"first update  after {result['first_update_s']:.1f} s\n"
        f"memory        {result['memory_mib']:,.0f} MiB"
    )
    for name, text in _of_gpus(result).items():
        print(f"{name:14}{text}")


def _of_gpus(result: dict[str, Any]) -> dict[str, str]:
    """Return what is said of GPUs, by name; nothing where the models are on the CPU."""
    if "copies_per_s" not in result:
        return {}
    busy, memory = result["gpu_utilization"], result["gpu_memory_mib"]
    return {
        "GPU busy": "unknown" if busy is None else f"{busy:.0%}",
        "GPU memory": "unknown" if memory is None else f"{memory:,.0f} MiB",
        "copies": f"{result['copies_per_s']:,.0f}/s",
    }


def _print_table(results: list[dict[str, Any]]) -> None:
    print(f"{_heading(results[0])}; env only and training in env_steps/s, memory in MiB")
    parts = list(results[0]["time"])
    columns = ["workers", "envs", "dtype", "env only", "training", "frames/s", "ratio", *parts, "staleness"]
    rows = [[*columns, "first update", "memory", *_of_gpus(results[0])]]
    rows += [
        [
            str(result["num_workers"]),
            str(result["num_envs"]),
            result["dtype"],
            f"{result['env_only_steps_per_s']:,.0f}",
            f"{result['train_steps_per_s']:,.0f}",
            f"{result['train_frames_per_s']:,.0f}",
            f"{result['ratio']:.1%}",
            *(f"{result['time'][part]:.1%}" for part in parts),
            f"{result['staleness']:.2f}",
            f"{result['first_update_s']:.1f} s",
            f"{result['memory_mib']:,.0f}",
            *_of_gpus(result).values(),
        ]
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
