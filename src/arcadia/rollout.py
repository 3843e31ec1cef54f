"""Collecting rollouts: environments x model -> Rollout."""

import numpy as np
import torch
from torch import Tensor

from arcadia.envs import VectorEnv
from arcadia.models import ActorCritic, ObservationNormalizer
from arcadia.types import DivergedError, Episode, Rollout


class RolloutCollector:
    """Plays B environments with a model, T decisions at a time.

    Everything about the border between episodes is carried from one rollout to the next. The tensors of a rollout are
    reused: they hold until the next `collect`.

    Args:
        env: B environments; they are reset here.
        model: its parameters change between rollouts, never within one.
        normalizer: its snapshot likewise.
        num_steps: T.
        clip_rewards: learn from the sign of the reward.
        generator: source of all action sampling.
    """

    def __init__(
        self,
        env: VectorEnv,
        model: ActorCritic,
        normalizer: ObservationNormalizer,
        *,
        num_steps: int,
        clip_rewards: bool,
        generator: torch.Generator,
    ) -> None:
        self._env, self._model, self._normalizer = env, model, normalizer
        self._clip_rewards, self._generator = clip_rewards, generator
        size = (num_steps, env.num_envs)
        shape, dtype = env.spec.observation_shape, env.spec.observation_dtype
        self._inputs = torch.empty(num_steps + 1, env.num_envs, *shape, dtype=model.dtype)
        # of images the newest frame, of vectors all: what the normaliser's statistics are made of
        self._newest = np.empty((*size, *(shape[1:] if env.spec.is_image else shape)), dtype)
        self._is_first = torch.empty(num_steps + 1, env.num_envs, dtype=torch.bool)
        self._action = torch.empty(size, dtype=torch.int64)
        self._log_prob, self._reward = torch.empty(size), torch.empty(size)
        self._value = torch.empty(num_steps + 1, env.num_envs)
        self._terminated = torch.empty(size, dtype=torch.bool)
        self._truncated = torch.empty(size, dtype=torch.bool)
        self._valid = torch.empty(size, dtype=torch.bool)

        self._observation = env.reset()
        self._state = model.initial_state(env.num_envs)
        self._resetting = np.zeros(env.num_envs, np.bool_)  # the next step is a reset
        self._next_is_first = np.ones(env.num_envs, np.bool_)
        self._episode_return = np.zeros(env.num_envs)
        self._episode_length = np.zeros(env.num_envs, np.int64)
        self.frames = 0  # emulator frames of the last rollout
        self.episodes: tuple[Episode, ...] = ()  # games that ended in the last rollout

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T decisions in every environment.

        Raises:
            DivergedError: the policy's logits are not finite.
        """
        num_steps = len(self._action)
        initial_state = state = self._state
        self.frames, episodes = 0, []
        for t in range(num_steps):
            value, logits, state = self._forward(t, state)
            if not bool(logits.isfinite().all()):
                raise DivergedError(
                    "the policy's logits are NaN or infinite: lower --lr, or look for such values in the observations"
                )
            log_probs = logits.log_softmax(-1)  # [B, A]
            action = torch.multinomial(log_probs.exp(), 1, generator=self._generator)  # [B, 1]
            self._action[t] = action[:, 0]
            self._log_prob[t] = log_probs.gather(-1, action)[:, 0]
            self._value[t] = value
            self._valid[t] = torch.from_numpy(~self._resetting)
            if not self._normalizer.is_frozen:
                self._newest[t] = self._observation[:, -1] if self._env.spec.is_image else self._observation

            step = self._env.step(action[:, 0].numpy())
            self._reward[t] = torch.from_numpy(step.reward)
            self._terminated[t] = torch.from_numpy(step.terminated)
            self._truncated[t] = torch.from_numpy(step.truncated)
            self.frames += int(step.frames.sum())

            self._episode_return += step.reward
            self._episode_length += ~self._resetting
            for b in np.flatnonzero(step.reset_next):
                episodes.append(Episode(float(self._episode_return[b]), int(self._episode_length[b])))
                self._episode_return[b] = self._episode_length[b] = 0
            self._observation = step.observation
            self._next_is_first, self._resetting = self._resetting, step.reset_next
        self._state = state
        self._value[-1], _, _ = self._forward(num_steps, state)
        self.episodes = tuple(episodes)
        return Rollout(
            observation=self._inputs,
            is_first=self._is_first,
            state=initial_state,
            action=self._action,
            reward=self._reward.sign() if self._clip_rewards else self._reward,
            terminated=self._terminated,
            truncated=self._truncated,
            valid=self._valid,
            log_prob=self._log_prob,
            value=self._value,
        )

    def _forward(self, t: int, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return value [B], logits [B, A] and the next state for the current observation, row t."""
        self._normalizer.apply(self._observation, out=self._inputs[t])
        self._is_first[t] = torch.from_numpy(self._next_is_first)
        output = self._model(self._inputs[t : t + 1], self._is_first[t : t + 1], state)
        return output.value[0], output.logits[0], output.state

    def statistics(self) -> Tensor | None:
        """Return the normaliser's statistics of the last rollout, or None once they are frozen."""
        if self._normalizer.is_frozen:
            return None
        return self._normalizer.gather(self._newest, self._valid.numpy())
