"""What an environment id stands for."""

import subprocess
import sys

import gymnasium
import pytest

from arcadia.envs.factory import find
from arcadia.envs.names import AtariName
from arcadia.errors import UserError

RANDOM_SKIP = (2, 5)  # draws 2, 3 or 4

# id: (game, frame skip, sticky probability, limit in decisions, limit in frames)
NAMES = {
    "pong": ("pong", 4, 0.0, None, 108_000),
    "Pong": ("pong", 4, 0.0, None, 108_000),
    "space_invaders": ("space_invaders", 4, 0.0, None, 108_000),
    "SpaceInvaders": ("space_invaders", 4, 0.0, None, 108_000),
    "ALE/Pong-v5": ("pong", 4, 0.25, None, 108_000),
    "ALE/SpaceInvaders-v5": ("space_invaders", 4, 0.25, None, 108_000),
    "PongNoFrameskip-v4": ("pong", 4, 0.0, 100_000, 400_000),
    "PongNoFrameskip-v0": ("pong", 4, 0.25, 10_000, 40_000),
    "PongDeterministic-v4": ("pong", 4, 0.0, 100_000, 400_000),
    "PongDeterministic-v3": ("pong", 4, 0.0, 100_000, 400_000),
    "PongDeterministic-v0": ("pong", 4, 0.25, 10_000, 40_000),
    "SpaceInvadersDeterministic-v4": ("space_invaders", 3, 0.0, 100_000, 300_000),
    "SpaceInvadersDeterministic-v0": ("space_invaders", 3, 0.25, 10_000, 30_000),
    "SpaceInvadersNoFrameskip-v4": ("space_invaders", 4, 0.0, 100_000, 400_000),
    "BreakoutNoFrameskip-v4": ("breakout", 4, 0.0, 100_000, 400_000),
    "MsPacmanNoFrameskip-v4": ("ms_pacman", 4, 0.0, 100_000, 400_000),
    "Pong-v4": ("pong", RANDOM_SKIP, 0.0, 100_000, None),
    "Pong-v3": ("pong", RANDOM_SKIP, 0.0, 100_000, None),
    "Pong-v0": ("pong", RANDOM_SKIP, 0.25, 10_000, None),
    "SpaceInvaders-v0": ("space_invaders", RANDOM_SKIP, 0.25, 10_000, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_id_stands_for_its_protocol(name: str) -> None:
    game, frame_skip, sticky_probability, max_decisions, max_frames = NAMES[name]
    found = find(name)
    assert isinstance(found, AtariName)
    assert found[:4] == (game, frame_skip, sticky_probability, max_decisions)
    if max_frames is None:  # the limit in decisions must come first
        assert max_decisions is not None
        assert found.max_frames >= 4 * max_decisions
    else:
        assert found.max_frames == max_frames


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Blackjack-v1"])
def test_gymnasium_ids_stand_for_themselves(name: str) -> None:
    assert find(name) == name


def test_an_environment_that_is_registered_under_the_name_of_a_game_is_taken() -> None:
    gymnasium.register("Tetris-v0", entry_point="toy_envs:Memory")
    try:
        assert find("Tetris-v0") == "Tetris-v0"
        assert isinstance(find("Tetris-v4"), AtariName)
    finally:
        del gymnasium.registry["Tetris-v0"]


@pytest.mark.parametrize("name", ["pong", "ALE/Pong-v5", "Pong-v0", "BreakoutDeterministic-v4", "SpaceInvaders-v3"])
def test_without_its_extra_an_atari_id_names_the_extra(name: str) -> None:
    code = (
        f"import sys\nsys.modules['ale_py'] = None\nfrom arcadia.cli import main\nsys.exit(main(['train', {name!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == 'arcadia: error: Atari environments need an extra: pip install "arcadia[atari]"\n'


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("pongg", "pong"),
        ("Pnog-v4", "pong"),
        ("PonggNoFrameskip-v4", "pong"),
        ("ALE/Brekout-v5", "ALE/Breakout-v5"),
        ("spaceinvader", "space_invaders"),
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("CartPole-v7", "CartPole-v1"),
        ("Pong-v7", "pong"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("ALE/SpaceInvader", "ALE/SpaceInvaders-v5"),
        ("PongDeterministic-v5", "pong"),
        ("PongNoFrameskip", "pong"),
    ],
)
def test_unknown_id_is_refused_in_one_line_with_the_closest_names(name: str, closest: str) -> None:
    with pytest.raises(UserError) as raised:
        find(name)
    message = str(raised.value)
    assert "\n" not in message
    assert repr(name) in message
    assert closest in message.split("closest: ")[1].split(", ")


@pytest.mark.parametrize("name", ["qqqqqqqq", "ALE/qqqqqqqq-v5", "../pong"])
def test_id_like_nothing_is_refused_in_one_line_with_examples(name: str) -> None:
    with pytest.raises(UserError) as raised:
        find(name)
    assert "\n" not in str(raised.value)
    assert "pong" in str(raised.value)


@pytest.mark.parametrize("name", ["combat", "ALE/Joust-v5", "MazeCrazeNoFrameskip-v4", "warlords"])
def test_game_without_a_mode_for_one_player_is_refused(name: str) -> None:
    # Their ROMs ship with ale-py, but loading one ends the whole process ("Attempt to wrap ROM ... failed").
    with pytest.raises(UserError):
        find(name)


def test_no_id_is_refused_with_an_example() -> None:
    with pytest.raises(UserError, match=r"^no environment given.*ALE/Pong-v5"):
        find("")
