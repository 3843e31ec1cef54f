"""Videos of games as training goes on."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from command import needs_proc
from toy_envs import TOY, configure, make_constant_reward

from arcadia.checkpoint import load_newest
from arcadia.cli import main
from arcadia.config import EnvConfig
from arcadia.envs import VectorEnv, make_vector_env
from arcadia.errors import UserError
from arcadia.evaluation import load_run_snapshot
from arcadia.films import PeriodicFilms
from arcadia.metrics import read_metrics
from arcadia.run_directory import load_config
from arcadia.runtimes import resume, train

SMALL = {"num_envs": 2, "num_steps": 5, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,), "eval_episodes": 1}


def films(run: Path) -> list[Path]:
    return sorted((run / "videos").iterdir())


def test_serial_films_a_game_every_so_many_updates(tmp_path, capsys):
    run = tmp_path / "run"
    settings = SMALL | {"runtime": "serial", "num_workers": 1, "eval_updates": 10, "video_updates": 25}
    train(configure(TOY, "CartPole-v1", run, **settings, total_steps=600))
    told = re.findall(r"video at ([\d,]+) env_steps, score (\d+): (.*)", capsys.readouterr().out)
    rows = [row for row in read_metrics(run) if row["kind"] == "evaluation" and row["mode"] == "sampled"]
    due = [row["env_steps"] for row in rows if row["updates"] in (30, 50)]  # evaluations come every 10
    assert [int(steps.replace(",", "")) for steps, _, _ in told] == due
    assert [path for _, _, path in told] == list(map(str, films(run)))
    for _, score, path in told:
        frames, _ = imageio_ffmpeg.count_frames_and_secs(path)
        assert frames == int(score) + 1
    resume(run, total_steps=900)
    assert len(films(run)) == 3
    assert "video at" in capsys.readouterr().out


def test_films_change_nothing_of_what_is_learned(tmp_path):
    parameters = []
    for every in (None, 20):
        run = tmp_path / str(every)
        settings = SMALL | {"runtime": "serial", "num_workers": 1, "eval_updates": 10, "video_updates": every}
        train(configure(TOY, "CartPole-v1", run, **settings, total_steps=600))
        parameters.append(load_newest(run)[1].parameters)
    assert films(run)
    assert parameters[0].equal(parameters[1])


@needs_proc
def test_the_evaluator_films_beside_the_workers_and_stops_with_them(start, tmp_path):
    run = tmp_path / "run"
    options = ("--num-workers", 1, "--num-envs", 2, "--num-steps", 5, "--eval-episodes", 1, "--video-updates", 1)
    share = ("--eval-cpu-share", 0.5)
    cli = start("train", "CartPole-v1", "--run-dir", run, *options, *share, "--total-steps", 10**12)
    videos = run / "videos"
    cli.wait_until(lambda: len([*videos.glob("[!.]*")]) > 1 and len([*videos.glob(".*")]) > 0, "third video")
    os.kill(cli.process.pid, signal.SIGINT)
    assert cli.end() == 130, cli.stderr.read_text()
    cli.assert_nothing_is_left()
    assert not list(videos.glob(".*")), "what was half done is gone"
    evaluations = [row for row in read_metrics(run) if row["kind"] == "evaluation"]
    assert len(evaluations) >= len(films(run)) - 1, "a film that is always due leaves time for evaluations"
    for video in films(run):
        frames, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
        assert f"score {frames - 1}: {video}" in cli.stdout.read_text()


@pytest.mark.parametrize("decisions", [3, 24])
def test_a_film_ends_when_the_run_does(tmp_path, decisions):
    """While its game is played or, for that game has fewer decisions, while it is drawn."""
    run = tmp_path / "run"
    settings = SMALL | {"runtime": "serial", "num_workers": 1, "video_updates": 10, "eval_updates": 10**6}
    train(configure(TOY, "CartPole-v1", run, **settings, total_steps=200))
    closed: list[bool] = []

    def make_env(config: EnvConfig, **settings: Any) -> VectorEnv:
        env = make_vector_env(config, **settings)
        env.close = lambda: closed.append(True)
        return env

    films_ = PeriodicFilms(load_config(run), make_env, updates=0)
    (_, snapshot), asked = load_run_snapshot(run, best=False), itertools.count()
    assert films_.film(snapshot, lambda: next(asked) == decisions).problem == "not made, for the run ended first"
    assert next(asked) == decisions + 1
    assert not films(run)
    assert closed == [True]
    film = PeriodicFilms(load_config(run), make_vector_env, updates=0).film(snapshot, lambda: False)
    assert film.score < 24
    assert films(run) == [film.path]


def test_a_film_that_cannot_be_written_is_told(tmp_path, capsys):
    run = tmp_path / "run"
    settings = SMALL | {"runtime": "serial", "num_workers": 1, "eval_updates": 10, "video_updates": 10}
    train(configure(TOY, "CartPole-v1", run, **settings, total_steps=50))
    (run / "videos").write_text("no folder")
    resume(run, total_steps=400)
    assert "env_steps: [Errno 17] File exists" in capsys.readouterr().out


def test_what_was_left_of_a_killed_film_is_removed(tmp_path):
    run = tmp_path / "run"
    settings = SMALL | {"runtime": "serial", "num_workers": 1, "eval_updates": 10, "video_updates": 10**6}
    train(configure(TOY, "CartPole-v1", run, **settings, total_steps=50))
    (run / "videos").mkdir()
    (run / "videos" / ".training-000000000050.tmp.mp4").touch()
    (run / "videos" / "kept.mp4").touch()
    resume(run, total_steps=100)
    assert films(run) == [run / "videos" / "kept.mp4"]


def test_an_environment_without_pictures_is_refused(tmp_path):
    config = configure(TOY, "toy", tmp_path / "run", runtime="serial", num_workers=1, video_updates=10)
    with pytest.raises(UserError, match="video_updates: unknown environment 'toy'"):
        train(config, make_env=make_constant_reward)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video-updates", "0"], "video_updates must be >= 1 and"),
        (["--video-updates", "5", "--eval-episodes", "0"], "video_updates needs the evaluator"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path, capsys, options, message):
    assert main(["train", "CartPole-v1", "--run-dir", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_named_before_training(tmp_path):
    code = (
        "import sys\nsys.modules['imageio_ffmpeg'] = None\nfrom arcadia.cli import main\n"
        f"sys.exit(main(['train', 'CartPole-v1', '--video-updates', '9', '--run-dir', {str(tmp_path / 'run')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == 'arcadia: error: videos need an extra: pip install "arcadia[video]"\n'
    assert not (tmp_path / "run").exists()
