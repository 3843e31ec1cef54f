"""The command line: arcadia train | resume | eval | recipes | bench."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

import arcadia
from arcadia.types import DivergedError, ProcessError, UserError

if TYPE_CHECKING:
    from arcadia.runtimes import TrainResult

USAGE = """usage: arcadia COMMAND ...

Asynchronous advantage actor-critic.

commands:
  train ENV      train an agent: arcadia train pong
  resume RUN     continue a run from its newest checkpoint
  eval RUN       play whole games with a trained agent and print the scores
  recipes        list the named settings; `arcadia recipes NAME` shows one
  bench ENV      measure training speed against the emulator's own

`arcadia COMMAND --help` lists every option with its default and unit.
"""

PANEL_LINES = 11
T = TypeVar("T")
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "resume": _resume,
        "eval": _eval,
        "recipes": _recipes,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"arcadia {arcadia.__version__}")
        return 0
    command = commands.get(arguments[0])
    if command is None:
        return _fail(f"unknown command {arguments[0]!r}: choose from {', '.join(commands)}")
    try:
        return command(arguments[1:])
    except UserError as error:
        return _fail(str(error))
    except (DivergedError, ProcessError) as error:
        return _fail(str(error).rstrip(), 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # stdout was a pipe that closed, as with `| head`
        sys.stderr.close()
        return 141


def _fail(message: str, code: int = 2) -> int:
    print(f"arcadia: error: {message}", file=sys.stderr)
    return code


def _parse(settings: type[T], *, prog: str, description: str, args: list[str], default: T | None = None) -> T:
    """Parse arguments into `settings`; a mistake ends the process with code 2 and a short message."""
    errors = io.StringIO()
    start = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(settings, prog=prog, description=description, args=args, default=start)
    except SystemExit:
        lines = errors.getvalue().splitlines()
        if len(lines) > PANEL_LINES:  # one per option that the mistake resembles
            lines = lines[: PANEL_LINES - 3] + lines[-3:]
        print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
        raise


def _train(arguments: list[str]) -> int:
    from arcadia.config import TrainConfig
    from arcadia.recipes import recipe

    arguments, env = _env_first(arguments)
    name = _value_of("--recipe", arguments)
    defaults = recipe(name or _default_recipe(env)).config
    config = _parse(
        tyro.conf.OmitArgPrefixes[TrainConfig],
        prog="arcadia train",
        description="Train an agent. ENV may come first: arcadia train pong --seed 2",
        default=defaults,
        args=arguments,
    )
    from arcadia.runtimes import train

    return _run(lambda: train(config))


def _env_first(arguments: list[str]) -> tuple[list[str], str | None]:
    """Turn a leading ENV into `--env ENV`; return the arguments and the environment."""
    if not arguments or arguments[0].startswith("-"):
        return arguments, _value_of("--env", arguments)
    again = _value_of("--env", arguments)
    if again is not None:
        raise UserError(f"two environments given, {arguments[0]!r} and --env {again!r}: give one")
    return ["--env", *arguments], arguments[0]


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """Return the value of `--flag value` or `--flag=value`."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


def _default_recipe(env: str | None) -> str:
    from arcadia.envs.factory import find
    from arcadia.envs.names import AtariName

    return "control" if env and not isinstance(find(env), AtariName) else "atari"


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


def _resume(arguments: list[str]) -> int:
    given = _parse(
        ResumeArguments,
        prog="arcadia resume",
        description="Continue a run from its newest checkpoint. Options replace the run's settings.",
        args=arguments,
    )
    from arcadia.runtimes import resume

    options = {key: value for key, value in vars(given).items() if key != "run"}
    return _run(lambda: resume(given.run, **options))


def _run(session: Callable[[], "TrainResult"]) -> int:
    """Run a training session and say how it ended."""
    import warnings

    warnings.showwarning = lambda message, *_: print(f"arcadia: warning: {message}", file=sys.stderr)
    result = session()
    score = "none yet" if result.mean_return is None else f"{result.mean_return:.2f}"
    why = {
        "total_steps": "total_steps reached",
        "total_minutes": "total_minutes over",
        "total_episodes": "total_episodes reached",
        "stop_score": "stop_score reached",
        "signal": "stopped by a signal",
    }[result.reason]
    print(
        f"{why}: {result.env_steps:,} env_steps in {result.seconds / 60:.1f} minutes, "
        f"mean score of the last 100 episodes {score}"
    )
    if result.skipped_updates:
        print(f"{result.skipped_updates:,} updates were not finite and not applied: see {result.run}/metrics.jsonl")
    print(f"checkpoint written: arcadia eval {result.run}, arcadia resume {result.run}")
    return 0 if result.signal_number is None else 128 + result.signal_number


@dataclass(frozen=True)
class EvalArguments:
    run: Run
    """Run directory."""
    episodes: int = 100
    """Whole games to play."""
    greedy: Switch = False
    """Take the most probable action instead of sampling."""
    best: Switch = False
    """Use the best parameters of the run instead of the newest."""
    num_envs: int = 16
    """Games played at once."""
    seed: int = 1_000_000
    """Seed of games and sampling; never one that training uses."""
    json: Switch = False
    """Print the result as JSON."""


def _eval(arguments: list[str]) -> int:
    given = _parse(
        EvalArguments,
        prog="arcadia eval",
        description="Play whole games with a trained agent; write the scores to RUN/evaluations/.",
        args=arguments,
    )
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from arcadia.evaluate import evaluate_run

    bar = Progress("playing", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=given.episodes)

    def show(finished: int) -> None:
        bar.start()  # once there is something to show, not before an error
        bar.update(task, completed=finished)

    try:
        result, path = evaluate_run(
            given.run,
            episodes=given.episodes,
            greedy=given.greedy,
            best=given.best,
            num_envs=given.num_envs,
            seed=given.seed,
            on_progress=show,
        )
    finally:
        if bar.live.is_started:
            bar.stop()
    if given.json:
        print(json.dumps(result))
        return 0
    low, high = result["ci95"]
    print(
        f"{result['env']}, {result['episodes']} {result['mode']} games at {result['env_steps']:,} "
        f"env_steps\n"
        f"mean {result['mean']:.2f}   95% interval [{low:.2f}, {high:.2f}]   std {result['std']:.2f}\n"
        f"median {result['median']:.1f}   min {result['min']:.1f}   max {result['max']:.1f}   "
        f"mean length {result['mean_length']:.0f} decisions\n"
        f"written to {path}"
    )
    return 0


@dataclass(frozen=True)
class RecipesArguments:
    name: Annotated[str, tyro.conf.Positional] = ""
    """Show this recipe's fields; without it, list all."""


def _recipes(arguments: list[str]) -> int:
    from arcadia.recipes import describe, overview

    given = _parse(RecipesArguments, prog="arcadia recipes", description="List recipes.", args=arguments)
    print(describe(given.name) if given.name else overview())
    return 0


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


def _bench(arguments: list[str]) -> int:
    arguments, _ = _env_first(arguments)
    given = _parse(
        BenchArguments,
        prog="arcadia bench",
        description="Measure training speed against the emulator's own, interleaved in one run.",
        args=arguments,
    )
    from arcadia.bench import bench

    result = bench(
        given.env,
        recipe_name=given.recipe or _default_recipe(given.env),
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
        f"ratio     {result['ratio']:.1%}"
    )
    return 0
