"""Arcadia from Python, and the examples."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import arcadia
from arcadia.checkpoint import load_newest
from arcadia.cli import main
from arcadia.config import EnvConfig
from arcadia.envs import make_vector_env
from arcadia.errors import UserError
from arcadia.run_directory import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "runtime": "serial",
    "num_envs": 2,
    "num_steps": 16,
    "num_epochs": 1,  # eight take time
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
        ({"lr": -1.0}, r"lr must be > 0 and <= 1e\+06, got -1"),
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


class Wide(nn.Module):
    """One layer with 3 x D + 3 parameters."""

    def __init__(self, observation_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(observation_shape[0], 3)

    def forward(self, observation: Tensor) -> Tensor:
        return self.linear(observation).tanh()


def with_batch_norm(observation_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(observation_shape[0], 3), nn.BatchNorm1d(3))


def with_dropout(observation_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(observation_shape[0], 30), nn.Dropout())


def too_narrow(observation_shape: tuple[int, ...]) -> nn.Module:
    return nn.Linear(observation_shape[0] + 1, 3)


def for_pixels(observation_shape: tuple[int, ...]) -> nn.Module:
    channels, _height, _width = observation_shape
    return nn.Conv2d(channels, 3, 3)


def recurrent(observation_shape: tuple[int, ...]) -> nn.Module:
    return nn.LSTM(observation_shape[0], 3)


def no_module(observation_shape: tuple[int, ...]) -> object:
    return sum


def transposed(observation_shape: tuple[int, ...]) -> nn.Module:
    return nn.Unflatten(1, (1, observation_shape[0]))


def compiled(observation_shape: tuple[int, ...]) -> nn.Module:
    """It cannot be traced for TensorBoard's graph."""
    return torch.compile(nn.Linear(observation_shape[0], 8), backend="eager")


