"""Playing whole games with fixed parameters."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcadia.config import TrainConfig
from arcadia.envs import EmulatedEnv, EnvFactory, VectorEnv
from arcadia.errors import DivergedError, UserError
from arcadia.models import ActorCritic, FlatParameters, build_model, torso_dtype
from arcadia.parameters import Snapshot
from arcadia.rollout import EpisodeTracker, starts_anew
from arcadia.types import Actions, BoolArray, Episode, ModelOutput, Rewards

MAX_GAME_STEPS = 200_000  # Atari ids promise 100,000 at most
_EVALUATION_STREAM = 2**31  # keeps evaluation seeds apart from those of any worker


class Evaluation(NamedTuple):
    """Scores of whole games played with one snapshot."""

    greedy: bool
    snapshot: Snapshot
    episodes: tuple[Episode, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean([episode.episode_return for episode in self.episodes]))


class Decision(NamedTuple):
    """What was decided in B environments at one step, and what the network thought; zeros where all games are over."""

    action: Actions  # [B] or [B, D]
    value: NDArray[np.float32]  # [B]
    probabilities: NDArray[np.float32] | None  # [B, A]; None where actions are continuous
    reward: Rewards  # [B] that followed


class Game(NamedTuple):
    """Where in a recording one game is."""

    env: int  # index of the environment
    start: int  # its first decision
    stop: int  # one past its last
    score: float


class Recording(NamedTuple):
    """All decisions of an evaluation, from which its games can be played again."""

    seed: int  # of the environments
    num_envs: int
    decisions: list[Decision]
    games: list[Game]


class Player:
    """Plays `num_episodes` whole games at a time, spread evenly over B environments.

    Each environment has a fixed number of games to finish, so that short games are not favoured. Once they are over,
    nothing is computed for it.

    Args:
        config: `model.dtype` must be resolved.
        greedy: take the most probable action instead of sampling.
        record: keep `recording`, of the first evaluation only.
        patience: a game is over, its score as it stands, once so many decisions in a row brought no reward; for no more
            games than environments.
        stream: selects other games and samples than those of another player with the same seed.
    """

    def __init__(
        self,
        config: TrainConfig,
        make_env: EnvFactory,
        *,
        num_episodes: int,
        greedy: bool,
        seed: int,
        num_envs: int,
        record: bool = False,
        patience: int | None = None,
        stream: int = 0,
    ) -> None:
        entropy = (seed, _EVALUATION_STREAM, greedy, *[stream] * (stream > 0))
        seeds = np.random.SeedSequence(entropy).generate_state(2)
        env_seed, action_seed = int(seeds[0]) >> 2, int(seeds[1])
        env_config = replace(config.env, stagger=False)  # whole games
        self._env: VectorEnv = make_env(env_config, num_envs=num_envs, seed=env_seed)
        dtype = torso_dtype(config.model)
        self._model = build_model(config.model, self._env.spec, seed=0, dtype=dtype)
        self._parameters = FlatParameters(self._model)
        self._inputs = torch.empty(2, num_envs, *self._model.input_shape, dtype=dtype)  # of two steps in turn
        self._row = 0
        self._greedy, self._reset_on_life_loss = greedy, config.model.reset_on_life_loss
        self._generator = torch.Generator().manual_seed(action_seed)
        base, extra = divmod(num_episodes, num_envs)
        self._quota = np.full(num_envs, base) + (np.arange(num_envs) < extra)
        self._patience = math.inf if patience is None else patience
        self.recording = Recording(env_seed, num_envs, [], []) if record else None

    def start(self, snapshot: Snapshot) -> None:
        """Begin an evaluation: fresh games, these parameters.

        Raises:
            UserError: the snapshot does not fit the model.
        """
        load_snapshot(snapshot, self._model, self._parameters)
        self._snapshot, self._started = snapshot, time.perf_counter()
        num_envs = self._env.num_envs
        self._observation = self._env.reset()
        self._shifted: BoolArray | None = None  # [B], an observation is the one before and a newest frame
        self._state = self._model.initial_state(num_envs)
        self._is_first = np.ones(num_envs, np.bool_)
        self._resetting = np.zeros(num_envs, np.bool_)
        self._tracker = EpisodeTracker(num_envs)
        self._unrewarded = np.zeros(num_envs, np.int64)  # decisions since the last reward
        self._missing = self._quota.copy()
        self._playing = np.arange(num_envs)  # [N] environments that have games to finish
        self._episodes: list[Episode] = []

    @torch.no_grad()
    def step(self) -> Evaluation | None:
        """Play one decision in every game; return the evaluation once all games are over.

        Raises:
            DivergedError: the policy is not finite.
            UserError: a game does not end.
        """
        playing = self._playing
        self._row = 1 - self._row
        before, inputs = self._inputs[1 - self._row, : len(playing)], self._inputs[self._row, : len(playing)]
        observation = self._observation if len(playing) == self._env.num_envs else self._observation[playing]
        if self._shifted is None:
            self._model.normalizer.apply(observation, inputs)
        else:
            self._model.normalizer.advance(observation, inputs, before, self._shifted[playing])
        is_first = torch.from_numpy(self._is_first[playing])[None]
        output = self._model(inputs[None], is_first, self._state)
        policy, self._state = output.policy, output.state
        if not policy.is_finite():
            raise DivergedError(f"evaluation at update {self._snapshot.updates}: the policy is NaN or infinite")
        action = policy.mode() if self._greedy else policy.sample(self._generator)  # [1, N] or [1, N, D]
        step = self._env.step(self._whole(action))
        if self.recording is not None:
            self._record(action, output, step.reward)
        self._unrewarded = np.where((step.reward != 0) | self._resetting, 0, self._unrewarded + 1)
        ended = step.reset_next | (self._unrewarded >= self._patience)
        counts = ~self._resetting & (self._missing > 0)  # one whose games are over stands still, or plays on for nobody
        for b, episode in self._tracker.add(step.reward, counts, ended, None).items():
            if self._missing[b] > 0:
                self._episodes.append(episode)
                self._missing[b] -= 1
                if self._missing[b] == 0 and self._env.spec.is_emulated:
                    cast(EmulatedEnv, self._env).dismiss(b)
                if self.recording is not None:
                    stop = len(self.recording.decisions)
                    self.recording.games.append(Game(b, stop - episode.length, stop, episode.episode_return))
        if self._tracker.longest > MAX_GAME_STEPS:
            raise UserError(f"a game has not ended within {MAX_GAME_STEPS:,} decisions: the environment needs a limit")
        self._observation = step.observation
        self._shifted = step.shifted
        self._is_first = starts_anew(step, self._resetting, self._reset_on_life_loss)
        self._resetting = step.reset_next
        goes_on = self._missing[playing] > 0
        if goes_on.any():
            if not goes_on.all():
                self._playing, self._state = playing[goes_on], self._state[torch.from_numpy(goes_on)]
                self._shifted = None
            return None
        seconds = time.perf_counter() - self._started
        return Evaluation(self._greedy, self._snapshot, tuple(self._episodes), seconds)

    def without_games(self) -> Evaluation:
        """Return an evaluation without games, for one that cannot be completed."""
        return Evaluation(self._greedy, self._snapshot, (), time.perf_counter() - self._started)

    def _record(self, action: Tensor, output: ModelOutput, reward: Rewards) -> None:
        assert self.recording is not None
        probabilities = output.policy.probabilities()
        self.recording.decisions.append(
            Decision(
                self._whole(action),
                self._whole(output.value),
                None if probabilities is None else self._whole(probabilities),
                reward.copy(),
            )
        )

    def _whole(self, values: Tensor) -> NDArray[Any]:
        """Return [B, ...] of values [1, N, ...], those of the games that are played, with zeros elsewhere."""
        whole = np.zeros((self._env.num_envs, *values.shape[2:]), values.numpy().dtype)
        whole[self._playing] = values[0].numpy()
        return whole

    def close(self) -> None:
        """Release what the environments hold."""
        self._env.close()

    @property
    def num_finished(self) -> int:
        """Games finished since `start`."""
        return len(self._episodes)


def load_snapshot(snapshot: Snapshot, model: ActorCritic, parameters: FlatParameters) -> None:
    """Copy a snapshot into a model whose parameters are views of `parameters`.

    Raises:
        UserError: the snapshot is of another model.
    """
    if len(snapshot.parameters) != parameters.size:
        raise UserError(
            f"the checkpoint holds {len(snapshot.parameters)} parameters, the model in config.json "
            f"has {parameters.size}: use the checkpoint's own config.json"
        )
    if len(snapshot.statistics) != model.statistics_size:
        raise UserError(
            f"the checkpoint holds {len(snapshot.statistics)} running statistics, config.json "
            f"asks for {model.statistics_size}: use the checkpoint's own config.json"
        )
    parameters.load(torch.from_numpy(snapshot.parameters))
    model.load_statistics(torch.from_numpy(snapshot.statistics))
