"""Collecting rollouts: environments x model -> Rollout."""

import numpy as np
import torch
from torch import Tensor

from arcadia.config import EnvConfig
from arcadia.devices import CPU, GraphedFunction, send, wait_for
from arcadia.distributions import concatenate, to_device
from arcadia.envs import VectorEnv
from arcadia.errors import DivergedError
from arcadia.models import ActorCritic
from arcadia.returns import discounted_sums
from arcadia.stopwatch import Stopwatch
from arcadia.types import BoolArray, Episode, ModelOutput, Rewards, Rollout, StatisticsUpdate, Timestep


class EpisodeTracker:
    """Adds up the games that B environments play."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)
        self._max_probability = np.zeros(num_envs)

    def add(
        self, reward: Rewards, valid: BoolArray, ended: BoolArray, max_probability: Tensor | None
    ) -> dict[int, Episode]:
        """Add a step of every environment; return the games that ended with it, by environment.

        Args:
            reward: [B] raw.
            valid: [B], the step was not a reset.
            ended: [B], the game's last step.
            max_probability: [B], of the most probable action; None where actions are continuous.
        """
        self._return += reward
        self._length += valid
        if max_probability is not None:
            self._max_probability += np.where(valid, max_probability.numpy(), 0.0)
        episodes = {}
        for b in map(int, np.flatnonzero(ended)):
            length = int(self._length[b])
            mean = None if max_probability is None else float(self._max_probability[b]) / max(length, 1)
            episodes[b] = Episode(float(self._return[b]), length, mean)
            self._return[b] = self._length[b] = self._max_probability[b] = 0
        return episodes

    @property
    def longest(self) -> int:
        """Decisions of the longest game that is being played."""
        return int(self._length.max())


class RolloutCollector:
    """Plays B environments with a model, T decisions at a time.

    Where the model is on a GPU, raw observations go there and what it says comes back; inputs and recurrent state stay
    there, and no activations are kept.

    Everything about the border between episodes is carried from one rollout to the next. The tensors of a rollout are
    reused: they hold until the next `collect`.

    Args:
        env: B environments; they are reset here.
        model: its parameters and statistics change between rollouts, never within one.
        num_steps: T.
        config: which rewards to learn from.
        gamma: discount, of the returns by which rewards are normalised.
        reset_on_life_loss: the recurrent state starts anew after a termination within a game.
        keep_activations: for a learner that makes one pass with the parameters that acted.
        generator: source of all action sampling.
        stopwatch: counts the time in the environments as "env", the rest of `collect` as "acting".
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
        keep_activations: bool = False,
        generator: torch.Generator,
        stopwatch: Stopwatch,
    ) -> None:
        self._env, self._model, self._stopwatch = env, model, stopwatch
        self._config, self._gamma, self._reset_on_life_loss = config, gamma, reset_on_life_loss
        self._generator = generator
        # A graph overwrites its outputs, and computes them again sooner than they would be kept.
        self._keep_activations = keep_activations and not model.runs_as_graph
        self._device = model.device
        self._run = GraphedFunction(model, self._device, as_graph=model.runs_as_graph)
        size = (num_steps, env.num_envs)
        self._inputs = torch.empty(
            num_steps + 1, env.num_envs, *model.input_shape, dtype=model.dtype, device=self._device
        )
        self._is_first = np.empty((num_steps + 1, env.num_envs), np.bool_)
        self._action = np.empty(size, np.int64)
        if env.spec.is_continuous:
            self._action = np.empty((*size, env.spec.num_actions), np.float32)
        self._reward = np.empty(size, np.float32)
        self._terminated = np.empty(size, np.bool_)
        self._truncated = np.empty(size, np.bool_)
        self._ended = np.empty(size, np.bool_)  # a game's last step
        self._valid = np.empty(size, np.bool_)
        self._forced = np.zeros(size, np.bool_)
        self._cut = np.zeros(size, np.bool_)

        self._observation = env.reset()
        self._shifted: BoolArray | None = None  # [B], an observation is the one before and a newest frame
        newest = model.normalizer.newest(self._observation)
        self._newest = np.empty((num_steps, *newest.shape), newest.dtype)  # what the statistics are made of
        self._state = model.initial_state(env.num_envs)
        self._resetting = np.zeros(env.num_envs, np.bool_)  # the next step is a reset
        self._next_is_first = np.ones(env.num_envs, np.bool_)
        self._discounted = torch.zeros(env.num_envs)  # sum of each episode's rewards so far
        self._returns = torch.empty(size)  # its course over the last rollout
        self._tracker = EpisodeTracker(env.num_envs)
        self.frames = 0  # emulator frames of the last rollout
        self.episodes: tuple[Episode, ...] = ()  # whole games that ended in the last rollout

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T decisions in every environment.

        Raises:
            DivergedError: an observation or the policy is not finite.
        """
        initial_state = state = self._state
        self.frames = 0
        policies, values, activations = [], [], []
        for t in range(len(self._action)):
            policy, value, state, layers = self._forward(t, state)
            if not policy.is_finite():
                raise DivergedError("the policy is NaN or infinite: lower --lr or --max-grad-norm")
            chosen = policy.sample(self._generator)[0].numpy()  # [B] or [B, D]
            policies.append(policy)
            values.append(value)
            if self._keep_activations:
                activations.append(layers)
            self._action[t] = chosen
            self._valid[t] = ~self._resetting
            if not self._model.normalizer.is_frozen:
                self._newest[t] = self._model.normalizer.newest(self._observation)

            self._stopwatch.lap("acting")
            step = self._env.step(chosen)
            self._stopwatch.lap("env")
            self._reward[t] = step.reward
            self._terminated[t] = step.terminated
            self._truncated[t] = step.truncated
            self._ended[t] = step.reset_next
            if step.forced is not None:
                self._forced[t] = step.forced
            if step.cut is not None:
                self._cut[t] = step.cut
            self.frames += int(step.frames.sum())
            self._observation = step.observation
            self._shifted = step.shifted
            self._next_is_first = starts_anew(step, self._resetting, self._reset_on_life_loss)
            self._resetting = step.reset_next
        self._state = state.clone()  # the next output may take its place
        values.append(self._forward(len(self._action), state).value)

        policy = concatenate(policies)  # [T, B]
        action, terminated, truncated = map(torch.from_numpy, (self._action, self._terminated, self._truncated))
        probabilities = policy.probabilities()
        self._track_episodes(None if probabilities is None else probabilities.amax(-1))
        reward = learned_reward(torch.from_numpy(self._reward), self._config)
        if self._model.reward_normalizer is not None:
            trace = (~(terminated | truncated)).float()
            self._discounted = discounted_sums(reward, self._discounted, trace, self._gamma, out=self._returns)
            reward = self._model.reward_normalizer.apply(reward)
        rollout = Rollout(
            observation=self._inputs,
            is_first=torch.from_numpy(self._is_first),
            state=initial_state,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            valid=torch.from_numpy(self._valid),
            forced=torch.from_numpy(self._forced),
            log_prob=policy.log_prob(action),
            value=torch.cat(values),
            activations=tuple(map(torch.cat, zip(*activations, strict=True))),
        )
        self._stopwatch.lap("acting")
        return rollout

    def _track_episodes(self, max_probability: Tensor | None) -> None:
        """Note the games that ended in the rollout; `max_probability` is [T, B]."""
        episodes: list[Episode] = []
        for t in range(len(self._action)):
            most = None if max_probability is None else max_probability[t]
            ended = self._tracker.add(self._reward[t], self._valid[t], self._ended[t], most)
            episodes += [episode for b, episode in ended.items() if not self._cut[t, b]]
        self.episodes = tuple(episodes)

    def _forward(self, t: int, state: Tensor) -> ModelOutput:
        """Return the model's output [1, B] for the current observation, row t: policy and value on the CPU."""
        if self._observation.dtype != np.uint8 and not np.isfinite(self._observation).all():
            raise DivergedError("an observation is NaN or infinite: look for the reason in the environment")
        if self._shifted is None:
            self._model.normalizer.apply(self._observation, self._inputs[t])
        elif t == 0:  # the last rollout ended with this observation
            self._inputs[0] = self._inputs[-1]
        else:
            self._model.normalizer.advance(self._observation, self._inputs[t], self._inputs[t - 1], self._shifted)
        self._is_first[t] = self._next_is_first
        is_first = send(torch.from_numpy(self._is_first[t : t + 1]), self._device)
        output: ModelOutput = self._run(self._inputs[t : t + 1], is_first, state)
        policy, value = to_device(output.policy, CPU), output.value.to(CPU, non_blocking=True)
        wait_for(self._device)
        return output._replace(policy=policy, value=value)

    def statistics(self) -> StatisticsUpdate | None:
        """Return what the last rollout adds to the shared statistics, if anything."""
        return self._model.gather_statistics(self._newest, self._inputs[:-1], self._returns, self._valid)


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
