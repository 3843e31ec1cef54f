"""Named settings: published systems and our own tuned ones, as plain frozen data."""

from dataclasses import dataclass, field

from arcadia.config import (
    EnvConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)
from arcadia.types import UserError


@dataclass(frozen=True)
class Recipe:
    """Settings with their source."""

    description: str
    source: str
    config: TrainConfig
    deviations: tuple[str, ...] = field(default=())


_A3C_LOSS = LossConfig(
    gamma=0.99,
    advantage="n_step",
    value_coefficient=0.5,
    entropy_coefficient=0.01,
    reduction="sum_over_steps",
    max_grad_norm=40.0,
)
_A3C_OPTIMIZER = OptimizerConfig(optimizer="rmsprop", lr=7e-4, schedule="linear", epsilon=0.1, alpha=0.99)
_A3C_SOURCE = (
    "Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783; learning rate, epsilon "
    "and gradient norm as re-implementers relay them from the authors"
)
_A3C_DEVIATIONS = (
    "one worker per core with 8 environments each, instead of 16 workers with one: fewer, larger updates",
    "the learning rate is the relayed 7e-4 instead of a sample from LogUniform(1e-4, 1e-2)",
    "no-op starts instead of human starts",
)

RECIPES: dict[str, Recipe] = {
    "atari": Recipe(
        description="tuned default for Atari games",
        source="Arcadia",
        config=TrainConfig(
            recipe="atari",
            env=EnvConfig(num_envs=16),
            model=ModelConfig(torso="a3c", normalization="per_element"),
            loss=LossConfig(
                advantage="gae",
                gae_lambda=0.95,
                entropy_coefficient=0.01,
                entropy_schedule="linear",
                max_grad_norm=0.5,
                num_epochs=2,
                num_minibatches=4,
                clip_range=0.2,
            ),
            optimizer=OptimizerConfig(optimizer="adam", lr=1e-3, schedule="linear", epsilon=1e-5),
            runtime=RuntimeConfig(num_steps=40, total_steps=10_000_000),
        ),
    ),
    "control": Recipe(
        description="tuned default for classic control",
        source="Arcadia",
        config=TrainConfig(
            recipe="control",
            env=EnvConfig(num_envs=8, clip_rewards=False),
            model=ModelConfig(torso="mlp", hidden_sizes=(64, 64), normalization="per_element"),
            loss=LossConfig(
                normalize_advantage=True,
                entropy_coefficient=0.0,
                max_grad_norm=5.0,
                num_epochs=8,
                num_minibatches=4,
                clip_range=0.2,
            ),
            optimizer=OptimizerConfig(lr=1e-3, schedule="linear"),
            runtime=RuntimeConfig(num_steps=64, total_steps=2_000_000),
        ),
    ),
    "a3c-ff": Recipe(
        description="A3C feed-forward, as published",
        source=_A3C_SOURCE,
        config=TrainConfig(
            recipe="a3c-ff",
            model=ModelConfig(torso="a3c", normalization="scale"),
            loss=_A3C_LOSS,
            optimizer=_A3C_OPTIMIZER,
            runtime=RuntimeConfig(num_steps=5, total_steps=80_000_000),
        ),
        deviations=_A3C_DEVIATIONS,
    ),
    "a3c-lstm": Recipe(
        description="A3C with an LSTM of 256 units, as published",
        source=_A3C_SOURCE,
        config=TrainConfig(
            recipe="a3c-lstm",
            model=ModelConfig(torso="a3c", core="lstm", core_size=256, normalization="scale"),
            loss=_A3C_LOSS,
            optimizer=_A3C_OPTIMIZER,
            runtime=RuntimeConfig(num_steps=5, total_steps=80_000_000),
        ),
        deviations=_A3C_DEVIATIONS,
    ),
}


def recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[name]
