"""Atari games side by side, and what is made of their pictures."""

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
        self._crop = None
        if config.crop != "none":
            self._crop = config.crop_rows if config.crop == "rows" else CROPS.get(name.game, DEFAULT_CROP)
        is_rgb = config.color or self._crop is not None
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
        self._pictures = np.empty((num_envs, *self._emulators[0].picture_shape), np.uint8)
        self._last_but_one = np.empty_like(self._pictures[0])  # one for all: it stays in the processor's cache
        self._newest = np.empty((num_envs, self._channels, *config.frame_size), np.uint8)

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
            emulator, picture = self._emulators[b], self._pictures[b]
            reward[b] = emulator.step(int(action[b]), picture, self._last_but_one)
            self._draw(picture, self._newest[b])
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
        """Return the emulator's picture of one game, [height, width, 3]. Only where frames are made from RGB."""
        picture: Picture = self._pictures[index].copy()
        return picture

    def dismiss(self, index: int) -> None:
        """Until the next reset, nobody wants game `index` any more: it stands still."""
        self._dismissed[index] = True

    def close(self) -> None:
        """An emulator holds nothing but memory."""

    def _start(self, b: int) -> None:
        """Start a game."""
        self._emulators[b].reset(self._pictures[b])
        self._draw(self._pictures[b], self._newest[b])

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

    def _draw(self, picture: Pictures, frame: Pictures) -> None:
        """Write the frame [1 or 3, H, W] of an emulator's picture [h, w] or [h, w, 3]."""
        height, width = self._config.frame_size
        if picture.ndim == 2:
            cv2.resize(picture, (width, height), dst=frame[0], interpolation=cv2.INTER_AREA)
            return
        if self._crop is not None:
            picture = picture[self._crop[0] : self._crop[1]]
        if picture.shape[:2] != (height, width):
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if self._config.color:
            frame[:] = picture.transpose(2, 0, 1)
        else:
            cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY, dst=frame[0])

    def _push(self, refill: BoolArray) -> None:
        """Add the newest frames to the stacks, or fill them with it."""
        stack = np.empty_like(self._stack)
        stack[:, : -self._channels] = self._stack[:, self._channels :]
        stack[:, -self._channels :] = self._newest
        for b in np.flatnonzero(refill):
            stack[b] = np.tile(self._newest[b], (self._config.frame_stack, 1, 1))
        self._stack = stack
