"""The report page: curves, tables, what differed between runs, how they went, and videos, in one HTML file."""

import base64
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import arcadia
from arcadia.config import EVALUATION_SEED
from arcadia.errors import UserError
from arcadia.published import RANDOM_AND_HUMAN, human_normalized, published_scores
from arcadia.report.runs import AXES, NOT_COMPARED, Group, Run, differences, group, read_run

MAX_VIDEO_BYTES = 20 * 2**20  # a larger one is linked instead of embedded
MAX_TRAINING_VIDEOS = 6  # of a run
MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif"}
NUM_RESAMPLES = 2000


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Write OUTPUT/report.html, which needs no other file, and its curves as PNG; return the page's path.

    Args:
        paths: run directories, of any environments, recipes and seeds.
        output: folder, made if it is missing.

    Raises:
        UserError: a run cannot be read, the folder cannot be written, or an extra is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader
        from matplotlib.figure import Figure  # noqa: F401
        from scipy import stats  # noqa: F401
    except ModuleNotFoundError:
        raise UserError('reports need an extra: pip install "arcadia[report]"') from None
    found = [read_run(path) for path in {path.resolve(): path for path in paths}.values()]
    runs = [run for run in found if run.train]
    if not runs:
        raise UserError(f"{found[0].path} has no figures yet: train it longer")
    for run in found:
        if not run.train:
            warnings.warn(f"{run.path} has no figures yet: it is left out", stacklevel=2)
    by_env: dict[str, list[Run]] = {}
    for run in runs:
        by_env.setdefault(run.game or run.config.env.env, []).append(run)
    template = Environment(loader=PackageLoader("arcadia.report"), autoescape=True).get_template("report.html.j2")
    page = output / "report.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
        sections = [_section(env, members, output) for env, members in by_env.items()]
        text = template.render(
            default_seed=EVALUATION_SEED,
            version=arcadia.__version__,
            date=time.strftime("%Y-%m-%d %H:%M"),
            sections=sections,
            aggregates=_aggregates(runs),
        )
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output {output} cannot be written ({error.strerror}): give another --output") from None
    return page


def _section(env: str, runs: list[Run], output: Path) -> dict[str, Any]:
    """Describe the runs of one environment to the template; write their curves to `output` as PNG."""
    from arcadia.report.figures import health, learning_curves, save_png, svg

    groups, game = group(runs), runs[0].game
    random_human = dict(zip(("random play", "human tester"), RANDOM_AND_HUMAN.get(game or "", ()), strict=False))
    curves = {axis: learning_curves(groups, axis, random_human) for axis in AXES}
    for axis, figure in curves.items():
        save_png(figure, output / f"{env.replace('/', '-')}-{axis}.png")
    return {
        "env": env,
        "ids": sorted({run.config.env.env for run in runs}),
        "curves": {AXES[axis]: svg(figure, f"{env} {axis}") for axis, figure in curves.items()},
        "results": [_result(each) for each in groups],
        "evaluations": [_evaluation(run, final) for run in runs for final in run.final],
        "published": published_scores(game),
        "has_human": bool(random_human),
        "health": svg(health(groups), f"{env} health"),
        "runs": [_run(run) for run in runs],
        "differences": differences(runs),
        "videos": [
            _video(video, _caption(video.stem) + f", {run.name}" * (len(runs) > 1))
            for run in runs
            for video in _videos(run)
        ],
    }


def _result(each: Group) -> dict[str, Any]:
    """Describe how a group ended: the mean of its runs' last 100 training games."""
    scores = [run.score for run in each.runs if run.score is not None]
    game = each.runs[0].game
    mean = float(np.mean(scores)) if scores else None
    return {
        "label": each.label,
        "seeds": len({run.config.runtime.seed for run in each.runs}),
        "mean": mean,
        "scores": scores,
        "human": None if mean is None else human_normalized(game, mean),
        "env_steps": float(np.mean([run.train[-1]["env_steps"] for run in each.runs])),
        "frames": float(np.mean([run.train[-1]["frames"] for run in each.runs])),
        "minutes": float(np.mean([run.train[-1]["seconds"] for run in each.runs])) / 60,
    }


