"""Playing whole games with fixed parameters, and what their scores say."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from arcadia.checkpoint import (
    best_checkpoint,
    load_checkpoint,
    load_config,
    newest_checkpoint,
    write_atomically,
)
from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory, VectorEnv, make_vector_env
from arcadia.models import FlatParameters, build_model, torso_dtype
from arcadia.parameters import Snapshot
from arcadia.rollout import EpisodeTracker, starts_anew
from arcadia.types import DivergedError, Episode, UserError

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


def summarize(episodes: tuple[Episode, ...]) -> dict[str, Any]:
    """Describe the scores: mean, std (n - 1), median, min, max and a 95% interval of the mean.

    The interval is the percentile bootstrap with 10,000 resamples (Efron 1979), from a fixed seed.
    """
    scores = np.array([episode.episode_return for episode in episodes])
    draws = np.random.default_rng(0).choice(scores, (10_000, len(scores)))
    low, high = np.percentile(draws.mean(1), [2.5, 97.5])
    return {
        "episodes": len(scores),
        "mean": float(scores.mean()),
        "std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "median": float(np.median(scores)),
        "min": float(scores.min()),
        "max": float(scores.max()),
        "ci95": [float(low), float(high)],
        "mean_length": float(np.mean([episode.length for episode in episodes])),
    }


class Player:
    """Plays `num_episodes` whole games at a time, spread evenly over B environments.

    Each environment has a fixed number of games to finish, so that short games are not favoured.

    Args:
        config: `model.dtype` must be resolved.
        greedy: take the most probable action instead of sampling.
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
        num_threads: int = 1,
    ) -> None:
        env_seed, action_seed = np.random.SeedSequence((seed, _EVALUATION_STREAM, greedy)).generate_state(2)
        self._env: VectorEnv = make_env(config.env, num_envs=num_envs, seed=int(env_seed) >> 2, num_threads=num_threads)
        dtype = torso_dtype(config.model)
        self._model = build_model(config.model, self._env.spec, seed=0, dtype=dtype)
        self._parameters = FlatParameters(self._model)
        self._inputs = torch.empty(1, num_envs, *self._env.spec.observation_shape, dtype=dtype)
        self._greedy, self._reset_on_life_loss = greedy, config.model.reset_on_life_loss
        self._generator = torch.Generator().manual_seed(int(action_seed))
        base, extra = divmod(num_episodes, num_envs)
        self._quota = np.full(num_envs, base) + (np.arange(num_envs) < extra)

    def start(self, snapshot: Snapshot) -> None:
        """Begin an evaluation: fresh games, these parameters.

        Raises:
            UserError: the snapshot does not fit the model.
        """
        if len(snapshot.parameters) != self._parameters.size:
            raise UserError(
                f"the checkpoint holds {len(snapshot.parameters)} parameters, the model in config.json "
                f"has {self._parameters.size}: use the checkpoint's own config.json"
            )
        if len(snapshot.statistics) != self._model.statistics_size:
            raise UserError(
                f"the checkpoint holds {len(snapshot.statistics)} running statistics, config.json "
                f"asks for {self._model.statistics_size}: use the checkpoint's own config.json"
            )
        self._snapshot, self._started = snapshot, time.perf_counter()
        self._parameters.load(torch.from_numpy(snapshot.parameters))
        self._model.load_statistics(torch.from_numpy(snapshot.statistics))
        num_envs = self._env.num_envs
        self._observation = self._env.reset()
        self._state = self._model.initial_state(num_envs)
        self._is_first = np.ones(num_envs, np.bool_)
        self._resetting = np.zeros(num_envs, np.bool_)
        self._tracker = EpisodeTracker(num_envs)
        self._missing = self._quota.copy()
        self._episodes: list[Episode] = []

    @torch.no_grad()
    def step(self) -> Evaluation | None:
        """Play one decision in every environment; return the evaluation once all games are over."""
        self._model.normalizer.apply(self._observation, out=self._inputs[0])
        is_first = torch.from_numpy(self._is_first)[None]
        output = self._model(self._inputs, is_first, self._state)
        policy, self._state = output.policy, output.state
        if not policy.is_finite():
            raise DivergedError(f"evaluation at update {self._snapshot.updates}: the policy is NaN or infinite")
        action = policy.mode() if self._greedy else policy.sample(self._generator)  # [1, B] or [1, B, D]
        step = self._env.step(action[0].numpy())
        for b, episode in self._tracker.add(step.reward, ~self._resetting, step.reset_next, None).items():
            if self._missing[b] > 0:
                self._episodes.append(episode)
                self._missing[b] -= 1
        self._observation = step.observation
        self._is_first = starts_anew(step, self._resetting, self._reset_on_life_loss)
        self._resetting = step.reset_next
        if self._missing.any():
            return None
        seconds = time.perf_counter() - self._started
        return Evaluation(self._greedy, self._snapshot, tuple(self._episodes), seconds)

    @property
    def num_finished(self) -> int:
        """Games finished since `start`."""
        return len(self._episodes)


