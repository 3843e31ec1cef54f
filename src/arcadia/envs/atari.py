"""Atari: ale-py's native vector environment, or gymnasium's Python loop for a random frame skip."""

import itertools
from collections import deque
from functools import partial
from typing import Any

import cv2
import gymnasium
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from arcadia.config import EnvConfig
from arcadia.envs.interface import EnvSpec, check_actions
from arcadia.envs.names import AtariName, simplify
from arcadia.envs.parallel import ParallelEmulators
from arcadia.errors import UserError
from arcadia.types import Actions, BoolArray, Observations, Picture, Timestep

TWO_PLAYER_GAMES = {"combat", "joust", "maze_craze", "warlords"}  # ale-py ends the process on these
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
Pictures = NDArray[np.uint8]

ALEInterface.setLoggerMode(LoggerMode.Error)  # no banner in every worker


def games() -> dict[str, str]:
    """Return simplified name -> ROM name of every game for one player that ships with ale-py."""
    return {simplify(rom): rom for rom in roms.get_all_rom_ids() if rom not in TWO_PLAYER_GAMES}


class Atari:
    """B games of one ROM. Implements VectorEnv.

    An observation is the `frame_stack` newest frames, oldest first, [stack, H, W] uint8, of colours
    [stack * 3, H, W]; a game's first frame fills the whole stack. A frame is made in this order:

    - grey: the emulator's grey picture, on the native path the maximum of a decision's last two, resized;
    - cropped or in colour: the emulator's RGB picture, on the native path the maximum of a decision's last two,
      cropped, resized, then turned grey by luma weights 0.299, 0.587, 0.114 unless colour is wanted.

    Resizing averages over areas. The native path steps a fixed frame skip in C++ threads; a random one takes
    gymnasium's Python loop and never takes a maximum.
    """

    def __init__(self, name: AtariName, config: EnvConfig, *, num_envs: int, seed: int, num_threads: int) -> None:
        if config.max_episode_steps is not None:
            name = name.with_limit(config.max_episode_steps)
        self._config = config
        self._crop = None
        if config.crop != "none":
            self._crop = config.crop_rows if config.crop == "rows" else CROPS.get(name.game, DEFAULT_CROP)
        is_rgb = config.color or self._crop is not None
        actions: list[str]
        self._env: gymnasium.vector.VectorEnv[Any, Any, Any] | ParallelEmulators
        self._is_native = isinstance(name.frame_skip, int)
        if self._is_native:
            self._env, actions = _native(name, config, num_envs, num_threads, is_rgb)
        else:
            self._env, actions = _scalar(name, config, num_envs, is_rgb)
        self._first_action = int(config.drop_noop)
        self.action_names = tuple(actions[self._first_action :])
        skip = name.frame_skip if isinstance(name.frame_skip, int) else sum(name.frame_skip) / 2 - 0.5
        self.steps_per_s = FRAMES_PER_S / skip
        self._forced_actions = config.forced_actions if "FIRE" in actions else ()
        if self._forced_actions and max(self._forced_actions) >= len(actions):
            raise UserError(f"forced_actions {self._forced_actions} must be below {len(actions)}, the game's actions")
        self._channels = 3 if config.color else 1
        shape = (config.frame_stack * self._channels, *config.frame_size)
        num_actions = len(actions) - self._first_action
        self.spec = EnvSpec(shape, np.dtype(np.uint8), num_actions, self._channels, is_native=self._is_native)
        self.num_envs = num_envs
        self._rng = np.random.default_rng(seed)
        self._seed: int | None = seed
        self._queues: list[deque[int]] = [deque() for _ in range(num_envs)]  # actions to force, of each game

    def reset(self) -> Observations:
        pictures, info = self._env.reset(seed=self._seed)
        self._seed = None  # later resets play on with the same random numbers
        self._lives, self._frame_number = info["lives"], info["frame_number"].astype(np.int64)
        self._resetting = np.zeros(self.num_envs, np.bool_)
        for queue in self._queues:
            self._force(queue, starts_game=True)
        self._pictures = pictures
        frames = self._frames(pictures)
        self._stack: Pictures = np.tile(frames, (1, self._config.frame_stack, 1, 1))
        return self._stack

    def step(self, action: Actions) -> Timestep:
        check_actions(action, self.num_envs, self.spec)
        action = self.native_action(action)
        forced = np.zeros(self.num_envs, np.bool_)
        for index, queue in enumerate(self._queues):
            if queue and not self._resetting[index]:
                action[index], forced[index] = queue.popleft(), True

        pictures, reward, game_over, truncated, info = self._env.step(action)
        life_lost = ~self._resetting & ~game_over & (info["lives"] < self._lives)
        restarted = self._resetting
        for b in np.flatnonzero(life_lost | restarted):
            self._force(self._queues[b], starts_game=bool(restarted[b]))
        self._pictures = pictures
        refilled = restarted | (life_lost & self._config.refill_on_life_loss)
        self._push(self._frames(pictures), refilled)

        frame_number = info["frame_number"].astype(np.int64)
        frames = frame_number - self._frame_number
        self._lives, self._frame_number = info["lives"], frame_number
        self._resetting = truncated | game_over
        return Timestep(
            self._stack,
            reward.astype(np.float32),
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
        picture: Picture = self._pictures[index].reshape(*self._pictures.shape[-3:])
        return picture

    def dismiss(self, index: int) -> None:
        """Until the next reset, nobody wants game `index` any more: it may stand still."""
        if isinstance(self._env, ParallelEmulators):
            self._env.dismiss(index)

    def close(self) -> None:
        self._env.close()

    def _force(self, queue: deque[int], *, starts_game: bool) -> None:
        """Queue the forced actions of a new game or life."""
        queue.clear()
        if starts_game and self._forced_actions:
            repeats = int(self._rng.integers(self._config.forced_start_max))
            queue.extend(self._forced_actions[:1] * repeats)
        queue.extend(self._forced_actions)

    def _frames(self, pictures: Pictures) -> Pictures:
        """Return the frames [B, 1 or 3, H, W] of the emulators' pictures, [B, h, w] or [B, h, w, 3]."""
        height, width = self._config.frame_size
        if self._is_native:
            pictures = pictures[:, 0]  # its stack of one
        if self._crop is not None:
            pictures = pictures[:, self._crop[0] : self._crop[1]]
        if pictures.shape[1:3] != (height, width):
            pictures = np.stack(
                [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]
            )
        if pictures.ndim == 3:
            return pictures[:, None]
        if not self._config.color:
            return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])[:, None]
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))

    def _push(self, frames: Pictures, refill: BoolArray) -> None:
        """Add the newest frames to the stacks, or fill them with it."""
        stack = np.empty_like(self._stack)
        stack[:, : -self._channels] = self._stack[:, self._channels :]
        stack[:, -self._channels :] = frames
        for b in np.flatnonzero(refill):
            stack[b] = np.tile(frames[b], (self._config.frame_stack, 1, 1))
        self._stack = stack


