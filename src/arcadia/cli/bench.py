"""arcadia bench."""

import json
import sys
from dataclasses import dataclass

from arcadia.cli.common import Switch, env_first, parse


@dataclass(frozen=True)
class BenchArguments:
    env: str
    """Environment id."""
    recipe: str | None = None
    """Recipe to train with. Default: as for `arcadia train`."""
    num_workers: int | None = None
    """Processes, in training and in the env-only measurement. Default: one per core."""
    num_envs: int | None = None
    """Environments per process. Default: the recipe's."""
    seconds: float = 30.0
    """Seconds of env-only play and of training, each, measured in turns."""
    json: Switch = False
    """Print the result as JSON."""


def bench(arguments: list[str]) -> int:
    arguments, _ = env_first(arguments)
    given = parse(
        BenchArguments,
        prog="arcadia bench",
        description="Measure training speed against the emulator's own, interleaved in one run.",
        args=arguments,
    )
    from arcadia.bench import bench
    from arcadia.recipes import default_recipe

    result = bench(
        given.env,
        recipe_name=given.recipe or default_recipe(given.env),
        on_progress=lambda text: print(text, file=sys.stderr),
        **{name: getattr(given, name) for name in ("num_workers", "num_envs", "seconds")},
    )
    if given.json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['env']}, recipe {result['recipe']}, {result['num_workers']} workers x "
        f"{result['num_envs']} envs, {result['dtype']}, evaluator {result['evaluator']}\n"
        f"env only  {result['env_only_steps_per_s']:,.0f} env_steps/s\n"
        f"training  {result['train_steps_per_s']:,.0f} env_steps/s "
        f"({result['train_frames_per_s']:,.0f} frames/s)\n"
        f"ratio     {result['ratio']:.1%}\n"
        f"time      {', '.join(f'{name} {share:.1%}' for name, share in result['time'].items())}\n"
        f"memory    {result['memory_mib']:,.0f} MiB"
    )
    return 0
