"""Collecting rollouts: environments x model -> Rollout."""

import numpy as np
import torch
from torch import Tensor

from arcadia.config import EnvConfig
from arcadia.envs import VectorEnv
from arcadia.models import ActorCritic
from arcadia.returns import discounted_sums
from arcadia.types import BoolArray, DivergedError, Episode, ModelOutput, Rollout, StatisticsUpdate, Timestep


class EpisodeTracker:
    """Adds up the games that B environments play."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)
        self._max_probability = np.zeros(num_envs)

    def add(self, step: Timestep, resetting: BoolArray, max_probability: Tensor | None) -> dict[int, Episode]:
        """Add a step of every environment; return the games that ended with it, by environment.

        Args:
            resetting: [B], the step was a reset.
            max_probability: [1, B], of the most probable action; None where actions are continuous.
        """
        self._return += step.reward
        self._length += ~resetting
        if max_probability is not None:
            self._max_probability += np.where(resetting, 0.0, max_probability[0].numpy())
        episodes = {}
        for b in map(int, np.flatnonzero(step.reset_next)):
            length = int(self._length[b])
            mean = None if max_probability is None else float(self._max_probability[b]) / max(length, 1)
            episodes[b] = Episode(float(self._return[b]), length, mean)
            self._return[b] = self._length[b] = self._max_probability[b] = 0
        return episodes


class RolloutCollector:
    """Plays B environments with a model, T decisions at a time.

    Everything about the border between episodes is carried from one rollout to the next. The tensors of a rollout are
    reused: they hold until the next `collect`.

    Args:
        env: B environments; they are reset here.
        model: its parameters and statistics change between rollouts, never within one.
        num_steps: T.
        config: which rewards to learn from.
        gamma: discount, of the returns by which rewards are normalised.
        reset_on_life_loss: the recurrent state starts anew after a termination within a game.
        generator: source of all action sampling.
    """

    def __init__(
        self,
        env: VectorEnv,
        model: ActorCritic,
        *,
        num_steps: int,
        config: EnvConfig,
        gamma: float,
        reset_on_life_loss: bool = False,
        generator: torch.Generator,
    ) -> None:
        self._env, self._model = env, model
        self._config, self._gamma, self._reset_on_life_loss = config, gamma, reset_on_life_loss
        self._generator = generator
        size = (num_steps, env.num_envs)
        shape, dtype = env.spec.observation_shape, env.spec.observation_dtype
        self._inputs = torch.empty(num_steps + 1, env.num_envs, *shape, dtype=model.dtype)
        self._is_first = torch.empty(num_steps + 1, env.num_envs, dtype=torch.bool)
        self._action = torch.empty(size, dtype=torch.int64)
        if env.spec.is_continuous:
            self._action = torch.empty(*size, env.spec.num_actions)
        self._log_prob, self._reward = torch.empty(size), torch.empty(size)
        self._value = torch.empty(num_steps + 1, env.num_envs)
        self._terminated = torch.empty(size, dtype=torch.bool)
        self._truncated = torch.empty(size, dtype=torch.bool)
        self._valid = torch.empty(size, dtype=torch.bool)
        self._forced = torch.zeros(size, dtype=torch.bool)

        self._observation = env.reset()
        newest = model.normalizer.newest(self._observation)
        self._newest = np.empty((num_steps, *newest.shape), dtype)  # what the normaliser's statistics are made of
        self._state = model.initial_state(env.num_envs)
        self._resetting = np.zeros(env.num_envs, np.bool_)  # the next step is a reset
        self._next_is_first = np.ones(env.num_envs, np.bool_)
        self._discounted = torch.zeros(env.num_envs)  # sum of each episode's rewards so far
        self._returns = torch.empty(size)  # its course over the last rollout
        self._tracker = EpisodeTracker(env.num_envs)
        self.frames = 0  # emulator frames of the last rollout
        self.episodes: tuple[Episode, ...] = ()  # games that ended in the last rollout

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T decisions in every environment.

        Raises:
            DivergedError: an observation or the policy is not finite.
        """
        num_steps = len(self._action)
        initial_state = state = self._state
        self.frames = 0
        episodes: list[Episode] = []
        for t in range(num_steps):
            policy, value, state = self._forward(t, state)
            if not policy.is_finite():
                raise DivergedError("the policy is NaN or infinite: lower --lr or --max-grad-norm")
            action = policy.sample(self._generator)  # [1, B] or [1, B, D]
            self._action[t] = action
            self._log_prob[t] = policy.log_prob(action)
            self._value[t] = value
            self._valid[t] = torch.from_numpy(~self._resetting)
            if not self._model.normalizer.is_frozen:
                self._newest[t] = self._model.normalizer.newest(self._observation)

            step = self._env.step(action[0].numpy())
            self._reward[t] = torch.from_numpy(step.reward)
            self._terminated[t] = torch.from_numpy(step.terminated)
            self._truncated[t] = torch.from_numpy(step.truncated)
            if step.forced is not None:
                self._forced[t] = torch.from_numpy(step.forced)
            self.frames += int(step.frames.sum())
            episodes += self._tracker.add(step, self._resetting, policy.max_probability()).values()
            self._observation = step.observation
            self._next_is_first = starts_anew(step, self._resetting, self._reset_on_life_loss)
            self._resetting = step.reset_next
        self._state = state
        _, self._value[-1], _ = self._forward(num_steps, state)
        self.episodes = tuple(episodes)
        reward = learned_reward(self._reward, self._config)
        if self._model.reward_normalizer is not None:
            trace = (~(self._terminated | self._truncated)).float()
            self._discounted = discounted_sums(reward, self._discounted, trace, self._gamma, out=self._returns)
            reward = self._model.reward_normalizer.apply(reward)
        return Rollout(
            observation=self._inputs,
            is_first=self._is_first,
            state=initial_state,
            action=self._action,
            reward=reward,
            terminated=self._terminated,
            truncated=self._truncated,
            valid=self._valid,
            forced=self._forced,
            log_prob=self._log_prob,
            value=self._value,
        )

    def _forward(self, t: int, state: Tensor) -> ModelOutput:
        """Return the output [1, B] of the model for the current observation, row t."""
        if self._observation.dtype != np.uint8 and not np.isfinite(self._observation).all():
            raise DivergedError("an observation is NaN or infinite: look for the reason in the environment")
        self._model.normalizer.apply(self._observation, out=self._inputs[t])
        self._is_first[t] = torch.from_numpy(self._next_is_first)
        output: ModelOutput = self._model(self._inputs[t : t + 1], self._is_first[t : t + 1], state)
        return output

    def statistics(self) -> StatisticsUpdate | None:
        """Return what the last rollout adds to the shared statistics, if anything."""
        return self._model.gather_statistics(self._newest, self._inputs[:-1], self._returns, self._valid.numpy())


def learned_reward(reward: Tensor, config: EnvConfig) -> Tensor:
    """Return what is learned from rewards: scaled, not below the floor, or only their sign, as `config` says.

    A reward that is not finite becomes NaN, so that its rollout teaches nothing.
    """
    reward = torch.where(reward.isfinite(), reward, torch.nan)  # sign(NaN) would be 0
    if config.reward_scale != 1:
        reward = reward * config.reward_scale
    if config.reward_floor is not None:
        reward = reward.clamp(min=config.reward_floor)
    return torch.where(reward.isnan(), reward, reward.sign()) if config.clip_rewards else reward


def starts_anew(step: Timestep, resetting: BoolArray, reset_on_life_loss: bool) -> BoolArray:
    """Return where the recurrent state is reset before the observation of `step` [B].

    Args:
        resetting: [B], the step was a reset: its observation is a game's first.
        reset_on_life_loss: a termination within a game counts too.
    """
    return resetting | (step.terminated & ~step.reset_next) if reset_on_life_loss else resetting