class StartGame(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Press FIRE once where the game has it, then a random number (< noop_max) of no-ops."""

    def __init__(self, env: gymnasium.Env[Any, Any], noop_max: int, fire: bool) -> None:
        super().__init__(env)
        atari = env.unwrapped
        assert isinstance(atari, AtariEnv)
        self._noop_max = noop_max
        self._fire = fire and "FIRE" in atari.get_action_meanings()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        noops = int(self.env.unwrapped.np_random.integers(max(self._noop_max, 1)))
        for action in [1] * self._fire + [0] * noops:
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


def _native(
    name: AtariName, config: EnvConfig, num_envs: int, num_threads: int, is_rgb: bool
) -> tuple[AtariVectorEnv | ParallelEmulators, list[str]]:
    """Return B games stepped in C++ threads, and the names of their actions."""
    assert isinstance(name.frame_skip, int)
    height, width = _screen_size(name.game) if is_rgb else config.frame_size
    make = partial(
        AtariVectorEnv,
        name.game,
        num_threads=1,
        frameskip=name.frame_skip,
        repeat_action_probability=name.sticky_probability,
        max_num_frames_per_episode=name.max_frames,
        stack_num=1,
        grayscale=not is_rgb,
        noop_max=config.noop_max,
        use_fire_reset=config.fire_on_reset,
        img_height=height,
        img_width=width,
        reward_clipping=False,
        episodic_life=False,  # it would reset the whole game on a lost life
    )
    ends = [num_envs * number // num_threads for number in range(num_threads + 1)]
    groups = [make(num_envs=end - start) for start, end in itertools.pairwise(ends)]
    actions = [action.name for action in groups[0].ale.get_action_set()]
    return groups[0] if num_threads == 1 else ParallelEmulators(groups), actions


def _screen_size(game: str) -> tuple[int, int]:
    """Return height and width of a game's picture."""
    emulator = ALEInterface()
    path = roms.get_rom_path(game)
    assert path is not None
    emulator.loadROM(path)
    height, width = emulator.getScreenDims()
    return height, width


def _scalar(
    name: AtariName, config: EnvConfig, num_envs: int, is_rgb: bool
) -> tuple[gymnasium.vector.VectorEnv[Any, Any, Any], list[str]]:
    """Return B games in gymnasium's Python loop, and the names of their actions."""

    def make() -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = AtariEnv(
            game=name.game,
            obs_type="rgb" if is_rgb else "grayscale",
            frameskip=name.frame_skip,
            repeat_action_probability=name.sticky_probability,
            max_num_frames_per_episode=name.max_frames,
        )
        env = StartGame(env, config.noop_max, config.fire_on_reset)
        return env if name.max_decisions is None else gymnasium.wrappers.TimeLimit(env, name.max_decisions)

    env = gymnasium.vector.SyncVectorEnv([make] * num_envs)
    atari = env.envs[0].unwrapped
    assert isinstance(atari, AtariEnv)
    return env, atari.get_action_meanings()
