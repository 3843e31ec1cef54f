"""arcadia eval and play."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcadia import fork_server
from arcadia.cli.common import Run, Switch, parse
from arcadia.config import EVALUATION_SEED
from arcadia.errors import UserError
from arcadia.run_directory import load_config, not_a_run

if TYPE_CHECKING:
    from arcadia.evaluation import Evaluated


@dataclass(frozen=True)
class EvalArguments:
    run: Run
    """Run directory."""
    episodes: int = 100
    """Whole games to play."""
    greedy: Switch = False
    """Take the most probable action instead of sampling."""
    best: Switch = False
    """Use the parameters of the best evaluation in training instead of the newest."""
    num_envs: int = 64
    """At most so many games at once, of Atari spread over two processes or more, of up to 32."""
    seed: int = EVALUATION_SEED
    """Seed of games and sampling; never one that training uses."""
    env: str | None = None
    """Another id of the run's game, for its protocol: ALE/Pong-v5 has sticky actions. Default: the run's."""
    noop_max: int | None = None
    """Atari: a game starts with fewer than this many random no-ops. Default: the run's."""
    videos: Switch = False
    """Show the worst, the median and the best game in RUN/videos/."""
    json: Switch = False
    """Print the result as JSON."""


def evaluate(arguments: list[str]) -> int:
    given = parse(
        EvalArguments,
        prog="arcadia eval",
        description="Play whole games with a trained agent; write the scores to RUN/evaluations/.",
        args=arguments,
    )
    if not given.run.is_dir():
        raise not_a_run(given.run)
    fork_server.start()  # before the import below, for they take equally long
    from arcadia.evaluation import evaluate_run, save_evaluation

    if given.videos:
        _check_video(given.run, None)
    with _bar("playing", given.episodes) as show:
        evaluated = evaluate_run(
            given.run,
            episodes=given.episodes,
            greedy=given.greedy,
            best=given.best,
            num_envs=given.num_envs,
            seed=given.seed,
            env=given.env,
            noop_max=given.noop_max,
            record=given.videos,
            on_progress=show,
        )
    result = evaluated.result
    print(json.dumps(result) if given.json else _describe(result))
    print(f"{evaluated.steps_per_s:,.0f} decisions/s", file=sys.stderr)
    notes = sys.stderr if given.json else sys.stdout
    print(f"written to {save_evaluation(given.run, result)}", file=notes)
    if given.videos:
        scores = result["scores"]
        ranked = sorted(range(len(scores)), key=scores.__getitem__)
        for name, game in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
            path = _default_path(given.run, evaluated, f"{name}-of-{given.episodes}")
            print(_record(evaluated, game, path), file=notes)
    return 0


def _describe(result: dict[str, Any]) -> str:
    interval = "" if result["ci95"] is None else "   95% interval [{:.2f}, {:.2f}]".format(*result["ci95"])
    human = "" if result["human_normalized"] is None else f"   human-normalised {result['human_normalized']:.2f}"
    lines = [
        f"{result['env']}, {result['episodes']} {result['mode']} games at {result['env_steps']:,} env_steps",
        f"mean {result['mean']:.2f}{interval}   std {result['std']:.2f}{human}",
        f"median {result['median']:.1f}   min {result['min']:.1f}   max {result['max']:.1f}   "
        f"mean length {result['mean_length']:.0f} decisions",
    ]
    if result["ci95"] is None and result["episodes"] > 1:
        lines.append(
            f"{result['distinct_episodes']} of these games are distinct: with the most probable actions and no sticky "
            "ones this game repeats itself, so there is no interval"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class PlayArguments:
    run: Run
    """Run directory."""
    video: Path | None = None
    """Write the game to this .mp4 or .gif. Default: a file in RUN/videos/, unless --render is given."""
    render: Switch = False
    """Show the game in a window, once it has been played."""
    greedy: Switch = False
    """Take the most probable action instead of sampling."""
    best: Switch = False
    """Use the parameters of the best evaluation in training instead of the newest."""
    seed: int = 2_000_000
    """Seed of the game and of sampling."""


def play(arguments: list[str]) -> int:
    given = parse(
        PlayArguments,
        prog="arcadia play",
        description="Play one game with a trained agent and show it: the picture, the score, what the agent expects "
        "(value) and how probable each action is.",
        args=arguments,
    )
    from arcadia.evaluation import evaluate_run
    from arcadia.video import check_screen, show

    if not given.run.is_dir():
        raise not_a_run(given.run)
    if given.render:
        check_screen()
    writes_video = given.video is not None or not given.render
    if writes_video:
        _check_video(given.run, given.video)
    with _bar("playing", 1) as progress:
        evaluated = evaluate_run(
            given.run,
            episodes=1,
            greedy=given.greedy,
            best=given.best,
            seed=given.seed,
            record=True,
            on_progress=progress,
        )
    recording, game = evaluated.games[0]
    print(f"score {game.score:g}")
    if given.render:
        show(evaluated.config.env, recording, game)
    if writes_video:
        print(_record(evaluated, 0, given.video or _default_path(given.run, evaluated, "game")))
    return 0


def _check_video(run: Path, path: Path | None) -> None:
    """Find out that a game cannot be shown, or a video not be written, before it is played."""
    from arcadia.envs import make_camera
    from arcadia.video import check_video_path

    make_camera(load_config(run).env, num_envs=1, seed=0).close()
    if path is None:
        path = run / "videos" / "game.mp4"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written ({error.strerror}): give --video PATH") from None
    check_video_path(path)


def _default_path(run: Path, evaluated: "Evaluated", what: str) -> Path:
    from arcadia.evaluation import evaluation_name

    return run / "videos" / f"{evaluation_name(evaluated.result, what)}.mp4"


def _record(evaluated: "Evaluated", index: int, path: Path) -> str:
    """Write one game as a video; return a line about it."""
    from arcadia.video import record

    recording, game = evaluated.games[index]
    with _bar("recording", game.stop - game.start + 1) as show:
        frames = record(evaluated.config.env, recording, game, path, on_progress=show)
    return f"{path}: score {game.score:g}, {frames:,} frames"


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, once there is something to show; yields what sets its position."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    bar = Progress(title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=total)

    def show(completed: int) -> None:
        bar.start()
        bar.update(task, completed=completed)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
