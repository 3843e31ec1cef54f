"""One Atari game on ale-py's emulator."""

import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from numpy.typing import NDArray

from arcadia.config import EnvConfig
from arcadia.envs.names import AtariName

Pictures = NDArray[np.uint8]

# ROM names of all games that ship with ale-py, but for those of two players, on which it ends the process.
GAMES = sorted(set(roms.get_all_rom_ids()) - {"combat", "joust", "maze_craze", "warlords"})
FIRE = "FIRE"

ALEInterface.setLoggerMode(LoggerMode.Error)  # no banner in every worker


class Emulator:
    """One game, a decision at a time. (ale-py's own vector environment loads its ROM twice, 85 ms each.)

    A game starts with FIRE, where the game has it and the config wants it, and fewer than `config.noop_max` no-ops,
    each for one frame or, where the frame skip is random, for one decision. They count for no time limit.

    Args:
        name: the protocol.
        config: how games start.
        seed: decides all no-ops, sticky actions and random frame skips.
        is_rgb: pictures are [h, w, 3] RGB instead of [h, w] grey.
    """

    def __init__(self, name: AtariName, config: EnvConfig, *, seed: int, is_rgb: bool) -> None:
        self._name, self._config = name, config
        self._ale = ALEInterface()
        self._ale.setInt("random_seed", seed % 2**31)
        self._ale.setFloat("repeat_action_probability", name.sticky_probability)
        path = roms.get_rom_path(name.game)
        assert path is not None
        self._ale.loadROM(path)
        self._actions = self._ale.getMinimalActionSet()
        self.action_names = [action.name for action in self._actions]
        self._read = self._ale.getScreenRGB if is_rgb else self._ale.getScreenGrayscale
        self.picture_shape: tuple[int, ...] = (*self._ale.getScreenDims(), *[3] * is_rgb)
        self._rng = np.random.default_rng(seed)

    def reset(self, picture: Pictures) -> None:
        """Start a game and write what it shows."""
        is_random = not isinstance(self._name.frame_skip, int)
        starts = [Action.FIRE] * (self._config.fire_on_reset and FIRE in self.action_names)
        starts += [Action.NOOP] * int(self._rng.integers(max(self._config.noop_max, 1)))  # some games do not offer it
        self._ale.reset_game()
        for start in starts:
            self._act(start, self._draw_skip() if is_random else 1)
            if self._ale.game_over():
                self._ale.reset_game()
        self._decisions, self._first_frame = 0, self.frame_number
        self._read(picture)

    def step(self, action: int, picture: Pictures, last_but_one: Pictures) -> float:
        """Return the reward of a decision and write the maximum of its last two pictures, the earlier one of them too.

        Where the frame skip is random, write the last one alone.
        """
        choice = self._actions[action]
        self._decisions += 1
        if not isinstance(self._name.frame_skip, int):
            reward = self._act(choice, self._draw_skip())
            self._read(picture)
            return reward
        reward = self._act(choice, self._name.frame_skip - 1)
        self._read(last_but_one)
        reward += self._act(choice, 1)
        self._read(picture)
        np.maximum(picture, last_but_one, out=picture)
        return reward

    def _act(self, action: Action, num_frames: int) -> float:
        act = self._ale.act
        return sum([act(action) for _ in range(num_frames)])

    def _draw_skip(self) -> int:
        assert not isinstance(self._name.frame_skip, int)
        return int(self._rng.integers(*self._name.frame_skip))

    @property
    def lives(self) -> int:
        return self._ale.lives()

    @property
    def frame_number(self) -> int:
        """Frames since the emulator started."""
        return self._ale.getFrameNumber()

    @property
    def is_over(self) -> bool:
        """True at a game's end."""
        return self._ale.game_over()

    @property
    def is_out_of_time(self) -> bool:
        """True where the protocol's time limit is reached."""
        limit = self._name.max_decisions
        if limit is not None:
            return self._decisions >= limit
        return self.frame_number - self._first_frame >= self._name.max_frames
