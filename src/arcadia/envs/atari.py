"""Atari games side by side, and what is made of their pictures."""

import math
from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

from arcadia.config import EnvConfig
from arcadia.envs.emulator import FIRE, GAMES, Emulator, Pictures
from arcadia.envs.interface import EnvSpec, check_actions
from arcadia.envs.names import AtariName, simplify
from arcadia.errors import UserError
from arcadia.types import Actions, BoolArray, Observations, Picture, Timestep

# Rows of the raw picture that hold the playfield, by rl_a3c_pytorch's table.
DEFAULT_CROP = (34, 194)
CROPS = {
    "seaquest": (30, 190),
    "boxing": (30, 190),
    "beam_rider": (20, 180),
    "space_invaders": (8, 196),
    "ms_pacman": (2, 170),
    "qbert": (12, 200),
    "asteroids": (16, 194),
    "centipede": (36, 216),
    "video_pinball": (42, 220),
}
FRAMES_PER_S = 60.0


def games() -> dict[str, str]:
    """Return simplified name -> ROM name of every game."""
    return {simplify(game): game for game in GAMES}


class Atari:
    """B games of one ROM. Implements VectorEnv.

    An observation is the `frame_stack` newest frames, oldest first, [stack, H, W] uint8, of colours
    [stack * 3, H, W]; a game's first frame fills the whole stack. A frame is made in this order:

    - grey: the emulator's grey picture, the maximum of a decision's last two, resized;
    - cropped or in colour: the emulator's RGB picture, the maximum of a decision's last two, cropped, resized, then
      turned grey by luma weights 0.299, 0.587, 0.114 unless colour is wanted.

    Resizing averages over areas. Where the frame skip is random, no maximum is taken.
    """

    def __init__(self, name: AtariName, config: EnvConfig, *, num_envs: int, seed: int) -> None:
        if config.max_episode_steps is not None:
            name = name.with_limit(config.max_episode_steps)
        self._config = config
        is_rgb = config.color or config.crop != "none"
        self._emulators = [Emulator(name, config, seed=seed + b, is_rgb=is_rgb) for b in range(num_envs)]
        actions = self._emulators[0].action_names
        self._first_action = int(config.drop_noop)
        self.action_names = tuple(actions[self._first_action :])
        skip = name.frame_skip if isinstance(name.frame_skip, int) else sum(name.frame_skip) / 2 - 0.5
        self.steps_per_s = FRAMES_PER_S / skip
        self._forced_actions = config.forced_actions if FIRE in actions else ()
        if self._forced_actions and max(self._forced_actions) >= len(actions):
            raise UserError(f"forced_actions {self._forced_actions} must be below {len(actions)}, the game's actions")
        self._channels = 3 if config.color else 1
        shape = (config.frame_stack * self._channels, *config.frame_size)
        num_actions = len(actions) - self._first_action
        self.spec = EnvSpec(shape, np.dtype(np.uint8), num_actions, self._channels, is_emulated=True)
        self.num_envs = num_envs
        # One for each game: a dismissed one draws nothing, and the others must not notice.
        self._rngs = [np.random.default_rng((seed + b, 1)) for b in range(num_envs)]
        self._queues: list[deque[int]] = [deque() for _ in range(num_envs)]  # actions to force, of each game
        crops = {"none": (0, None), "rows": config.crop_rows, "game": CROPS.get(name.game, DEFAULT_CROP)}
        self._rows = slice(*crops[config.crop])
        # Of each game the picture that its frame shows, at first black.
        self._pictures = np.zeros((num_envs, *self._emulators[0].picture_shape), np.uint8)
        self._newest = np.zeros((num_envs, self._channels, *config.frame_size), np.uint8)
        # One for all: they stay in the processor's cache.
        self._picture, self._last_but_one = np.empty((2, *self._pictures[0].shape), np.uint8)
        height, width = self._picture[self._rows].shape[:2]
        # Enlarged rows depend on their neighbours.
        is_reduced = config.frame_size[0] <= height and config.frame_size[1] <= width
        self._num_bands = math.gcd(height, config.frame_size[0]) if is_reduced else 1

    def reset(self) -> Observations:
        self._dismissed = np.zeros(self.num_envs, np.bool_)
        self._resetting = np.zeros(self.num_envs, np.bool_)
        for b in range(self.num_envs):
            self._start(b)
            self._force(b, starts_game=True)
        self._lives, self._frame_number = self._read_counters()
        self._stack: Pictures = np.tile(self._newest, (1, self._config.frame_stack, 1, 1))
        return self._stack

    def step(self, action: Actions) -> Timestep:
        check_actions(action, self.num_envs, self.spec)
        action = self.native_action(action)
        forced, reward = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.float32)
        game_over, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        for b in np.flatnonzero(~self._dismissed).tolist():
            if self._resetting[b]:
                self._start(b)
                continue
            if self._queues[b]:
                action[b], forced[b] = self._queues[b].popleft(), True
            emulator = self._emulators[b]
            reward[b] = emulator.step(int(action[b]), self._picture, self._last_but_one)
            self._draw(b)
            game_over[b] = emulator.is_over
            truncated[b] = emulator.is_out_of_time and not game_over[b]

        lives, frame_number = self._read_counters()
        life_lost = ~self._resetting & ~game_over & (lives < self._lives)
        restarted = self._resetting
        for b in np.flatnonzero(life_lost | restarted).tolist():
            self._force(b, starts_game=bool(restarted[b]))
        refilled = restarted | (life_lost & self._config.refill_on_life_loss)
        self._push(refilled)

        frames = frame_number - self._frame_number
        self._lives, self._frame_number = lives, frame_number
        self._resetting = truncated | game_over
        return Timestep(
            self._stack,
            reward,
            game_over | (life_lost & self._config.terminal_on_life_loss),
            truncated,
            self._resetting,
            frames,
            forced,
            shifted=~refilled,
        )

    def native_action(self, action: Actions) -> Actions:
        return action + self._first_action

    def picture(self, index: int) -> Picture:
        """Return a game's picture: [height, width, 3] RGB, or [height, width] where frames are made from grey."""
        picture: Picture = self._pictures[index].copy()
        return picture

    def dismiss(self, index: int) -> None:
        """Until the next reset, nobody wants game `index` any more: it stands still."""
        self._dismissed[index] = True

    def close(self) -> None:
        """An emulator holds nothing but memory."""

    def _start(self, b: int) -> None:
        """Start a game."""
        self._emulators[b].reset(self._picture)
        self._draw(b)

    def _read_counters(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lives [B] and the frame numbers [B] of all games."""
        counters = [(emulator.lives, emulator.frame_number) for emulator in self._emulators]
        lives, frame_number = np.array(counters, np.int64).T
        return lives, frame_number

    def _force(self, b: int, *, starts_game: bool) -> None:
        """Queue the forced actions of a new game or life."""
        queue = self._queues[b]
        queue.clear()
        if starts_game and self._forced_actions:
            repeats = int(self._rngs[b].integers(self._config.forced_start_max))
            queue.extend(self._forced_actions[:1] * repeats)
        queue.extend(self._forced_actions)

    def _draw(self, b: int) -> None:
        """Bring a game's newest frame up to date with the picture [h, w] or [h, w, 3] that was just read.

        Both are cut into as many equal bands of rows as they can be, and only bands that changed are drawn, to the bits
        that the whole picture would give.
        """
        new, old = (picture[self._rows].reshape(self._num_bands, -1) for picture in (self._picture, self._pictures[b]))
        changed = (new.view(np.uint64) != old.view(np.uint64)).any(1).nonzero()[0]
        self._pictures[b] = self._picture
        if not len(changed):
            return
        height, width = self._config.frame_size
        bands = new.take(changed, 0).reshape(-1, *self._picture.shape[1:])
        size = (width, len(changed) * height // self._num_bands)
        bands = cv2.resize(bands, size, interpolation=cv2.INTER_AREA)
        if bands.ndim == 3 and not self._config.color:
            bands = cv2.cvtColor(bands, cv2.COLOR_RGB2GRAY)
        frame = self._newest[b].reshape(self._channels, self._num_bands, -1)
        frame[:, changed] = bands.reshape(len(changed), -1, self._channels).transpose(2, 0, 1)

    def _push(self, refill: BoolArray) -> None:
        """Add the newest frames to the stacks, or fill them with it."""
        stack = np.empty_like(self._stack)
        stack[:, : -self._channels] = self._stack[:, self._channels :]
        stack[:, -self._channels :] = self._newest
        for b in np.flatnonzero(refill):
            stack[b] = np.tile(self._newest[b], (self._config.frame_stack, 1, 1))
        self._stack = stack
