"""Learning, in real processes, of tasks with known solutions (make slow)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_envs import (
    TOY,
    Balanced,
    ConstantReward,
    LatePixels,
    configure,
    make_balanced,
    make_catch,
    make_constant_reward,
    make_late_pixels,
    make_memory,
    make_target,
)

from arcadia.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from arcadia.config import EnvConfig
from arcadia.envs import EnvFactory
from arcadia.evaluation import evaluate_run
from arcadia.metrics import read_metrics
from arcadia.models import ActorCritic, FlatParameters, build_model
from arcadia.models.normalize import CLIP
from arcadia.models.space_to_depth import space_to_depth
from arcadia.recipes import recipe
from arcadia.run_directory import load_config
from arcadia.runtimes import resume, train

pytestmark = pytest.mark.slow

WORKERS = {"runtime": "hogwild", "num_workers": 2, "eval_cpu_share": 0.05}


def final(run: Path) -> Checkpoint:
    path = newest_checkpoint(run)
    assert path is not None
    return load_checkpoint(path)


def trained_model(run: Path, make_env: EnvFactory) -> ActorCritic:
    """Return the final model of a run, its normaliser with it."""
    config, checkpoint = load_config(run), final(run)
    spec = make_env(EnvConfig(), num_envs=1, seed=0).spec
    model = build_model(config.model, spec, seed=0)
    FlatParameters(model).load(checkpoint.parameters)
    model.load_statistics(checkpoint.statistics.sum(0))
    return model


def test_the_control_recipe_solves_cartpole(tmp_path):
    """The bar is 2 minutes on an idle machine with 2 cores."""
    config = configure(
        recipe("control").config,
        "CartPole-v1",
        tmp_path / "run",
        **WORKERS,
        stop_score=475.0,
        total_minutes=8.0,
    )
    result = train(config)
    assert result.reason == "stop_score", f"mean {result.mean_return} after {result.env_steps} env_steps"
    assert result.mean_return is not None
    assert result.mean_return >= 475
    played = evaluate_run(tmp_path / "run", episodes=20, greedy=True).result
    assert played["mean"] >= 450


@pytest.mark.parametrize("core", ["lstm", "gru", "none"])
def test_only_a_recurrent_core_solves_the_memory_task(tmp_path, core):
    run = tmp_path / "run"
    config = configure(
        TOY,
        "toy",
        run,
        **WORKERS,
        core=core,
        core_size=24,
        hidden_sizes=(16,),
        normalization="none",
        num_envs=8,
        num_steps=18,
        num_epochs=2,
        lr=3e-3,
        entropy_coefficient=0.003,
        schedule="linear",  # stopping at a good score instead would end on a lucky window
        total_steps=150_000 if core == "none" else 400_000,
        total_minutes=6.0,
        eval_episodes=0,
    )
    result = train(config, make_env=make_memory)
    played = evaluate_run(run, episodes=300, make_env=make_memory, seed=result.env_steps).result
    if core == "none":
        assert 0.35 < played["mean"] < 0.65, "5 standard deviations around chance"
    else:
        assert played["mean"] >= 0.9


def test_a_time_limit_bootstraps_from_the_value_of_the_last_observation(tmp_path):
    """Reward 1 for ever is worth 1 / (1 - gamma), wherever a time limit cuts the play into pieces."""
    run = tmp_path / "run"
    gamma = 0.9
    config = configure(
        TOY,
        "toy",
        run,
        **WORKERS,
        gamma=gamma,
        hidden_sizes=(16,),
        num_steps=10,
        num_epochs=1,
        clip_range=None,
        lr=3e-3,
        max_grad_norm=5.0,
        schedule="linear",
        total_steps=150_000,
        normalization_steps=1_000,
        eval_episodes=0,
    )
    train(config, make_env=make_constant_reward)
    model = trained_model(run, make_constant_reward)
    bits = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=torch.float32)
    inputs = torch.empty(8, 3)
    model.normalizer.apply(bits.numpy(), out=inputs)
    with torch.no_grad():
        output = model(inputs[None], torch.zeros(1, 8, dtype=torch.bool), model.initial_state(8))
    worth = 1 / (1 - gamma)
    assert 2 * worth > ConstantReward.NUM_STEPS, "without the bootstrap the value would be far below"
    assert ((output.value - worth).abs() < 0.05 * worth).all(), output.value


def test_a_pendulum_that_cannot_fall_is_worth_an_endless_return(tmp_path):
    """Its time limit is no end: with continuous actions and normalised rewards, V = 1 / (1 - gamma), rescaled."""
    run, gamma = tmp_path / "run", 0.95
    settings = {"lr": 3e-3, "schedule": "linear", "total_steps": 60_000, "eval_episodes": 0, "gamma": gamma}
    config = configure(TOY, "toy", run, **WORKERS, **settings, policy="squashed", normalize_rewards=True)
    train(config, make_env=make_balanced)
    model = trained_model(run, make_balanced)
    assert model.reward_normalizer is not None
    inputs = torch.empty(1, 3)
    model.normalizer.apply(np.array([[1, 0, 0]], np.float32), out=inputs)
    with torch.no_grad():
        value = float(model(inputs[None], torch.zeros(1, 1, dtype=torch.bool), model.initial_state(1)).value)
    worth = float(model.reward_normalizer.apply(torch.tensor(1.0))) / (1 - gamma)
    limited = worth * (1 - gamma ** (Balanced.NUM_STEPS / 2))
    assert abs(limited - worth) > 0.3 * worth, "without the bootstrap the value would be far below"
    assert abs(value - worth) < 0.05 * worth, (value, worth)


@pytest.mark.parametrize(
    "policy",
    [
        {"policy": "gaussian", "action_std": "free"},
        {"policy": "gaussian", "action_std": "state", "action_mean": "clamped_tanh"},
        {"policy": "squashed", "action_std": "free"},
        {"policy": "squashed", "action_std": "state"},
    ],
    ids=lambda policy: "-".join(policy.values()),
)
def test_every_continuous_policy_learns_to_hit_a_target(tmp_path, policy):
    run = tmp_path / "run"
    settings = {"gamma": 0.0, "lr": 3e-3, "schedule": "linear", "total_steps": 100_000, "eval_episodes": 0}
    # Without it a squashed policy may stop exploring at a bound.
    entropy = {"entropy_coefficient": 0.01, "entropy_schedule": "linear"}
    config = configure(TOY, "toy", run, **WORKERS, **settings, **entropy, **policy, normalize_rewards=True)
    train(config, make_env=make_target)
    played = evaluate_run(run, episodes=50, greedy=True, make_env=make_target).result
    # In the middle, without looking: 2 dimensions x variance 64/12 x 10 steps = 107
    assert played["mean"] > -5, played["mean"]


def test_pixels_that_first_change_after_the_freeze_stay_within_the_clip_and_do_no_harm(tmp_path):
    run = tmp_path / "run"
    limit = 500
    config = configure(
        TOY,
        "toy",
        run,
        **WORKERS,
        torso="a3c",
        dtype="float32",
        entropy_coefficient=0.01,
        num_epochs=1,
        clip_range=None,
        num_envs=8,
        num_steps=16,
        lr=5e-4,
        schedule="constant",
        gamma=0.5,
        normalization="per_element",
        normalization_steps=limit,
        total_steps=12_000,
        eval_episodes=0,
    )
    train(config, make_env=make_late_pixels)
    early = final(run)
    result = resume(run, total_steps=40_000, make_env=make_late_pixels)
    late = final(run)

    # Frozen: at most the rollouts that were under way came on top, and none of the border's changes.
    count = float(late.statistics[:, 0].sum())
    assert limit <= count <= limit + 2 * 2 * 8 * 16
    assert late.statistics.equal(early.statistics)
    normalizer = trained_model(run, make_late_pixels).normalizer
    assert normalizer.is_frozen
    env = make_late_pixels(EnvConfig(), num_envs=3, seed=5)
    observation = env.reset()
    inputs = torch.empty(env.num_envs, *normalizer.input_shape)
    border = torch.empty(*normalizer.input_shape[:2], 16, dtype=torch.bool)
    space_to_depth(torch.from_numpy(LatePixels.border())[None, None], 4, border[None])
    seen = []
    for _ in range(3 * LatePixels.NUM_CALM_STEPS):
        normalizer.apply(observation, out=inputs)
        assert inputs.abs().max() <= CLIP
        seen.append(inputs.chunk(4, -1)[-1][:, border].abs().max())
        observation = env.step(torch.zeros(env.num_envs, dtype=torch.int64).numpy()).observation
    assert seen[0] == 0, "a border that never changed says nothing"
    assert max(seen) == CLIP, "a white border is as far out as anything may be"

    # Learning went on with it.
    assert not late.parameters.equal(early.parameters)
    assert late.parameters.isfinite().all()
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert all(abs(row["loss"]) < 10 and row["gradient_norm"] < 1000 for row in rows)
    assert result.mean_return is not None
    assert result.mean_return >= 0.9 * LatePixels.NUM_STEPS


@pytest.mark.parametrize(
    "model",
    [
        {"torso": "a3c"},
        {"torso": "a3c_bn"},
        {"torso": "nature"},
        {"torso": "nature_2", "towers": "separate"},
        {"torso": "narrow_8", "core": "gru"},
        {"torso": "narrow_16", "towers": "separate", "core": "lstm"},
        {"torso": "max_pool", "core": "lstm", "initialization": "xavier", "normalization": "scalar"},
    ],
    ids=lambda model: "-".join(model.values()),
)
def test_every_torso_core_and_tower_layout_learns_to_catch(tmp_path, model):
    config = configure(
        TOY,
        "toy",
        tmp_path / "run",
        **WORKERS,
        **({"normalization": "scale", "core_size": 64} | model),
        num_envs=16,
        num_steps=12,
        num_epochs=2,
        lr=5e-4,
        entropy_coefficient=0.01,
        total_steps=10**6,
        total_minutes=3.0,
        stop_score=0.9,
        eval_episodes=0,
    )
    result = train(config, make_env=make_catch)
    assert result.reason == "stop_score", f"mean {result.mean_return} after {result.env_steps} env_steps"
