"""Frames against a slow reference, made from the emulator's raw pictures in the documented order."""

from collections.abc import Iterator
from typing import Any

import ale_py
import cv2
import numpy as np
import pytest
from ale_py import roms

from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env
from arcadia.envs.atari import Atari
from arcadia.envs.names import AtariName
from arcadia.recipes import RECIPES

NUM_DECISIONS = 60
FIXED, RANDOM = 4, (4, 5)  # frame skips: both are always 4


def _raw(game: str, actions: np.ndarray) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yield the last two (RGB, grey) pictures of the game's start and of every decision of four frames."""
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path(game))
    emulator.reset_game()
    minimal = emulator.getMinimalActionSet()
    picture = (emulator.getScreenRGB(), emulator.getScreenGrayscale())
    yield [picture, picture]
    for action in actions:
        pictures = []
        for _ in range(4):
            emulator.act(minimal[action])
            pictures.append((emulator.getScreenRGB(), emulator.getScreenGrayscale()))
        yield pictures[-2:]


def _area(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [h, w, ...] by averaging over areas, in float64 without rounding."""
    for axis, target in enumerate(size):
        source = picture.shape[axis]
        edges = np.arange(target + 1) * source / target
        starts = np.arange(source)
        overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
        weights = overlap.clip(min=0) * target / source  # [target, source]
        picture = np.moveaxis(np.tensordot(weights, picture.astype(np.float64), (1, axis)), 0, axis)
    return picture


def _observations(name: AtariName, config: EnvConfig, actions: np.ndarray) -> list[np.ndarray]:
    env = Atari(name, config, num_envs=1, seed=3)
    first = int(config.drop_noop)
    return [env.reset()[0], *(env.step(np.array([action - first])).observation[0] for action in actions)]


def _plain(recipe: str, **settings: object) -> EnvConfig:
    """Return a recipe's preprocessing without random starts and forced actions, which the reference does not play."""
    config = vars(RECIPES[recipe].config.env)
    return EnvConfig(**config | {"noop_max": 1, "forced_actions": (), "fire_on_reset": False} | settings)


def _round(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whole levels, and where they are not certain: halfway between two, whose rounding is anybody's choice."""
    return np.floor(levels + 0.5), np.abs(levels - np.floor(levels) - 0.5) < 1e-2


def _assert_equal(frame: np.ndarray, expected: np.ndarray, is_uncertain: np.ndarray) -> None:
    """Assert equal levels of 0..255; uncertain ones, which are few, may differ by 1."""
    assert is_uncertain.mean() < 0.2
    difference = np.abs(frame - expected)
    assert difference[~is_uncertain].max() == 0
    assert difference.max() <= 1


@pytest.mark.parametrize("skip", [FIXED, RANDOM])
@pytest.mark.parametrize("game", ["pong", "breakout", "space_invaders"])
def test_wrappers_frames_are_grey_then_the_maximum_then_resized(game: str, skip: int | tuple[int, int]) -> None:
    actions = np.random.default_rng(0).integers(1, 4, NUM_DECISIONS)
    name = AtariName(game, skip, 0.0, None, 108_000)
    seen = _observations(name, _plain("wrappers-12"), actions)
    for frame, pictures in zip(seen, _raw(game, actions), strict=True):
        grey = [grey for _, grey in pictures]
        picture = np.maximum(*grey) if skip == FIXED else grey[-1]
        _assert_equal(frame[0], *_round(_area(picture, (84, 84))))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"frame_size": (42, 42)},
        {"frame_size": (97, 64)},
        {"frame_size": (110, 200)},
        {"frame_size": (256, 64)},
        {"color": True},
        {"crop": "game", "frame_size": (80, 80)},
        {"crop": "rows", "crop_rows": (8, 196), "frame_size": (80, 80)},
        {"crop": "rows", "crop_rows": (50, 1000), "frame_size": (210, 160)},
        {"crop": "rows", "crop_rows": (35, 195), "frame_size": (160, 160), "color": True},
    ],
)
def test_frames_are_what_opencv_makes_of_whole_pictures(settings: dict[str, Any]) -> None:
    """To the bit, though only bands of rows that changed are drawn."""
    config = EnvConfig(env="seaquest", noop_max=1, **settings)
    env = make_vector_env(config, num_envs=2, seed=0)
    env.reset()
    rows = {"none": (0, 210), "game": (30, 190), "rows": config.crop_rows}[config.crop]
    for action in np.random.default_rng(0).integers(18, size=(NUM_DECISIONS, 2)):
        newest = env.step(action).observation[:, -env.spec.frame_channels :]
        for b in range(2):
            picture = env.picture(b)[slice(*rows)]
            expected = cv2.resize(picture, config.frame_size[::-1], interpolation=cv2.INTER_AREA)
            if picture.ndim == 3 and not config.color:
                expected = cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY)
            expected = np.atleast_3d(expected).transpose(2, 0, 1)
            assert (newest[b] == expected).all()
    env.close()


@pytest.mark.parametrize("skip", [FIXED, RANDOM])
@pytest.mark.parametrize(
    ("game", "rows"),
    [("pong", (34, 194)), ("space_invaders", (8, 196)), ("seaquest", (30, 190)), ("qbert", (12, 200))],
)
def test_a3g_frames_are_cropped_then_resized_then_grey(
    game: str, rows: tuple[int, int], skip: int | tuple[int, int]
) -> None:
    actions = np.random.default_rng(0).integers(1, 4, NUM_DECISIONS)
    name = AtariName(game, skip, 0.0, None, 108_000)
    seen = _observations(name, _plain("a3g-lstm"), actions)
    for frame, pictures in zip(seen, _raw(game, actions), strict=True):
        rgb = [rgb for rgb, _ in pictures]
        picture = np.maximum(*rgb) if skip == FIXED else rgb[-1]
        colors, uncertain_colors = _round(_area(picture[rows[0] : rows[1]], (80, 80)))
        expected, is_uncertain = _round(colors @ [0.299, 0.587, 0.114])
        _assert_equal(frame[0], expected, is_uncertain | uncertain_colors.any(-1))


@pytest.mark.parametrize("skip", [FIXED, RANDOM])
@pytest.mark.parametrize(("recipe", "stack"), [("gru-160", 1), ("gru-160-stack4", 4)])
def test_gru_frames_are_the_cropped_colours_themselves(recipe: str, stack: int, skip: int | tuple[int, int]) -> None:
    actions = np.random.default_rng(0).integers(1, 4, NUM_DECISIONS)
    name = AtariName("pong", skip, 0.0, None, 108_000)
    seen = _observations(name, _plain(recipe), actions)
    expected: list[np.ndarray] = []
    for observation, pictures in zip(seen, _raw("pong", actions), strict=True):
        rgb = [rgb for rgb, _ in pictures]
        picture = np.maximum(*rgb) if skip == FIXED else rgb[-1]
        frame = picture[35:195].transpose(2, 0, 1)
        expected = [*(expected or [frame] * stack)[1:], frame]
        assert observation.shape == (3 * stack, 160, 160)
        assert (observation == np.concatenate(expected)).all()
