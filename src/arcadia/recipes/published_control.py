"""Published A3C systems with continuous actions as recipes."""

import math
from dataclasses import replace

from arcadia.config import EnvConfig, ModelConfig, OptimizerConfig, RuntimeConfig, TrainConfig
from arcadia.recipes.published_atari import A3C_LOSS, BATCHED, TIME_LIMITS
from arcadia.recipes.recipe import Recipe

_SWINGUP_ID = "InvertedPendulumSwingupBulletEnv-v0"
_SWINGUP = TrainConfig(
    env=EnvConfig(env=_SWINGUP_ID, num_envs=1, clip_rewards=False),
    model=ModelConfig(
        torso="mlp",
        hidden_sizes=(512, 256),
        activation="relu",
        policy="gaussian",
        action_mean="clamped_tanh",
        action_std="state",
        initial_std=math.log(2),
        normalization="none",
    ),
    loss=replace(A3C_LOSS, gamma=0.95, value_coefficient=0.25, entropy_coefficient=0.005),
    optimizer=OptimizerConfig(optimizer="adam", lr=4e-4, schedule="constant", beta1=0.95, epsilon=1e-8),
    runtime=RuntimeConfig(total_steps=3_000_000, total_episodes=3000),
)


def _swingup(num_steps: int, reported: str) -> Recipe:
    """Return the swing-up system with rollouts of this length."""
    name = f"swingup-{num_steps}step"
    return Recipe(
        description=f"inverted pendulum swing-up, {num_steps}-step returns, as published",
        source="an A3C with continuous actions on PyBullet's inverted pendulum swing-up",
        protocol="3,000 episodes; a separate process plays on; solved (1) when its mean score passes 400",
        reported=reported,
        games=(_SWINGUP_ID,),
        config=replace(
            _SWINGUP,
            recipe=name,
            optimizer=replace(_SWINGUP.optimizer, lr=3e-5 if num_steps < 3 else 4e-4),
            runtime=replace(_SWINGUP.runtime, num_steps=(num_steps,)),
        ),
        deviations=(
            "the layers are the source's code (512, 256), not its text (256, 128)",
            "beyond the clamp of the action's mean the gradient leads back to the bound: the clamp's own is 0 there, "
            "where most runs got stuck",
            "gradients are clipped to norm 40, as in the A3C paper: the source is silent",
            "a rollout goes on over the end of an episode, whose last steps are learned from with it",
            TIME_LIMITS,
            "local parameters never overwrite the shared ones",
            "the entropy is that of the Gaussian, weighted by 0.005: the source put the standard deviation where the "
            "variance belongs, which halves the gradient, and weighted that by 0.01",
        ),
    )


CONTROL: dict[str, Recipe] = {
    "swingup-1step": _swingup(1, "solved (1) after 672 to 3,594 s over all its settings"),
    "swingup-8step": _swingup(8, "mean score 624.7 after 1,471 s"),
    "swingup-16step": _swingup(16, "mean score above 400, unfinished"),
    "biped-hardcore": Recipe(
        description="BipedalWalkerHardcore with an LSTM (a3c_continuous)",
        source="a3c_continuous, the sister of rl_a3c_pytorch",
        protocol="18 workers",
        reported="mean of 100 episodes at least 300",
        games=("BipedalWalkerHardcore-v3",),
        config=TrainConfig(
            recipe="biped-hardcore",
            env=EnvConfig(
                env="BipedalWalkerHardcore-v3", total_envs=18, clip_rewards=False, reward_scale=1.5, reward_floor=-20.0
            ),
            model=ModelConfig(
                torso="mlp",
                hidden_sizes=(320, 160),
                activation="leaky_relu",
                core="lstm",
                core_size=160,
                policy="gaussian",
                action_std="state",
                initial_std=math.log(2),
                initialization="xavier",
            ),
            loss=replace(A3C_LOSS, gamma=0.98, advantage="gae", gae_lambda=0.8),
            optimizer=OptimizerConfig(optimizer="amsgrad", lr=1e-4, schedule="constant", epsilon=1e-8),
            runtime=RuntimeConfig(num_steps=(20,), total_steps=100_000_000),
        ),
        deviations=(
            BATCHED,
            TIME_LIMITS,
            "the mean of the Gaussian is linear, and entropy 0.01, value 0.5 and gradient norm 40 are those of the A3C "
            "paper's re-implementations",
        ),
    ),
}
