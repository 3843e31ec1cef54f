"""The model that workers and evaluators use: torso -> core -> heads, one forward for acting and learning."""

import torch
from torch import Tensor, nn

from arcadia.config import ModelConfig
from arcadia.envs import EnvSpec
from arcadia.models.cores import build_core
from arcadia.models.heads import CategoricalHead, ValueHead
from arcadia.models.torsos import ConvTorso, MLPTorso, a3c_torso, nature_torso
from arcadia.types import ModelOutput, UserError


class ActorCritic(nn.Module):
    """Policy and value over a shared torso.

    The torso computes in `dtype`; core, heads and everything after them in float32.
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.torso = _build_torso(config, spec).to(dtype)
        self.core = build_core(config.core, self.torso.size, config.core_size)
        self.policy = CategoricalHead(self.core.size, spec.num_actions)
        self.value = ValueHead(self.core.size)
        self.dtype = dtype

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the recurrent state [B, S] float32 at the start of an episode."""
        return torch.zeros(num_envs, self.core.state_size)

    def forward(self, observation: Tensor, is_first: Tensor, state: Tensor) -> ModelOutput:
        """Compute T rows; acting is T = 1.

        Args:
            observation: [T, B, ...] normalised model input, in the torso's dtype.
            is_first: [T, B] bool.
            state: [B, S] float32 before row 0.
        """
        num_steps, num_envs = is_first.shape
        features = self.torso(observation.flatten(0, 1)).float()  # [T*B, size]
        features = features.unflatten(0, (num_steps, num_envs))  # [T, B, size]
        features, state = self.core(features, is_first, state)
        return ModelOutput(self.policy(features), self.value(features), state)


def _build_torso(config: ModelConfig, spec: EnvSpec) -> ConvTorso | MLPTorso:
    if config.torso == "mlp":
        return MLPTorso(spec.observation_shape, config.hidden_sizes)
    if not spec.is_image:
        raise UserError(
            f"torso {config.torso} needs pixels, but the observation has shape "
            f"{spec.observation_shape}: use --torso mlp"
        )
    return (a3c_torso if config.torso == "a3c" else nature_torso)(spec.observation_shape)


def torso_dtype(config: ModelConfig) -> torch.dtype:
    """Return the torso's dtype; float32 where "auto" was not resolved by a measurement."""
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def build_model(config: ModelConfig, spec: EnvSpec, *, seed: int, dtype: torch.dtype = torch.float32) -> ActorCritic:
    """Build a model whose initial parameters depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ActorCritic(config, spec, dtype)
