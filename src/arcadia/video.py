"""Videos of recorded games: the picture, and beside it what the agent decides and expects."""

import contextlib
import functools
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from arcadia.config import EnvConfig
from arcadia.envs import Camera, make_camera
from arcadia.errors import UserError
from arcadia.player import Decision, Game, Recording
from arcadia.types import Picture

PANEL_WIDTH = 260
MIN_HEIGHT = 420
SUFFIXES = (".mp4", ".gif")
MAX_GIF_FPS = 50.0
_NO_SCREEN = ("dummy", "offscreen")  # drivers that pygame falls back on
_BACKGROUND, _TEXT, _FAINT, _ACCENT = (24, 26, 32), (235, 235, 240), (120, 124, 136), (90, 170, 255)
_MARGIN = 14


class Scene(NamedTuple):
    """One moment of a game."""

    picture: Picture
    step: int  # decisions so far
    score: float  # so far
    decision: Decision | None  # the next one; None at the end
    values: list[float]  # predicted so far
    env: int  # index of the environment


def check_video_path(path: Path) -> None:
    """Raise UserError where no video can be written to `path`, or an extra is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"video {path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"video {path}: the folder {path.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"video {path} cannot be written ({error.strerror}): give another path") from None
    if path.is_dir():
        raise UserError(f"video {path} is a folder: give another path")
    check_video_extra()


def check_video_extra() -> None:
    """Raise UserError where the extra that makes videos, or its ffmpeg, is missing."""
    try:
        import imageio_ffmpeg
        import PIL  # noqa: F401

        imageio_ffmpeg.get_ffmpeg_exe()
    except ModuleNotFoundError:
        raise UserError('videos need an extra: pip install "arcadia[video]"') from None
    except RuntimeError as error:
        raise UserError(f"videos need ffmpeg: {error}") from None


def record(
    config: EnvConfig,
    recording: Recording,
    game: Game,
    path: Path,
    *,
    on_progress: Callable[[int], None] = lambda frames: None,
) -> int:
    """Play a recorded game again and write it to `path`, .mp4 or .gif; return the number of frames.

    There is a frame before each decision and one after the last, at the pace that people play at. A gif shows at most
    MAX_GIF_FPS of them a second and leaves out the rest: browsers slow down faster ones.

    Raises:
        UserError: the path, the environment or this machine does not allow it.
    """
    check_video_path(path)
    with _no_screen():
        camera = make_camera(config, num_envs=recording.num_envs, seed=recording.seed)
        try:
            return _write(path, _pages(config, camera, recording, game), camera.steps_per_s, on_progress)
        except OSError as error:
            reason = error.strerror or "ffmpeg failed"
            raise UserError(f"video {path} cannot be written ({reason}): give another path") from None
        finally:
            camera.close()


@contextlib.contextmanager
def _no_screen() -> Iterator[None]:
    """Keep SDL, with which classic control draws its pictures, from looking and complaining about a screen."""
    if "SDL_VIDEODRIVER" in os.environ:
        yield
        return
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        yield
    finally:
        del os.environ["SDL_VIDEODRIVER"]


def check_screen() -> None:
    """Raise UserError where no window can be opened, or an extra is missing."""
    try:
        import PIL  # noqa: F401
        import pygame
    except ModuleNotFoundError:
        raise UserError('a window needs an extra: pip install "arcadia[video]"') from None
    try:
        pygame.display.init()
        if pygame.display.get_driver() in _NO_SCREEN and "SDL_VIDEODRIVER" not in os.environ:
            raise UserError("no window can be opened here: use --video instead of --render")
    except pygame.error as error:
        raise UserError(f"no window can be opened here ({error}): use --video instead of --render") from None
    finally:
        pygame.display.quit()


def show(config: EnvConfig, recording: Recording, game: Game) -> None:
    """Play a recorded game again in a window, until it is over or the window is closed.

    Raises:
        UserError: there is no screen, or an extra is missing.
    """
    check_screen()
    import pygame

    camera = make_camera(config, num_envs=recording.num_envs, seed=recording.seed)
    clock = pygame.time.Clock()
    window = None
    try:
        for page in _pages(config, camera, recording, game):
            if window is None:
                window = pygame.display.set_mode((page.shape[1], page.shape[0]))
                pygame.display.set_caption(config.env)
            window.blit(pygame.surfarray.make_surface(page.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            clock.tick(camera.steps_per_s)
            if any(event.type == pygame.QUIT for event in pygame.event.get()):
                return
    except pygame.error as error:
        raise UserError(f"no window can be opened here ({error}): use --video instead of --render") from None
    finally:
        pygame.display.quit()
        camera.close()


def _pages(config: EnvConfig, camera: Camera, recording: Recording, game: Game) -> Iterator[Picture]:
    return (draw(scene, config.env, camera.action_names) for scene in replay(camera, recording, game))


def replay(camera: Camera, recording: Recording, game: Game) -> Iterator[Scene]:
    """Yield the moments of a recorded game: one before each decision and one after the last.

    Raises:
        UserError: the environment did not repeat itself.
    """
    camera.reset()
    values: list[float] = []
    score = 0.0
    for t, decision in enumerate(recording.decisions[: game.stop]):
        is_playing = t >= game.start
        if is_playing:
            values.append(float(decision.value[game.env]))
            yield Scene(camera.picture(game.env), t - game.start, score, decision, values, game.env)
        step = camera.step(decision.action)
        is_over = bool(step.reset_next[game.env])
        if step.reward[game.env] != decision.reward[game.env] or (is_playing and is_over != (t + 1 == game.stop)):
            raise UserError("the environment did not repeat itself under the same seed and actions: it cannot be shown")
        score += float(step.reward[game.env]) * is_playing
    yield Scene(camera.picture(game.env), game.stop - game.start, score, None, values, game.env)


def draw(scene: Scene, title: str, action_names: tuple[str, ...]) -> Picture:
    """Return a scene as one picture, of even height and width: the game, and a panel on its right."""
    from PIL import Image, ImageDraw

    game = Image.fromarray(scene.picture)
    factor = max(1, 480 // game.height)
    game = game.resize((game.width * factor, game.height * factor), Image.Resampling.NEAREST)
    height = max(game.height, MIN_HEIGHT)
    page = Image.new("RGB", (_even(game.width + PANEL_WIDTH), _even(height)), _BACKGROUND)
    page.paste(game, (0, (height - game.height) // 2))
    pen = ImageDraw.Draw(page)
    left, right = game.width + _MARGIN, game.width + PANEL_WIDTH - _MARGIN
    _text(pen, (left, 10), title, 15, _FAINT)
    _text(pen, (left, 32), f"score {scene.score:g}", 24, _TEXT)
    _text(pen, (left, 66), f"decision {scene.step:,}", 15, _FAINT)
    _text(pen, (left, 92), f"value {scene.values[-1]:.2f}", 15, _TEXT)
    _curve(pen, scene.values, (left, 114, right, 164))
    if scene.decision is None:
        _text(pen, (left, 176), "end of the game", 15, _ACCENT)
    else:
        _actions(pen, scene.decision, scene.env, action_names, (left, 176, right, height - _MARGIN))
    return np.asarray(page)


def _even(size: int) -> int:
    """Return the next even number: the video format wants no other."""
    return size + size % 2


def _text(pen: Any, position: tuple[int, int], text: str, size: int, color: tuple[int, int, int]) -> None:
    pen.text(position, text, fill=color, font=_font(size))


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _curve(pen: Any, values: list[float], box: tuple[int, int, int, int]) -> None:
    """Draw the last values as a line, scaled to their range."""
    left, top, right, bottom = box
    shown = values[-(right - left) :]
    low, high = min(shown), max(shown)
    scale = (bottom - top) / (high - low) if high > low else 0.0
    points = [(left + x, bottom - (value - low) * scale) for x, value in enumerate(shown)]
    pen.line(((left, bottom), (right, bottom)), fill=_FAINT)
    if len(points) > 1:
        pen.line(points, fill=_ACCENT, width=2)


def _actions(pen: Any, decision: Decision, index: int, names: tuple[str, ...], box: tuple[int, int, int, int]) -> None:
    """Draw a bar per action: its probability or, of continuous actions, its number from -1 to 1."""
    left, top, right, bottom = box
    row = min(30, (bottom - top) // len(names))
    size = max(8, min(15, row - 3))
    start = left + 110
    for number, name in enumerate(names):
        y = top + number * row
        bar = (y + 2, y + max(4, row - 5))
        if decision.probabilities is not None:
            share = float(decision.probabilities[index, number])
            is_chosen = int(decision.action[index]) == number
            begin, end, label = float(start), start + share * (right - 40 - start), f"{share:.0%}"
        else:
            share, is_chosen = float(decision.action[index, number]), True
            middle, half = (start + right - 40) / 2, (right - 40 - start) / 2
            tip = middle + half * min(1.0, max(-1.0, share))
            begin, end, label = min(middle, tip), max(middle, tip), f"{share:.2f}"
        color = _ACCENT if is_chosen else _FAINT
        _text(pen, (left, y), name, size, _TEXT if is_chosen else _FAINT)
        pen.rectangle((begin, bar[0], max(begin + 1, end), bar[1]), fill=color)
        _text(pen, (right - 36, y), label, size, _TEXT if is_chosen else _FAINT)


def _write(path: Path, pages: Iterable[Picture], steps_per_s: float, on_progress: Callable[[int], None]) -> int:
    """Write pictures of one size as a video; return how many."""
    import imageio_ffmpeg

    options: dict[str, Any] = {"output_params": ["-preset", "veryfast"]}
    if path.suffix.lower() == ".gif":
        palette = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
        options = {
            "codec": "gif",
            "pix_fmt_out": "pal8",
            "quality": None,
            "output_params": ["-filter_complex", palette],
        }
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    if path.suffix.lower() == ".gif" and steps_per_s > MAX_GIF_FPS:
        every = math.ceil(steps_per_s / MAX_GIF_FPS)
        pages, steps_per_s = itertools.islice(pages, 0, None, every), steps_per_s / every
    writer = None
    count = 0
    try:
        for page in pages:
            if writer is None:
                size = (page.shape[1], page.shape[0])
                writer = imageio_ffmpeg.write_frames(
                    str(temporary), size, fps=steps_per_s, macro_block_size=2, ffmpeg_log_level="error", **options
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(page))
            count += 1
            on_progress(count)
        assert writer is not None
        writer.close()  # which does not tell whether ffmpeg could write
        try:
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(temporary))
        except RuntimeError:
            written = 0
        if written != count:
            raise OSError(None, None)
        temporary.replace(path)
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return count