def _evaluation(run: Run, final: dict[str, Any]) -> dict[str, Any]:
    mean = float(final["mean"])
    return {"run": run.name, "human": human_normalized(run.game, mean), **final}


def _run(run: Run) -> dict[str, Any]:
    last = run.train[-1]
    return {
        "name": run.name,
        "recipe": run.config.recipe,
        "seed": run.config.runtime.seed,
        "workers": run.config.runtime.num_workers,
        "envs": run.config.envs_per_worker,
        "dtype": run.config.model.dtype,
        "steps_per_s": last["env_steps"] / max(last["seconds"], 1e-9),
        "updates": last["updates"],
        "episodes": last["episodes"],
        "staleness": float(np.nanmean(run.column("staleness"))) if np.isfinite(run.column("staleness")).any() else None,
        "skipped": run.skipped_updates,
    }


def _videos(run: Run) -> list[Path]:
    """Return the videos of a run's evaluations, and the last of those that were made in training."""
    videos = sorted(path for path in (run.path / "videos").glob("[!.]*") if path.suffix.lower() in MEDIA_TYPES)
    in_training = [path for path in videos if path.name.startswith("training-")]
    return [path for path in videos if path not in in_training[:-MAX_TRAINING_VIDEOS]]


def _caption(stem: str) -> str:
    """Return the name of a video file in words."""
    if found := re.fullmatch(r"training-(\d+)", stem):
        return f"in training, at {int(found[1]):,} env_steps"
    what = r"((?:worst|median|best)-of-\d+|game)(?:-(seed-\d+))?"
    if found := re.fullmatch(rf"(\w+)-(newest|best)-(\d{{12}})-(.+?-)?{what}", stem):
        mode, parameters, env_steps, protocol, game, seed = found.groups("")
        described = [mode, f"{parameters} parameters, of {int(env_steps):,} env_steps", protocol.rstrip("-")]
        return ", ".join(filter(None, [*described, game.replace("-", " "), seed.replace("-", " ")]))
    return stem


def _video(path: Path, caption: str) -> dict[str, str]:
    """Return an embedded video, or a link to a large one."""
    try:
        if path.stat().st_size > MAX_VIDEO_BYTES:
            return {"caption": caption, "link": path.resolve().as_uri()}
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): delete it") from None
    media_type = MEDIA_TYPES[path.suffix.lower()]
    return {"caption": caption, "element": media_type.partition("/")[0], "source": f"data:{media_type};base64,{data}"}


def _aggregates(runs: list[Run]) -> list[dict[str, Any]]:
    """Return, for each group of runs of several games, the interquartile mean of human-normalised scores.

    The 95% interval resamples the runs of each game (stratified bootstrap; Agarwal et al. 2021, arXiv:2108.13264).
    There is none where a game has one run only.
    """
    from scipy.stats import trim_mean

    rows = []
    for each in group(runs, NOT_COMPARED | {"env.env"}):
        games: dict[str | None, list[float]] = {}
        for run in each.runs:
            human = None if run.score is None else human_normalized(run.game, run.score)
            if human is not None:
                games.setdefault(run.game, []).append(human)
        if len(games) < 2:
            continue
        scores = [np.array(values) for values in games.values()]
        interval = None
        if min(map(len, scores)) > 1:
            rng = np.random.default_rng(0)
            draws = [values[rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))] for values in scores]
            means = trim_mean(np.concatenate(draws, axis=1), 0.25, axis=1)
            interval = np.percentile(means, [2.5, 97.5]).tolist()
        iqm = float(trim_mean(np.concatenate(scores), 0.25))
        count = sum(map(len, scores))
        rows.append({"label": each.label, "games": len(games), "runs": count, "iqm": iqm, "interval": interval})
    return rows
