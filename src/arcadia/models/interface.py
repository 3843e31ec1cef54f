"""The model that workers and evaluators use: torso -> core -> heads, one forward for acting and learning."""

import torch
from torch import Tensor, nn

from arcadia.config import ModelConfig
from arcadia.envs import EnvSpec
from arcadia.errors import UserError
from arcadia.models.batch_norm import RunningBatchNorm
from arcadia.models.cores import build_core
from arcadia.models.heads import HEAD_GAIN, ValueHead, build_policy_head
from arcadia.models.initialize import head_rows, xavier
from arcadia.models.normalize import ObservationNormalizer, RewardNormalizer
from arcadia.models.torsos import CONV_TORSOS, ConvTorso, CustomTorso, MLPTorso
from arcadia.threads import one_torch_thread
from arcadia.types import Activations, BoolArray, ModelOutput, Observations, StatisticsUpdate

BATCH_NORM_DECAY = 0.99  # of the running statistics, per rollout


class Tower(nn.Module):
    """Torso and core: observations to features. The torso computes in `dtype`, the core in float32."""

    def __init__(self, config: ModelConfig, spec: EnvSpec, dtype: torch.dtype) -> None:
        super().__init__()
        torso = _build_torso(config, spec, dtype)
        core = build_core(config.core, torso.size, config.core_size)
        if config.initialization == "xavier":
            if config.torso != "custom":
                xavier(torso)
            xavier(core)
        self.torso, self.core = torso.to(dtype), core
        self.size, self.state_size = core.size, core.state_size

    def forward(
        self, observation: Tensor, is_first: Tensor, state: Tensor, activations: Activations = ()
    ) -> tuple[Tensor, Tensor, Activations]:
        """Return the features [T, B, size] float32, the state after the last row and the torso's activations."""
        features, activations = self.torso(observation.flatten(0, 1), activations)  # [T*B, ...]
        features, state = self.core(features.float().unflatten(0, is_first.shape), is_first, state)
        return features, state, activations


