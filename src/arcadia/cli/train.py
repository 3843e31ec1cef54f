"""arcadia train and resume."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from arcadia import fork_server
from arcadia.cli.common import Run, Switch, env_first, parse, value_of

if TYPE_CHECKING:
    from arcadia.config import TrainConfig
    from arcadia.runtimes import TrainResult


def train(arguments: list[str]) -> int:
    if value_of("--runtime", arguments) != "serial" and not {"-h", "--help"} & set(arguments):
        fork_server.start()  # before the imports below, for its own take equally long
    config = parse_config(arguments, prog="arcadia train")
    from arcadia.runtimes import train

    return _run(lambda: train(config), quiet=config.runtime.quiet)


def parse_config(arguments: list[str], *, prog: str) -> "TrainConfig":
    """Return the settings that options of training ask for; ENV may come first."""
    from arcadia.config import TrainConfig
    from arcadia.recipes import default_recipe, recipe
    from arcadia.validation import with_settings

    arguments, env = env_first(arguments)
    name = value_of("--recipe", arguments)
    default = recipe(name or default_recipe(env)).config
    if value_of("--total-envs", arguments) is not None:
        default = with_settings(default, {"total_envs": default.env.total_envs})
    return parse(
        tyro.conf.OmitArgPrefixes[TrainConfig],
        prog=prog,
        description="Train an agent. ENV may come first: arcadia train pong --seed 2",
        default=default,
        args=arguments,
    )


@dataclass(frozen=True)
class ResumeArguments:
    run: Run
    """Run directory."""
    total_steps: int | None = None
    """New end, in env_steps of the whole run."""
    total_minutes: float | None = None
    """New end, in minutes of training of the whole run."""
    total_episodes: int | None = None
    """New end, in episodes of the whole run."""
    stop_score: float | None = None
    """New score to stop at (mean return of the last 100 training episodes)."""
    num_workers: int | None = None
    """Another number of workers."""
    gpu_ids: tuple[int, ...] | None = None
    """Other GPUs for the workers' models, or none, after a bare --gpu-ids: on the CPU."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Log to Weights & Biases, or no longer."""
    quiet: Switch = False
    """Print nothing but warnings and errors."""


def resume(arguments: list[str]) -> int:
    given = parse(
        ResumeArguments,
        prog="arcadia resume",
        description="Continue a run from its newest checkpoint. Options replace the run's settings.",
        args=arguments,
    )
    from arcadia.runtimes import resume

    options = {key: value for key, value in vars(given).items() if key != "run"}
    return _run(lambda: resume(given.run, **options), quiet=given.quiet)


def _run(session: Callable[[], "TrainResult"], *, quiet: bool = False) -> int:
    """Run a training session and, unless it is quiet, say how it ended."""
    from arcadia.runtimes.ending import REASONS

    result = session()
    code = 0 if result.signal_number is None else 128 + result.signal_number
    if not result.is_saved:
        raise OSError(None, "the last checkpoint could not be written", str(result.run))
    if result.skipped_updates:
        warnings.warn(
            f"{result.skipped_updates:,} updates were not finite and not applied: see {result.run}/metrics.jsonl",
            stacklevel=1,
        )
    if quiet:
        return code
    score = "no episode has ended yet"
    if result.mean_return is not None:
        score = f"mean score of the last {result.num_returns} episodes {result.mean_return:.2f}"
    time = f"{result.seconds:.0f} seconds" if result.seconds < 60 else f"{result.seconds / 60:.1f} minutes"
    print(f"{REASONS[result.reason]}: {result.env_steps:,} env_steps in {time}, {score}")
    # With the limit that was reached, another session would end at once.
    later = "" if result.reason == "signal" else f" --{result.reason.replace('_', '-')} N"
    print(f"checkpoint written: arcadia eval {result.run}, arcadia resume {result.run}{later}")
    return code