def test_a_torso_of_ones_own_is_trained_resumed_and_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    settings = SMALL | {"runtime": "hogwild", "num_workers": 2, "total_steps": 2000, "eval_episodes": 1}
    arcadia.train("CartPole-v1", make_torso=Wide, run_dir=run, **settings)
    before = load_newest(run)[1]
    assert len(before.parameters) == (4 * 3 + 3) + (3 * 2 + 2) + (3 + 1), "torso, policy, value"
    arcadia.resume(run, make_torso=Wide, total_steps=6000)
    after = load_newest(run)[1]
    assert after.env_steps >= 6000
    assert (after.parameters - before.parameters)[: 4 * 3].abs().min() > 0, "the torso learns"
    assert len(arcadia.evaluate(run, episodes=3, make_torso=Wide)["scores"]) == 3
    assert int(arcadia.load(run, make_torso=Wide).act(np.zeros(4))) in (0, 1)
    for load in (arcadia.load, arcadia.evaluate, arcadia.resume):
        with pytest.raises(UserError, match="torso custom is a class of the caller's: give make_torso"):
            load(run)
    assert main(["eval", str(run)]) == 2
    assert "give make_torso" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make_torso", "message"),
    [
        (with_batch_norm, "make_torso: features of the same observations change from call to call"),
        (with_dropout, "make_torso: features of the same observations change from call to call"),
        (for_pixels, r"make_torso: no features for observations \(4,\): ValueError: not enough values"),
        (recurrent, r"make_torso: no features for observations \(4,\): AttributeError: 'tuple'"),
        (no_module, r"make_torso: no features for observations \(4,\): AttributeError"),
        (too_narrow, r"make_torso: no features for observations \(4,\): RuntimeError: mat1 and mat2"),
        (transposed, r"make_torso: features of two observations must have shape \(2, size\), got \(2, 1, 4\)"),
        (lambda shape: nn.Flatten(), "make_torso must be a function of a module"),
    ],
)
def test_a_torso_that_cannot_be_used_is_refused(tmp_path: Path, make_torso: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arcadia.train("CartPole-v1", make_torso=make_torso, run_dir=tmp_path / "run", total_steps=1, eval_episodes=0)
    assert not (tmp_path / "run").exists()


def test_a_torso_that_cannot_be_traced_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arcadia.train("CartPole-v1", make_torso=compiled, run_dir=tmp_path / "run", total_steps=100, **SMALL)
    assert capsys.readouterr().out.count("TensorBoard gets no graph of the network") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.1}, "resume cannot change lr; it can change gpu_ids, num_workers, "),
        ({"total_steps": 1e6}, "config.runtime.total_steps must be int, got 1000000.0"),
        ({"total_steps": "6000"}, "config.runtime.total_steps must be int, got '6000'"),
    ],
)
def test_resume_says_what_it_cannot_do_and_leaves_the_run_alone(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    run = train(tmp_path / "run")
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        arcadia.resume(run, **settings)
    assert (run / "config.json").read_bytes() == before
    assert arcadia.resume(run, total_steps=np.int64(400)).env_steps >= 400


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


def test_the_example_with_a_torso_of_ones_own(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "custom_torso.py"), "0.2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"mean score of 5 games: -(1\d|2[01])", result.stdout), "Pong, hardly trained"


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


MODULE = """
import gymnasium
import numpy as np
from arcadia.envs import GymVectorEnv

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}

def make_mine(config, *, num_envs, seed):
    return GymVectorEnv(Mine, num_envs=num_envs, seed=seed)
"""
TRAIN = "num_workers=1, num_envs=2, num_steps=5, total_steps=50, eval_episodes=0, quiet=True"


def prompt(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as at a prompt or in a notebook: workers have no script to import."""
    (folder / "mine.py").write_text(MODULE)
    command = [sys.executable, "-c", f"import arcadia, gymnasium\n{code}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "code",
    [
        f"import mine\narcadia.train('mine', make_env=mine.make_mine, {TRAIN})",
        f"import mine\ngymnasium.register('Mine-v0', entry_point=mine.Mine)\narcadia.train('Mine-v0', {TRAIN})",
        f"gymnasium.register('Mine-v0', entry_point='mine:Mine')\narcadia.train('Mine-v0', {TRAIN})",
        f"import mine\ngymnasium.register('CartPole-v1', entry_point=mine.Mine)\n"
        f"assert arcadia.train('CartPole-v1', {TRAIN}).mean_return == 1",
        f"{MODULE}\narcadia.train('mine', make_env=make_mine, runtime='serial', {TRAIN})",
    ],
)
def test_at_a_prompt_an_environment_of_a_module_is_trained_and_in_one_process_any(tmp_path: Path, code: str) -> None:
    ended = prompt(tmp_path, code)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (f"{MODULE}\narcadia.train('mine', make_env=make_mine, {TRAIN})", "make_env"),
        (f"{MODULE}\ngymnasium.register('Mine-v0', entry_point=Mine)\narcadia.train('Mine-v0', {TRAIN})", "env"),
        (f"class Torso: pass\narcadia.train('CartPole-v1', make_torso=Torso, {TRAIN})", "make_torso"),
    ],
)
def test_what_workers_cannot_import_from_a_prompt_is_named(tmp_path: Path, code: str, name: str) -> None:
    ended = prompt(tmp_path, code)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"arcadia.errors.UserError: {name}: workers cannot import from a notebook or a prompt: put it in a .py file"
    )
    assert not (tmp_path / "runs").exists()


def test_an_agent_takes_images_with_their_channels_last_too(tmp_path: Path) -> None:
    agent = arcadia.load(train(tmp_path / "run", "pong", torso="mlp", frame_size=[36, 40], total_steps=40))
    frames = np.random.default_rng(0).integers(256, size=agent.observation_shape, dtype=np.uint8)
    first = agent.act(frames, greedy=True), agent._inputs.clone()
    agent.reset()
    assert agent.act(np.moveaxis(frames, 0, -1), greedy=True) == first[0]
    assert torch.equal(agent._inputs, first[1])
    with pytest.raises(UserError, match=r"must have shape \(4, 36, 40\), got"):
        agent.act(np.moveaxis(frames, 0, 1))