class PeriodicEvaluator:
    """Evaluates a changing policy, sampled and greedy games side by side.

    Each mode plays on with one snapshot until its games are over and then takes the next, so that a greedy policy
    caught in an endless rally does not hold up the sampled games.

    Args:
        snapshot: returns the current parameters.
        min_seconds: between two evaluations of one mode.
    """

    def __init__(
        self,
        config: TrainConfig,
        make_env: EnvFactory,
        snapshot: Callable[[], Snapshot],
        min_seconds: float = 0.0,
    ) -> None:
        self._take_snapshot, self._min_seconds = snapshot, min_seconds
        num_episodes = config.runtime.eval_episodes
        self._modes = [
            _Mode(
                Player(
                    config,
                    make_env,
                    num_episodes=num_episodes,
                    greedy=greedy,
                    seed=config.runtime.seed,
                    num_envs=num_episodes,
                )
            )
            for greedy in (False, True)
        ]

    def step(self) -> list[Evaluation]:
        """Play one decision in each mode that has something to play; return what this completed."""
        finished = []
        for mode in self._modes:
            if not mode.is_playing and time.monotonic() >= mode.next_start:
                snapshot = self._take_snapshot()
                if snapshot.updates != mode.updates:
                    mode.player.start(snapshot)
                    mode.is_playing, mode.updates = True, snapshot.updates
                    mode.next_start = time.monotonic() + self._min_seconds
            if mode.is_playing:
                evaluation = mode.player.step()
                if evaluation is not None:
                    mode.is_playing = False
                    finished.append(evaluation)
        return finished

    @property
    def is_idle(self) -> bool:
        """True while there is nothing new to evaluate."""
        return not any(mode.is_playing for mode in self._modes)

    def run(self) -> list[Evaluation]:
        """Play one whole evaluation in each mode, unless the parameters are those of the last one."""
        finished = self.step()
        while not self.is_idle:
            finished += self.step()
        return finished


@dataclass(slots=True)
class _Mode:
    """One mode of a PeriodicEvaluator."""

    player: Player
    is_playing: bool = False
    updates: int = 0  # of the last snapshot; untrained parameters are not evaluated
    next_start: float = 0.0  # monotonic seconds


def evaluate_run(
    run: Path,
    *,
    episodes: int,
    greedy: bool = False,
    best: bool = False,
    num_envs: int = 16,
    seed: int = 1_000_000,
    on_progress: Callable[[int], None] = lambda finished: None,
    make_env: EnvFactory = make_vector_env,
) -> tuple[dict[str, Any], Path]:
    """Play whole games with a run's newest or best parameters.

    Returns:
        the summary of the scores with what was played, and the JSON file in RUN/evaluations/ that holds it too.

    Raises:
        UserError: the run or its checkpoint is unusable, or an argument is out of range.
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value < 1:
            raise UserError(f"{name} must be >= 1, got {value}")
    if seed < 0:
        raise UserError(f"seed must be >= 0, got {seed}")
    config = load_config(run)
    path = best_checkpoint(run) if best else newest_checkpoint(run)
    if path is None or not path.exists():
        raise UserError(f"{run} has no {'best evaluation' if best else 'checkpoint'} yet: train it longer")
    checkpoint = load_checkpoint(path)
    env_steps, frames, updates, _ = checkpoint.counters.sum(0).tolist()
    parameters, statistics = checkpoint.parameters.numpy(), checkpoint.statistics.sum(0).numpy()
    player = Player(
        config,
        make_env,
        num_episodes=episodes,
        greedy=greedy,
        seed=seed,
        num_envs=min(num_envs, episodes),
        num_threads=num_envs,
    )
    player.start(Snapshot(parameters, statistics, env_steps, frames, updates))
    evaluation = None
    while evaluation is None:
        evaluation = player.step()
        on_progress(player.num_finished)
    mode = "greedy" if greedy else "sampled"
    result = {
        "env": config.env.env,
        "mode": mode,
        "checkpoint": path.name if not best else f"best/{path.name}",
        "env_steps": env_steps,
        "frames": frames,
        "seed": seed,
        **summarize(evaluation.episodes),
        "scores": [episode.episode_return for episode in evaluation.episodes],
    }
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    output = folder / f"{mode}-{'best' if best else 'newest'}-{env_steps:012d}-{episodes}.json"
    write_atomically(output, (json.dumps(result, indent=2) + "\n").encode())
    return result, output
