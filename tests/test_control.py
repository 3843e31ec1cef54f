"""Continuous control: the recipes, their networks and rewards, on the real environments."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch

from arcadia.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from arcadia.cli import main
from arcadia.config import EnvConfig, TrainConfig
from arcadia.distributions import DiagonalGaussian
from arcadia.envs import make_vector_env, spec_of
from arcadia.metrics import read_metrics
from arcadia.models import build_model
from arcadia.recipes import RECIPES
from arcadia.rollout import learned_reward
from arcadia.runtimes import train

SWINGUP = "InvertedPendulumSwingupBulletEnv-v0"
SOURCES = ["swingup-1step", "swingup-8step", "swingup-16step"]


def test_swingup_is_the_sources_environment() -> None:
    env = make_vector_env(EnvConfig(env=SWINGUP), num_envs=1, seed=1)
    assert (env.spec.observation_shape, env.spec.num_actions, env.spec.is_continuous) == ((5,), 1, True)
    assert gymnasium.spec(SWINGUP).max_episode_steps == 1000


@pytest.mark.parametrize("name", SOURCES)
def test_swingup_recipes_are_the_sources_settings(name: str) -> None:
    config = RECIPES[name].config
    (num_steps,) = config.runtime.num_steps
    assert name == f"swingup-{num_steps}step"
    assert config.optimizer.lr == (3e-5 if num_steps < 3 else 4e-4)
    assert (config.optimizer.beta1, config.optimizer.beta2, config.loss.gamma) == (0.95, 0.999, 0.95)
    assert config.loss.value_coefficient == 0.5 * 0.5
    std = torch.tensor(0.7, requires_grad=True)
    source = 0.01 * 0.5 * (1 + torch.log(2 * torch.pi * std))  # with the standard deviation in the variance's place
    ours = config.loss.entropy_coefficient * DiagonalGaussian(torch.zeros(1), std.view(1)).entropy().sum()
    assert torch.allclose(*(torch.autograd.grad(entropy, std)[0] for entropy in (source, ours)))
    assert config.runtime.total_episodes == 3000
    model = build_model(config.model, spec_of(config.env), seed=1)
    heads = 3 * (256 + 1)  # mean, standard deviation, value
    assert sum(p.numel() for p in model.parameters()) == (5 * 512 + 512) + (512 * 256 + 256) + heads
    torso = [type(layer).__name__ for layer in model.actor.torso.layers]
    assert torso == ["Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    with torch.no_grad():
        policy = model(100 * torch.randn(1, 50, 5), torch.zeros(1, 50, dtype=torch.bool), torch.zeros(50, 0)).policy
    assert isinstance(policy, DiagonalGaussian)
    assert policy.mean.abs().max() <= 1
    assert policy.std.std() > 0, "from the state"


def test_biped_hardcore_is_the_sources_network_and_reward() -> None:
    config = RECIPES["biped-hardcore"].config
    model = build_model(config.model, spec_of(config.env), seed=1)
    torso = (24 * 320 + 320) + (320 * 160 + 160)
    core = 4 * 160 * (160 + 160 + 2)
    heads = 2 * (160 * 4 + 4) + (160 + 1)
    assert sum(p.numel() for p in model.parameters()) == torso + core + heads
    reward = torch.tensor([[1.0, -4.0, -100.0, 0.0]])
    assert learned_reward(reward, config.env).tolist() == [[1.5, -6.0, -20.0, 0.0]]
    assert (config.optimizer.optimizer, config.optimizer.lr) == ("amsgrad", 1e-4)
    assert (config.loss.gamma, config.loss.gae_lambda, config.runtime.num_steps) == (0.98, 0.8, (20,))


def _short_run(config: TrainConfig, folder: Path) -> Checkpoint:
    limits = {"total_steps": 400, "eval_episodes": 0, "num_workers": 1, "run_dir": str(folder), "runtime": "serial"}
    env = dataclasses.replace(config.env, num_envs=2)
    train(dataclasses.replace(config, env=env, runtime=dataclasses.replace(config.runtime, **limits)))
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path)


@pytest.mark.parametrize("name", [*SOURCES, "swingup", "biped-hardcore"])
def test_serial_is_reproducible_for_every_recipe(name: str, tmp_path) -> None:
    config = RECIPES[name].config
    one, again = (_short_run(config, tmp_path / folder) for folder in ("one", "again"))
    assert one.parameters.isfinite().all()
    assert torch.equal(one.parameters, again.parameters)
    assert torch.equal(one.statistics, again.statistics)
    assert one.env_steps >= 400


@pytest.mark.parametrize("env", ["Pendulum-v1", "LunarLanderContinuous-v3", "HalfCheetah-v5", SWINGUP])
def test_control_is_what_control_tasks_get(env: str, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    limits = ["--runtime", "serial", "--total-steps", "600", "--eval-episodes", "1", "--eval-updates", "30"]
    assert main(["train", env, *limits, "--run-dir", str(tmp_path / "run")]) == 0
    out, err = capfd.readouterr()
    assert f"{env}, recipe control" in out
    assert "argv[0]" not in out, "PyBullet's own output"
    assert "WARNING" not in err, "MuJoCo's own"
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert rows
    assert "max_probability" not in rows[-1]


def test_what_pybullet_has_to_say_is_not_shown() -> None:
    code = f"""if True:
        from arcadia.config import EnvConfig
        from arcadia.envs import make_vector_env
        make_vector_env(EnvConfig(env="{SWINGUP}"), num_envs=2, seed=1).reset()
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_staggered_training_reports_whole_games_alone(tmp_path) -> None:
    run = tmp_path / "run"
    options = ["--runtime", "serial", "--total-steps", "8000", "--eval-episodes", "9", "--eval-updates", "20"]
    options += ["--num-steps", "25", "--num-envs", "8", "--num-epochs", "1", "--num-minibatches", "1"]
    assert main(["train", "Pendulum-v1", *options, "--run-dir", str(run), "--quiet"]) == 0
    rows = list(read_metrics(run))
    episodes = [row for row in rows if row["kind"] == "episode"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert RECIPES["control"].config.env.stagger
    assert {row["length"] for row in episodes} == {200}
    assert {row["mean_length"] for row in evaluations} == {200}
    assert len({row["env_steps"] for row in episodes[:8]}) == 8, "its eight environments end at different times"
    trained = [row for row in rows if row["kind"] == "train"]
    assert (len(episodes), evaluations != []) == (trained[-1]["episodes"], True)
