"""Arcadia from Python, and the examples."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import arcadia
from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env
from arcadia.run_directory import load_config
from arcadia.types import UserError

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "runtime": "serial",
    "num_envs": 2,
    "num_steps": 16,
    "num_minibatches": 2,
    "hidden_sizes": [8],
    "eval_episodes": 0,
}


def train(run: Path, env: str = "CartPole-v1", **settings: object) -> Path:
    arcadia.train(env, run_dir=str(run), **({"total_steps": 200} | SMALL | settings))
    return run


def test_settings_have_the_names_of_the_command_line(tmp_path: Path) -> None:
    result = arcadia.train("CartPole-v1", run_dir=str(tmp_path / "run"), total_steps=100, lr=0.002, seed=7, **SMALL)
    assert result.run == tmp_path / "run"
    assert result.reason == "total_steps"
    config = load_config(result.run)
    assert config.recipe == "control"
    assert (config.optimizer.lr, config.runtime.seed, config.runtime.num_steps) == (0.002, 7, (16,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e-3}, "unknown setting 'learning_rate'; closest: see `arcadia train --help`"),
        ({"num_env": 3}, "unknown setting 'num_env'; closest: num_envs"),
        ({"lr": -1.0}, "lr must be > 0 and finite, got -1"),
        ({"lr": "fast"}, "config.optimizer.lr must be float, got 'fast'"),
        ({"hidden_sizes": "big"}, "config.model.hidden_sizes must be a list of int, got 'big'"),
        ({"total_minutes": "1"}, "config.runtime.total_minutes must be float or none, got '1'"),
        ({"recipe": "nope"}, "unknown recipe 'nope'"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arcadia.train("CartPole-v1", run_dir=str(tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


def test_settings_may_be_paths_and_numbers_of_numpy(tmp_path: Path) -> None:
    settings = SMALL | {"hidden_sizes": 8}
    arcadia.train("CartPole-v1", run_dir=tmp_path / "run", total_steps=np.int64(50), lr=np.float32(0.5), **settings)
    config = load_config(tmp_path / "run")
    assert (config.optimizer.lr, config.runtime.total_steps, config.model.hidden_sizes) == (0.5, 50, (8,))


def make_mine(config: EnvConfig, **_: object) -> object:
    raise AssertionError("never called")


def test_an_environment_of_ones_own_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'breakout' is an environment that Arcadia knows"):
        arcadia.train("breakout", make_env=make_mine, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="must be a function of a module"):
        arcadia.train("mine", make_env=lambda config, **_: None, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_plays_whole_games(tmp_path: Path) -> None:
    result = arcadia.evaluate(train(tmp_path / "run"), episodes=5, num_envs=2)
    assert len(result["scores"]) == 5
    assert result["mean"] == np.mean(result["scores"])


def test_an_agent_plays_as_the_evaluation_does(tmp_path: Path) -> None:
    """Greedy, from the same first observation."""
    run = train(tmp_path / "run", total_steps=2000, core="lstm", core_size=8)
    agent = arcadia.load(run)
    env = make_vector_env(EnvConfig(env="CartPole-v1"), num_envs=1, seed=5)
    observation = env.reset()
    score, step = 0.0, None
    while step is None or not step.reset_next[0]:
        step = env.step(agent.act(observation[0], greedy=True)[None])
        observation, score = step.observation, score + float(step.reward[0])
    result = arcadia.evaluate(run, episodes=1, greedy=True, make_env=lambda config, **_: fresh(seed=5))
    assert result["scores"] == [score]


def fresh(seed: int) -> object:
    return make_vector_env(EnvConfig(env="CartPole-v1"), num_envs=1, seed=seed)


def test_reset_forgets_the_episode(tmp_path: Path) -> None:
    run = train(tmp_path / "run", core="gru", core_size=8)
    agent, observation = arcadia.load(run), np.full(4, 0.5, np.float32)

    def state() -> np.ndarray:
        agent.act(observation)
        return agent._state.numpy().copy()

    first, second = state(), state()
    assert np.abs(first - second).max() > 1e-3
    agent.reset()
    np.testing.assert_array_equal(state(), first)


def test_actions_are_the_environments_own(tmp_path: Path) -> None:
    pendulum = arcadia.load(train(tmp_path / "pendulum", "Pendulum-v1", initial_std=50.0))
    torques = np.array([pendulum.act(np.array([1, 0, 0], np.float32)) for _ in range(40)])
    assert torques.shape == (40, 1)
    assert set(np.abs(torques).ravel()) == {2.0}, "Pendulum's bounds are -2 and 2"
    cartpole = arcadia.load(train(tmp_path / "cartpole"), seed=1)
    actions = {int(cartpole.act(np.zeros(4))) for _ in range(40)}
    assert actions == {0, 1}
    with pytest.raises(UserError, match=r"must have shape \(4,\), got \(3,\)"):
        cartpole.act(np.zeros(3))
    with pytest.raises(UserError, match="observation must be finite"):
        cartpole.act(np.array([0, np.nan, 0, 0]))


def test_an_action_that_was_left_out_is_counted(tmp_path: Path) -> None:
    """towers-24 has no NOOP: its action 0 is the game's action 1."""
    settings = {"frame_size": [36, 36], "drop_noop": True, "torso": "mlp", "normalize_rewards": False}
    agent = arcadia.load(train(tmp_path / "run", "pong", **settings))
    actions = {int(agent.act(np.zeros(agent.observation_shape, np.uint8))) for _ in range(60)}
    assert actions == {1, 2, 3, 4, 5}


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, arcadia; assert arcadia.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_with_an_environment_of_ones_own(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "custom_environment.py")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    score = float(next(line for line in lines if line.startswith("mean score")).split(": ")[1])
    assert score == pytest.approx(1 - 9 * 0.01, abs=0.005), "ten steps to the door"
    assert "the door was reached in 10 steps" in lines


def test_the_example_of_a_gymnasium_loop(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "Pendulum-v1")
    command = [sys.executable, str(EXAMPLES / "evaluate_in_gymnasium.py"), str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    printed = float(result.stdout.split()[1])
    env = gymnasium.make("Pendulum-v1")
    agent, (observation, _) = arcadia.load(run), env.reset(seed=0)
    score = 0.0
    for _ in range(200):
        observation, reward, *_ = env.step(agent.act(observation, greedy=True))
        score += float(reward)
    assert printed == pytest.approx(score, abs=0.1)