class ActorCritic(nn.Module):
    """Policy and value, on one shared tower or on one each.

    The normalisers belong to the model: `normalizer` turns raw observations into its input, `reward_normalizer` (where
    there is one) scales what it learns from. Their statistics and those of batch normalisation are one flat float64
    vector [K] that workers share, beside the parameters.

    Heads and everything after them compute in float32.
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec, dtype: torch.dtype) -> None:
        super().__init__()
        # This order of parameters makes the actor's and the critic's one slice each of the flat vector.
        self.actor = Tower(config, spec, dtype)
        self.policy = build_policy_head(self.actor.size, spec, config)
        self.critic = Tower(config, spec, dtype) if config.towers == "separate" else None
        self.value = ValueHead(self.actor.size)
        if config.initialization == "xavier":
            for linear in self.policy.children():
                assert isinstance(linear, nn.Linear)
                head_rows(linear, HEAD_GAIN)
            head_rows(self.value.linear, 1.0)
        self.dtype = dtype
        self.state_size = self.actor.state_size * (1 if self.critic is None else 2)
        self.normalizer = ObservationNormalizer(config, spec)
        self.reward_normalizer = RewardNormalizer() if config.normalize_rewards else None
        self._batch_norms = [module for module in self.modules() if isinstance(module, RunningBatchNorm)]

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and inputs and outputs too."""
        return self.value.linear.weight.device

    @property
    def runs_as_graph(self) -> bool:
        """True where a CUDA graph can hold the model's kernels: on a GPU, unless the torso is the caller's own."""
        return self.device.type == "cuda" and not isinstance(self.actor.torso, CustomTorso)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one model input."""
        return self.normalizer.input_shape

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the recurrent state [B, S] float32 at the start of an episode."""
        return torch.zeros(num_envs, self.state_size, device=self.device)

    def example_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return arguments of `forward` for T = B = 1."""
        observation = torch.zeros(1, 1, *self.input_shape, dtype=self.dtype)
        return observation, torch.zeros(1, 1, dtype=torch.bool), self.initial_state(1)

    def forward(
        self, observation: Tensor, is_first: Tensor, state: Tensor, activations: Activations = ()
    ) -> ModelOutput:
        """Compute T rows; acting is T = 1.

        Args:
            observation: [T, B, *input_shape] normalised model input, in the torso's dtype.
            is_first: [T, B] bool.
            state: [B, S] float32 before row 0.
            activations: of an output for the same rows by the same parameters, of which the torso then computes only
                the gradient.
        """
        if self.critic is None:
            features, state, activations = self.actor(observation, is_first, state, activations)
            return ModelOutput(self.policy(features), self.value(features), state, activations)
        actor_state, critic_state = state.chunk(2, dim=-1)
        half = len(activations) // 2
        actor_features, actor_state, of_actor = self.actor(observation, is_first, actor_state, activations[:half])
        critic_features, critic_state, of_critic = self.critic(observation, is_first, critic_state, activations[half:])
        state = torch.cat((actor_state, critic_state), dim=-1)
        return ModelOutput(self.policy(actor_features), self.value(critic_features), state, of_actor + of_critic)

    def parameter_groups(self) -> list[slice]:
        """Return the slices of the flat vector that are clipped by themselves: all, or actor and critic."""
        size = sum(parameter.numel() for parameter in self.parameters())
        if self.critic is None:
            return [slice(0, size)]
        actor = sum(p.numel() for module in (self.actor, self.policy) for p in module.parameters())
        return [slice(0, actor), slice(actor, size)]

    @property
    def statistics_size(self) -> int:
        """K, the length of the vector of shared statistics (0 where none are kept)."""
        return sum(self._statistics_sizes())

    def _statistics_sizes(self) -> list[int]:
        """Return the lengths of its parts: observations, rewards, each batch normalisation."""
        rewards = 0 if self.reward_normalizer is None else RewardNormalizer.SIZE
        return [self.normalizer.size, rewards, *(1 + layer.recorded.numel() for layer in self._batch_norms)]

    def load_statistics(self, statistics: Tensor) -> None:
        """Take a snapshot of the shared statistics [K] float64; it holds until the next."""
        of_observations, of_rewards, *of_layers = torch.split(statistics, self._statistics_sizes())
        self.normalizer.load(of_observations, self.device)
        if self.reward_normalizer is not None:
            self.reward_normalizer.load(of_rewards)
        for layer, values in zip(self._batch_norms, of_layers, strict=True):
            weight = values[0]
            if weight > 0:
                mean, square = (values[1:] / weight).view(2, -1)
                layer.mean.copy_(mean)
                layer.variance.copy_((square - mean.square()).clamp(min=0))

    @torch.no_grad()
    def gather_statistics(
        self, newest: Observations, inputs: Tensor, returns: Tensor, valid: BoolArray
    ) -> StatisticsUpdate | None:
        """Return what the valid rows of a rollout add to the shared statistics; None where nothing is gathered.

        Args:
            newest: [T, B, ...] raw observations, as `normalizer.newest` returns them.
            inputs: [T, B, ...] model inputs.
            returns: [T, B] discounted sums of the rewards so far, of which `reward_normalizer` takes the variance.
            valid: [T, B].
        """
        if not valid.any():
            return None
        if self.normalizer.is_frozen and self.reward_normalizer is None and not self._batch_norms:
            return None
        keep = torch.ones(self.statistics_size, dtype=torch.float64)
        add = torch.zeros_like(keep)
        end = self.normalizer.size
        if not self.normalizer.is_frozen:
            keep[:end], add[:end] = self.normalizer.gather(newest, valid)
        if self.reward_normalizer is not None:
            start, end = end, end + RewardNormalizer.SIZE
            add[start:end] = self.reward_normalizer.gather(returns[torch.from_numpy(valid)])
        if self._batch_norms:
            self._record_batch(inputs[torch.from_numpy(valid)])
            keep[end:] = BATCH_NORM_DECAY
            batch = [torch.cat((torch.ones(1), layer.recorded.flatten())) for layer in self._batch_norms]
            add[end:] = (1 - BATCH_NORM_DECAY) * torch.cat(batch)
        return StatisticsUpdate(keep, add)

    def _record_batch(self, rows: Tensor) -> None:
        """Let every batch normalisation record the rows [N, ...]."""
        for layer in self._batch_norms:
            layer.is_recording = True
        self.actor.torso(rows)
        if self.critic is not None:
            self.critic.torso(rows)
        for layer in self._batch_norms:
            layer.is_recording = False


def _build_torso(config: ModelConfig, spec: EnvSpec, dtype: torch.dtype) -> ConvTorso | MLPTorso | CustomTorso:
    if config.torso == "custom":
        if spec.make_torso is None:
            raise UserError("torso custom is a class of the caller's: give make_torso, from Python")
        return CustomTorso(spec.observation_shape, spec.make_torso, dtype)
    if config.torso == "mlp":
        return MLPTorso(spec.observation_shape, config.hidden_sizes, config.activation)
    if not spec.is_image:
        raise UserError(
            f"torso {config.torso} needs pixels, but the observation has shape "
            f"{spec.observation_shape}: use --torso mlp"
        )
    return ConvTorso(spec.observation_shape, CONV_TORSOS[config.torso])


def torso_dtype(config: ModelConfig) -> torch.dtype:
    """Return the torso's dtype; float32 where "auto" was not resolved by a measurement."""
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def build_model(config: ModelConfig, spec: EnvSpec, *, seed: int, dtype: torch.dtype = torch.float32) -> ActorCritic:
    """Build a model whose initial parameters depend on `seed` alone."""
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ActorCritic(config, spec, dtype)
