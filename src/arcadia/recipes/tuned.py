"""Our own tuned settings."""

from arcadia.config import (
    EnvConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)
from arcadia.recipes.recipe import Recipe

TUNED: dict[str, Recipe] = {
    "atari": Recipe(
        description="tuned default for Atari games",
        source="Arcadia",
        config=TrainConfig(
            recipe="atari",
            env=EnvConfig(num_envs=16),
            model=ModelConfig(torso="a3c"),
            loss=LossConfig(
                advantage="gae",
                gae_lambda=0.95,
                entropy_coefficient=0.01,
                entropy_schedule="linear",
                # A policy that had learned Pong (19.2 by its most probable actions) scored 12.0 when it was sampled.
                entropy_horizon=0.45,
                max_grad_norm=0.5,
                num_epochs=2,
                num_minibatches=4,
                clip_range=0.2,
            ),
            # Asynchrony brings momentum of its own (Mitliagkas et al. 2016, arXiv:1605.09774).
            optimizer=OptimizerConfig(optimizer="adam", lr=1e-3, schedule="linear", beta1=0.5, epsilon=1e-5),
            runtime=RuntimeConfig(num_steps=(40,), total_steps=3_000_000),  # half an hour on two cores
        ),
    ),
    "control": Recipe(
        description="tuned default for control tasks, discrete and continuous",
        source="Arcadia",
        config=TrainConfig(
            recipe="control",
            env=EnvConfig(num_envs=8, stagger=True, clip_rewards=False),
            model=ModelConfig(torso="mlp", hidden_sizes=(64, 64), normalize_rewards=True),
            loss=LossConfig(
                normalize_advantage=True,
                entropy_coefficient=0.0,
                max_grad_norm=5.0,
                num_epochs=8,
                num_minibatches=8,
                clip_range=0.2,
            ),
            optimizer=OptimizerConfig(lr=1e-3, schedule="linear"),
            runtime=RuntimeConfig(num_steps=(256,), total_steps=5_000_000),
        ),
    ),
    "swingup": Recipe(
        description="tuned for the inverted pendulum swing-up",
        source="Arcadia",
        games=("InvertedPendulumSwingupBulletEnv-v0",),
        config=TrainConfig(
            recipe="swingup",
            env=EnvConfig(env="InvertedPendulumSwingupBulletEnv-v0", num_envs=32, stagger=True, clip_rewards=False),
            model=ModelConfig(torso="mlp", normalize_rewards=True),
            loss=LossConfig(
                gamma=0.995,
                gae_lambda=0.97,
                normalize_advantage=True,
                entropy_coefficient=0.0,
                max_grad_norm=0.5,
                num_epochs=8,
                num_minibatches=4,
                clip_range=0.2,
            ),
            optimizer=OptimizerConfig(lr=3e-4, schedule="linear"),
            runtime=RuntimeConfig(num_steps=(64,), total_steps=3_000_000),
        ),
    ),
}
