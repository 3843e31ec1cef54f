"""Videos: the same games again, one frame per decision, and a legible panel."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from toy_envs import TOY, configure

from arcadia.cli import main
from arcadia.config import EnvConfig
from arcadia.envs import make_camera, make_vector_env
from arcadia.errors import UserError
from arcadia.evaluation import evaluate_run
from arcadia.player import Decision
from arcadia.recipes import recipe
from arcadia.runtimes import train
from arcadia.video import PANEL_WIDTH, Scene, draw, record, replay

TOWERS = recipe("towers-24").config.env  # forced actions, one action less
A3G = recipe("a3g-lstm").config.env  # cropped, time limit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "run"
    train(configure(TOY, "CartPole-v1", path, runtime="serial", num_envs=3, total_steps=600, eval_episodes=0))
    return path


def _actions(env: object, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size = (count, env.num_envs)
    if env.spec.is_continuous:
        return list(rng.uniform(-1, 1, (*size, env.spec.num_actions)).astype(np.float32))
    return list(rng.integers(env.spec.num_actions, size=size))


def test_a_camera_films_whole_games() -> None:
    camera = make_camera(EnvConfig(env="Pendulum-v1", stagger=True), num_envs=3, seed=0)
    camera.reset()
    assert camera.step(np.zeros((3, 1), np.float32)).cut is None


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("pong", EnvConfig(), (210, 160)),
        ("PongNoFrameskip-v4", A3G, (210, 160)),
        ("Breakout-v0", TOWERS, (210, 160)),
        ("CartPole-v1", EnvConfig(), (400, 600)),
        ("InvertedPendulumSwingupBulletEnv-v0", EnvConfig(), (240, 320)),
    ],
)
def test_a_camera_goes_through_the_same_games(name: str, config: EnvConfig, size: tuple[int, int]) -> None:
    config = replace(config, env=name)
    env = make_vector_env(config, num_envs=2, seed=5)
    camera = make_camera(config, num_envs=2, seed=5)
    env.reset()
    camera.reset()
    for action in _actions(env, 400):
        step, shown = env.step(action), camera.step(action)
        for name_ in ("reward", "terminated", "truncated", "reset_next", "frames"):
            np.testing.assert_array_equal(getattr(step, name_), getattr(shown, name_))
    picture = camera.picture(1)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5
    if name == "pong":
        grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA).astype(int)
        same, other = (np.abs(grey - step.observation[b, -1]).mean() for b in (1, 0))
        assert same < 2
        assert same < other


@pytest.mark.parametrize("name", ["pong", "SpaceInvaders-v0", "ALE/Pong-v5"])
def test_pace_is_that_of_the_emulators_60_frames_a_second(name: str) -> None:
    config = EnvConfig(env=name, color=True)
    camera = make_camera(config, num_envs=1, seed=0)
    camera.reset()
    frames = [int(camera.step(action).frames[0]) for action in _actions(camera, 300)]
    assert camera.steps_per_s == pytest.approx(60 / np.mean(frames), rel=0.05)


def test_a_game_is_replayed_from_its_first_decision_to_its_last(run: Path) -> None:
    """Seven games in three environments: the later ones start in the middle of the recording."""
    evaluated = evaluate_run(run, episodes=7, num_envs=3, record=True)
    recording = evaluated.games[0][0]
    assert [game.score for game in recording.games] == evaluated.result["scores"]
    last = recording.games[-1]
    assert last.start > 0
    camera = make_camera(evaluated.config.env, num_envs=3, seed=recording.seed)
    steps, scores, values = [], [], []
    for scene in replay(camera, recording, last):
        steps.append(scene.step)
        scores.append(scene.score)
        values.append(scene.values[-1])
        if scene.step == 0:
            first, start = scene.picture, np.copy(camera._env.envs[last.env].unwrapped.state)
    assert steps == list(range(int(last.score) + 1)), "CartPole pays 1 a decision"
    assert scores == steps
    assert values[:-1] == [float(d.value[last.env]) for d in recording.decisions[last.start : last.stop]]
    again = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    again.reset()
    assert (np.abs(start) <= 0.05).all(), "not the state of a new game"
    again.unwrapped.state = start
    assert (again.render() == first).all()


def test_an_environment_that_does_not_repeat_itself_is_not_shown(run: Path) -> None:
    """Other games under another seed: CartPole pays 1 a decision whatever happens, but the game ends elsewhere."""
    evaluated = evaluate_run(run, episodes=1, record=True)
    recording, game = evaluated.games[0]
    camera = make_camera(evaluated.config.env, num_envs=1, seed=recording.seed + 1)
    with pytest.raises(UserError, match="did not repeat itself"):
        list(replay(camera, recording, game))
    rewards = [decision._replace(reward=decision.reward * 2) for decision in recording.decisions]
    camera = make_camera(evaluated.config.env, num_envs=1, seed=recording.seed)
    with pytest.raises(UserError, match="did not repeat itself"):
        list(replay(camera, recording._replace(decisions=rewards), game))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_has_a_frame_per_decision_and_the_right_size(run: Path, tmp_path: Path, suffix: str) -> None:
    evaluated = evaluate_run(run, episodes=1, record=True)
    recording, game = evaluated.games[0]
    path = tmp_path / f"game{suffix}"
    seen: list[int] = []
    count = record(evaluated.config.env, recording, game, path, on_progress=seen.append)
    assert count == game.score + 1
    assert seen == list(range(1, count + 1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == count
    assert seconds == pytest.approx(count / 50, rel=0.1, abs=0.1)
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["source_size"]
    assert (width, height) == (600 + PANEL_WIDTH, 420)
    if suffix == ".gif":
        with Image.open(path) as picture:
            assert picture.n_frames == count


def test_bars_are_as_long_as_actions_are_probable() -> None:
    probabilities = np.array([[0.0, 0.0, 0.0], [0.5, 0.25, 0.25]], np.float32)
    decision = Decision(np.array([0, 1]), np.zeros(2, np.float32), probabilities, np.zeros(2, np.float32))
    scene = Scene(np.zeros((210, 160, 3), np.uint8), 3, 2.0, decision, [0.1, 0.2], env=1)
    page = draw(scene, "pong", ("NOOP", "FIRE", "RIGHT"))
    assert page.shape == (420, 320 + PANEL_WIDTH, 3)
    lengths = []
    for row in range(3):
        line = page[176 + row * 30 + 8, 320 + 110 : 320 + PANEL_WIDTH - 14 - 40]
        lengths.append(int((line.sum(1) > 200).sum()))
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=3)
    assert lengths[1] == pytest.approx(lengths[2], abs=2)
    blue = (90, 170, 255)
    assert (page[176 + 30 + 8] == blue).all(1).any(), "the chosen action stands out"
    assert not (page[176 + 8] == blue).all(1).any()


@pytest.mark.parametrize("num_actions", [1, 6, 18])
def test_any_number_of_actions_fits(num_actions: int) -> None:
    decision = Decision(
        np.array([[-1.0] * num_actions], np.float32), np.zeros(1, np.float32), None, np.zeros(1, np.float32)
    )
    scene = Scene(np.zeros((210, 160, 3), np.uint8), 0, 0.0, decision, [0.0], env=0)
    page = draw(scene, "x", tuple(map(str, range(num_actions))))
    used = np.flatnonzero((page[:, 320:] == (90, 170, 255)).all(2).any(1))
    assert used.max() < 420 - 4
    assert len(used) >= 2 * num_actions


def test_a_window_and_a_missing_screen(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert main(["play", str(run), "--render"]) == 2
    output, error = capsys.readouterr()
    assert "use --video instead of --render" in error
    assert "score" not in output, "said before a game is played"
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert main(["play", str(run), "--render"]) == 0
    assert not (run / "videos").exists(), "--render alone writes no file"


def test_play_and_eval_write_videos_into_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert main(["play", str(run)]) == 0
    (video,) = (run / "videos").iterdir()
    output, errors = capfd.readouterr()
    assert "XDG_RUNTIME_DIR" not in errors, "nobody wants a screen"
    assert f"{video}: score " in output
    assert main(["eval", str(run), "--episodes", "5", "--videos", "--greedy"]) == 0
    output = capfd.readouterr().out
    scores = [float(line.split("score ")[1].split(",")[0]) for line in output.splitlines() if ".mp4" in line]
    assert len(scores) == 3
    assert scores == sorted(scores)
    assert f"min {scores[0]:.1f}   max {scores[2]:.1f}" in output
    assert f"median {scores[1]:.1f}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "game.avi"], "must end in .mp4 or .gif"),
        (["--video", "/proc/game.mp4"], "video /proc/game.mp4 cannot be written"),
        (["--video", "folder.mp4"], "video folder.mp4 is a folder"),
        (["--video", "no/such/folder/game.mp4"], "the folder no/such/folder does not exist"),
        (["--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["--best"], "no evaluation that was completed"),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    assert main(["play", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_named(run: Path) -> None:
    code = (
        "import sys\nfor package in ('PIL', 'imageio_ffmpeg'): sys.modules[package] = None\n"
        f"from arcadia.cli import main\nsys.exit(main(['play', {str(run)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert 'pip install "arcadia[video]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_recording_keeps_the_scores(run: Path) -> None:
    plain = evaluate_run(run, episodes=5, num_envs=2)
    recorded = evaluate_run(run, episodes=5, num_envs=2, record=True)
    assert not plain.games
    assert plain.result == recorded.result
    assert {game.env for _, game in recorded.games} == {0, 1}


def test_a_torn_video_is_no_video(run: Path, tmp_path: Path) -> None:
    """ffmpeg is stopped by a limit of the size of files, and keeps quiet about it."""
    code = (
        "import resource, sys\nfrom arcadia.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        f"sys.exit(main(['play', {str(run)!r}, '--video', 'x.mp4']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "arcadia: error: video x.mp4 cannot be written (ffmpeg failed)" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_gif_of_a_fast_environment_shows_fewer_frames(run: Path, tmp_path: Path, monkeypatch) -> None:
    """Browsers show more than 50 frames a second at 10."""
    monkeypatch.setattr("arcadia.video.MAX_GIF_FPS", 20.0)
    evaluated = evaluate_run(run, episodes=1, record=True)
    (recording, game), path = evaluated.games[0], tmp_path / "game.gif"
    count = record(evaluated.config.env, recording, game, path)
    assert count == np.ceil((game.score + 1) / 3), "CartPole's 50 a second become 16.7"
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == count
    assert seconds == pytest.approx((game.score + 1) / 50, rel=0.15)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("videos", "evaluations"))
    copy.chmod(0o500)
    for command in (["play", str(copy)], ["eval", str(copy), "--episodes", "2"], ["eval", str(copy), "--videos"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "cannot be written" in error
        assert "Traceback" not in error


def test_json_output_is_json_alone(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", str(run), "--episodes", "2", "--json", "--videos"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2


@pytest.mark.parametrize("command", [("play",), ("eval", "--videos")])
def test_that_an_environment_has_no_pictures_is_found_out_before_it_is_played(tmp_path, command):
    """A game of this one never ends."""
    program = [sys.executable, str(Path(__file__).with_name("toy_command.py"))]
    settings = ["--num-workers", "1", "--num-epochs", "1", "--eval-episodes", "0", "--total-steps", "100", "--quiet"]
    subprocess.run([*program, "train", "Endless-v0", "--run-dir", "run", *settings], cwd=tmp_path, check=True)
    ended = subprocess.run([*program, command[0], "run", *command[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Endless-v0 has no pictures to show" in ended.stderr
    assert "playing" not in ended.stderr
