"""Atari: ale-py's native vector environment, and a scalar path for random frame skips."""

from typing import Any

import gymnasium
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from arcadia.config import EnvConfig
from arcadia.envs.interface import EnvSpec, VectorEnv, check_actions
from arcadia.envs.names import AtariName, parse_atari_name, simplify
from arcadia.types import BoolArray, Observations, Timestep

FRAME_SIZE = 84
TWO_PLAYER_GAMES = {"combat", "joust", "maze_craze", "warlords"}  # ale-py ends the process on these

ALEInterface.setLoggerMode(LoggerMode.Error)  # no banner in every worker


def games() -> dict[str, str]:
    """Return simplified name -> ROM name of every game for one player that ships with ale-py."""
    return {simplify(rom): rom for rom in roms.get_all_rom_ids() if rom not in TWO_PLAYER_GAMES}


def parse(name: str) -> AtariName | None:
    """Parse an Atari id; None if it is not one."""
    return parse_atari_name(name, games())


class NativeAtari:
    """B games of one ROM, stepped in C++ threads. Fixed frame skip, max over the last two frames."""

    def __init__(self, name: AtariName, config: EnvConfig, num_envs: int, seed: int, num_threads: int) -> None:
        assert isinstance(name.frame_skip, int)
        self._env = AtariVectorEnv(
            name.game,
            num_envs=num_envs,
            num_threads=num_threads,
            frameskip=name.frame_skip,
            repeat_action_probability=name.sticky_probability,
            max_num_frames_per_episode=name.max_frames,
            stack_num=config.frame_stack,
            noop_max=config.noop_max,
            use_fire_reset=config.fire_on_reset,
            img_height=FRAME_SIZE,
            img_width=FRAME_SIZE,
            reward_clipping=False,
            # episodic_life would reset the whole game on a lost life.
            life_loss_info=config.terminal_on_life_loss,
        )
        space = self._env.single_action_space
        assert isinstance(space, gymnasium.spaces.Discrete)
        shape = (config.frame_stack, FRAME_SIZE, FRAME_SIZE)
        self.spec = EnvSpec(shape, np.dtype(np.uint8), int(space.n))
        self.num_envs = num_envs
        self._seed: int | None = seed
        self._frame_number = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int32)

    def reset(self) -> Observations:
        observation, info = self._env.reset(seed=self._seed)
        self._seed = None  # later resets play on with the same random numbers
        self._frame_number, self._lives = info["frame_number"].astype(np.int64), info["lives"]
        return np.asarray(observation)

    def step(self, action: NDArray[np.int64]) -> Timestep:
        check_actions(action, self.num_envs, self.spec.num_actions)
        observation, reward, terminated, truncated, info = self._env.step(action)
        frame_number = info["frame_number"].astype(np.int64)
        frames = frame_number - self._frame_number
        # Adventure's game over leaves its lives as they were; everywhere else they fall to 0.
        life_lost = terminated & (info["lives"] > 0) & (info["lives"] < self._lives)
        self._frame_number, self._lives = frame_number, info["lives"]
        return Timestep(
            observation,
            reward.astype(np.float32),
            terminated,
            truncated,
            truncated | (terminated & ~life_lost),
            frames,
        )

    def close(self) -> None:
        self._env.close()


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


class ScalarAtari:
    """B games in gymnasium's Python loop, for ids with a random frame skip."""

    def __init__(self, name: AtariName, config: EnvConfig, num_envs: int, seed: int) -> None:
        def make() -> gymnasium.Env[Any, Any]:
            env: gymnasium.Env[Any, Any] = AtariEnv(
                game=name.game,
                obs_type="grayscale",
                frameskip=name.frame_skip,
                repeat_action_probability=name.sticky_probability,
                max_num_frames_per_episode=name.max_frames,
            )
            env = StartGame(env, config.noop_max, config.fire_on_reset)
            env = gymnasium.wrappers.ResizeObservation(env, (FRAME_SIZE, FRAME_SIZE))
            env = gymnasium.wrappers.FrameStackObservation(env, config.frame_stack)
            if name.max_decisions is not None:
                env = gymnasium.wrappers.TimeLimit(env, name.max_decisions)
            return env

        self._env = gymnasium.vector.SyncVectorEnv([make] * num_envs)
        space = self._env.single_action_space
        assert isinstance(space, gymnasium.spaces.Discrete)
        shape = (config.frame_stack, FRAME_SIZE, FRAME_SIZE)
        self.spec = EnvSpec(shape, np.dtype(np.uint8), int(space.n))
        self.num_envs = num_envs
        self._seed: int | None = seed
        self._terminal_on_life_loss = config.terminal_on_life_loss
        self._lives = np.zeros(num_envs, np.int64)
        self._episode_frames = np.zeros(num_envs, np.int64)
        self._reset_next: BoolArray = np.zeros(num_envs, np.bool_)

    def reset(self) -> Observations:
        observation, info = self._env.reset(seed=self._seed)
        self._seed = None  # later resets play on with the same random numbers
        self._lives = info["lives"]
        self._episode_frames = info["episode_frame_number"]
        self._reset_next[:] = False
        return np.asarray(observation)

    def step(self, action: NDArray[np.int64]) -> Timestep:
        check_actions(action, self.num_envs, self.spec.num_actions)
        observation, reward, game_over, truncated, info = self._env.step(action)
        lives, episode_frames = info["lives"], info["episode_frame_number"]
        life_lost = ~self._reset_next & (lives < self._lives) & self._terminal_on_life_loss
        frames = episode_frames - np.where(self._reset_next, 0, self._episode_frames)
        self._lives, self._episode_frames = lives, episode_frames
        self._reset_next = truncated | game_over
        return Timestep(
            observation,
            reward.astype(np.float32),
            game_over | life_lost,
            truncated,
            self._reset_next,
            frames.astype(np.int64),
        )

    def close(self) -> None:
        self._env.close()


def make_atari(name: AtariName, config: EnvConfig, *, num_envs: int, seed: int, num_threads: int) -> VectorEnv:
    """Build B games: the native vector environment unless the name asks for a random frame skip."""
    if isinstance(name.frame_skip, int):
        return NativeAtari(name, config, num_envs, seed, num_threads)
    return ScalarAtari(name, config, num_envs, seed)
