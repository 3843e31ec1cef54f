"""The recipes of published systems: what their sources say, game by game, and that they are what runs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arcadia.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from arcadia.config import TrainConfig
from arcadia.envs import spec_of
from arcadia.envs.factory import find
from arcadia.envs.names import AtariName
from arcadia.gradients import Learner
from arcadia.loss import Targets
from arcadia.models import ActorCritic, FlatParameters, build_model
from arcadia.models.batch_norm import RunningBatchNorm
from arcadia.parameters import UPDATES
from arcadia.recipes import RECIPES
from arcadia.runtimes import train
from arcadia.types import Rollout
from arcadia.validation import config_from_dict, validate

SHAPES = {
    "wrappers-12": (1, 84, 84),
    "wrappers-12-stack4-bn": (4, 84, 84),
    "gru-160": (3, 160, 160),
    "gru-160-stack4": (12, 160, 160),
    "towers-24": (4, 84, 84),
    "a3g-lstm": (1, 80, 80),
}
NUM_ACTIONS = {  # of the game's own, NOOP included
    "Pong": 6,
    "Breakout": 4,
    "SpaceInvaders": 6,
    "Boxing": 18,
    "IceHockey": 18,
    "Assault": 7,
    "BeamRider": 9,
    "MsPacman": 9,
    "Seaquest": 18,
    "Asteroids": 14,
    "Qbert": 6,
}
RANDOM_SKIP = (2, 5)
PROTOCOLS = {  # form of the id -> frame skip, stickiness, decisions until the time limit
    "NoFrameskip-v4": (4, 0.0, 100_000),
    "Deterministic-v4": (4, 0.0, 100_000),
    "Deterministic-v3": (4, 0.0, 100_000),
    "-v4": (RANDOM_SKIP, 0.0, 100_000),
    "-v3": (RANDOM_SKIP, 0.0, 100_000),
    "-v0": (RANDOM_SKIP, 0.25, 10_000),
}
PAIRS = [(recipe, game) for recipe in SHAPES for game in RECIPES[recipe].games]
T, B, A = 5, 3, 4


def _split(game: str) -> tuple[str, str]:
    """Return the game and the form of an id."""
    form = next(form for form in PROTOCOLS if game.endswith(form))
    return game.removesuffix(form), form


def _on(recipe: str, game: str) -> TrainConfig:
    config = RECIPES[recipe].config
    return dataclasses.replace(config, env=dataclasses.replace(config.env, env=game))


def test_every_game_of_the_sources_is_listed() -> None:
    assert {recipe: len(RECIPES[recipe].games) for recipe in SHAPES} == {
        "wrappers-12": 5,
        "wrappers-12-stack4-bn": 1,
        "gru-160": 2,
        "gru-160-stack4": 2,
        "towers-24": 5,
        "a3g-lstm": 9 * 4,
    }


@pytest.mark.parametrize(("recipe", "game"), PAIRS)
def test_protocol_of_every_recipe_on_every_game(recipe: str, game: str) -> None:
    config = _on(recipe, game)
    validate(config)
    title, form = _split(game)
    name = find(game)
    assert isinstance(name, AtariName)
    skip, sticky, limit = PROTOCOLS[form]
    if form.startswith("Deterministic") and title == "SpaceInvaders":
        skip = 3
    assert (name.frame_skip, name.sticky_probability, name.max_decisions) == (skip, sticky, limit)
    if recipe == "a3g-lstm":
        assert config.env.max_episode_steps == 10_000
    else:
        assert config.env.max_episode_steps is None
    spec = spec_of(config.env)
    assert spec.observation_shape == SHAPES[recipe]
    assert spec.num_actions == NUM_ACTIONS[title] - (recipe == "towers-24")


def test_every_deviation_of_a_recipe_is_on_its_page() -> None:
    def words(text: str) -> str:
        return " ".join(text.replace("`", "").lower().split())

    folder = Path(__file__).parent.parent / "docs" / "systems"
    pages = words(" ".join(page.read_text() for page in folder.glob("*.md")))
    for name, recipe in RECIPES.items():
        for deviation in recipe.deviations if not name.startswith("a3c") else ():
            assert words(deviation) in pages, name


def test_recipes_are_plain_data() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.config.recipe == name
        assert config_from_dict(json.loads(json.dumps(recipe.config.to_dict()))) == recipe.config


def _heads(size: int, actions: int) -> int:
    return size * actions + actions + size + 1


PARAMETERS = {  # by hand: weights + biases of each layer, for A actions
    "wrappers-12": (16 * 64 + 16) + (32 * 16 * 16 + 32) + (32 * 81 * 256 + 256) + _heads(256, A),
    "wrappers-12-stack4-bn": (16 * 4 * 64 + 16)
    + 2 * 16
    + (64 * 16 * 16 + 64)
    + 2 * 64
    + (64 * 81 * 256 + 256)
    + _heads(256, A),
    "gru-160": (8 * 3 * 64 + 8)
    + (16 * 8 * 16 + 16)
    + (32 * 16 * 9 + 32)
    + (32 * 64 * 256 + 256)
    + 3 * 256 * (256 + 256 + 2)
    + _heads(256, A),
    "gru-160-stack4": (16 * 12 * 64 + 16)
    + (16 * 16 * 16 + 16)
    + (32 * 16 * 9 + 32)
    + (32 * 64 * 256 + 256)
    + 3 * 256 * (256 + 256 + 2)
    + _heads(256, A),
    "towers-24": 2 * ((32 * 4 * 64 + 32) + (64 * 32 * 16 + 64) + (64 * 81 * 512 + 512)) + _heads(512, A),
    "a3g-lstm": (32 * 25 + 32)
    + (32 * 32 * 25 + 32)
    + (64 * 32 * 16 + 64)
    + (64 * 64 * 9 + 64)
    + 4 * 512 * (1024 + 512 + 2)
    + _heads(512, A),
}
STATE_SIZES = {"gru-160": 256, "gru-160-stack4": 256, "a3g-lstm": 1024}


def _model(recipe: str, dtype: torch.dtype = torch.float32) -> ActorCritic:
    spec = spec_of(_on(recipe, "BreakoutNoFrameskip-v4").env)._replace(num_actions=A)
    return build_model(RECIPES[recipe].config.model, spec, seed=1, dtype=dtype)


def _rollout(model: ActorCritic) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    is_first = torch.rand(T + 1, B, generator=generator) < 0.2
    return Rollout(
        observation=torch.rand(T + 1, B, *model.input_shape, generator=generator).to(model.dtype),
        is_first=is_first,
        state=torch.randn(B, model.state_size, generator=generator),
        action=torch.randint(A, (T, B), generator=generator),
        reward=torch.randn(T, B, generator=generator),
        terminated=torch.zeros(T, B, dtype=torch.bool),
        truncated=torch.zeros(T, B, dtype=torch.bool),
        valid=torch.ones(T, B, dtype=torch.bool),
        forced=torch.zeros(T, B, dtype=torch.bool),
        log_prob=torch.full((T, B), -1.0),
        value=torch.zeros(T + 1, B),
    )


@pytest.mark.parametrize("recipe", SHAPES)
def test_parameters_and_output_shapes_equal_a_calculation_by_hand(recipe: str) -> None:
    model = _model(recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[recipe]
    rollout = _rollout(model)
    assert model.state_size == STATE_SIZES.get(recipe, 0)
    output = model(rollout.observation, rollout.is_first, rollout.state)
    assert output.policy.logits.shape == (T + 1, B, A)
    assert output.value.shape == (T + 1, B)
    assert output.state.shape == (B, model.state_size)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("recipe", SHAPES)
def test_acting_agrees_with_learning(recipe: str, dtype: torch.dtype, tolerance: float) -> None:
    model = _model(recipe, dtype)
    for layer in model.modules():
        if isinstance(layer, RunningBatchNorm):
            layer.mean.uniform_(-0.1, 0.1)
            layer.variance.uniform_(0.5, 2.0)
    rollout = _rollout(model)
    with torch.no_grad():
        learned = model(rollout.observation, rollout.is_first, rollout.state)
        state, logits, values = rollout.state, [], []
        for t in range(T + 1):
            output = model(rollout.observation[t : t + 1], rollout.is_first[t : t + 1], state)
            state = output.state
            logits.append(output.policy.logits)
            values.append(output.value)
    torch.testing.assert_close(torch.cat(logits), learned.policy.logits, atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.cat(values), learned.value, atol=tolerance, rtol=tolerance)


def test_towers_neither_learn_from_nor_clip_each_other() -> None:
    model = _model("towers-24")
    parameters = FlatParameters(model)
    actor, critic = model.parameter_groups()
    assert actor.start == 0
    assert actor.stop == critic.start
    assert critic.stop == parameters.size
    rollout = _rollout(model)
    loss = dataclasses.replace(RECIPES["towers-24"].config.loss, entropy_coefficient=0.0, max_grad_norm=1e9)

    def gradient(advantage: float, return_: float, **settings: float) -> torch.Tensor:
        targets = Targets(torch.full((T, B), advantage), torch.full((T, B), return_))
        return (
            Learner(model, parameters, dataclasses.replace(loss, **settings))
            .compute_gradient(rollout, targets)[0]
            .clone()
        )

    only_value = gradient(0.0, 100.0)
    assert not only_value[actor].any()
    assert only_value[critic].count_nonzero() > 1000
    only_policy = gradient(1.0, 0.0, value_coefficient=0.0)
    assert only_policy[actor].count_nonzero() > 1000
    assert not only_policy[critic].any()
    # the critic's gradient is huge and clipped, the actor's small and left alone
    actor_norm, critic_norm = float(only_policy[actor].norm()), float(only_value[critic].norm())
    limit = 2 * actor_norm
    assert critic_norm > 2 * limit
    both = gradient(1.0, 100.0, max_grad_norm=limit)
    torch.testing.assert_close(both[actor], only_policy[actor])
    torch.testing.assert_close(both[critic], only_value[critic] * limit / critic_norm)


def test_batch_norm_statistics_are_of_the_valid_rows_of_all_workers() -> None:
    recipe = "wrappers-12-stack4-bn"
    model = _model(recipe)
    rng = np.random.default_rng(0)
    assert model.statistics_size == (1 + 2 * 16) + (1 + 2 * 64)
    inputs = [torch.from_numpy(rng.random((T, B, *model.input_shape), np.float32)) for _ in range(2)]
    valid = [rng.random((T, B)) < 0.6 for _ in range(2)]
    slots = torch.zeros(2, model.statistics_size, dtype=torch.float64)
    for worker in range(2):
        newest = np.zeros((T, B, 1), np.uint8)
        keep, add = model.gather_statistics(newest, inputs[worker], torch.zeros(valid[worker].shape), valid[worker])
        slots[worker] = slots[worker] * keep + add
    model.load_statistics(slots.sum(0))
    layers = list(model.actor.torso.layers)
    before = _model(recipe).actor.torso.layers  # its statistics are those that the rollouts were played with
    numbers = [number for number, layer in enumerate(layers) if isinstance(layer, RunningBatchNorm)]
    assert len(numbers) == 2
    for number in numbers:
        layer = layers[number]
        with torch.no_grad():
            features = [
                before[:number](rows[torch.from_numpy(mask)].movedim(-1, 1)).double()
                for rows, mask in zip(inputs, valid, strict=True)
            ]
        mean = torch.stack([part.mean((0, 2, 3)) for part in features]).mean(0)
        square = torch.stack([part.square().mean((0, 2, 3)) for part in features]).mean(0)
        torch.testing.assert_close(layer.mean.double(), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.variance.double(), square - mean.square(), atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            normalized = layer(features[0].float())
        expected = (features[0] - mean[:, None, None]) / (square - mean.square() + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(normalized.double(), expected, atol=1e-4, rtol=1e-3)


def test_initial_parameters_of_a3g() -> None:
    model = _model("a3g-lstm")
    torch.testing.assert_close(model.policy.linear.weight.norm(dim=1), torch.full((A,), 0.01))
    torch.testing.assert_close(model.value.linear.weight.norm(dim=1), torch.ones(1))
    cell = model.actor.core.cell
    bias = cell.bias_ih + cell.bias_hh
    assert (bias[512:1024] == 1).all(), "the forget gate's"
    assert bias.sum() == 512
    recurrent = cell.weight_hh
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(512), atol=1e-4, rtol=0)
    assert cell.weight_ih.detach().abs().max().item() == pytest.approx((6 / (2048 + 1024)) ** 0.5, rel=1e-2)
    convolution = model.actor.torso.layers[0]
    bound = 2**0.5 * (6 / (25 + 32 * 25)) ** 0.5
    assert convolution.weight.detach().abs().max().item() == pytest.approx(bound, rel=2e-2)
    assert not convolution.bias.any()


def _short_run(recipe: str, folder: Path, **changes: object) -> Checkpoint:
    """Play 150 decisions of the recipe's first game in one worker; return the final checkpoint."""
    config = _on(recipe, RECIPES[recipe].games[0])
    limits = {"total_steps": 150, "eval_episodes": 0, "num_workers": 1, "run_dir": str(folder)}
    runtime = dataclasses.replace(config.runtime, **(limits | {"runtime": "serial"} | changes))
    train(dataclasses.replace(config, env=dataclasses.replace(config.env, total_envs=2), runtime=runtime))
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path)


@pytest.mark.parametrize("recipe", SHAPES)
def test_serial_is_reproducible_for_every_recipe(recipe: str, tmp_path) -> None:
    one = _short_run(recipe, tmp_path / "one")
    assert torch.equal(_short_run(recipe, tmp_path / "again").parameters, one.parameters)
    assert not torch.equal(_short_run(recipe, tmp_path / "other", seed=2).parameters, one.parameters)


@pytest.mark.parametrize("recipe", ["wrappers-12-stack4-bn", "towers-24", "a3g-lstm"])
def test_one_worker_in_a_process_computes_what_serial_does(recipe: str, tmp_path) -> None:
    """Batch normalisation, towers and the scalar normaliser included."""
    serial = _short_run(recipe, tmp_path / "serial")
    hogwild = _short_run(recipe, tmp_path / "hogwild", runtime="hogwild")
    assert torch.equal(hogwild.parameters, serial.parameters)
    assert torch.equal(hogwild.statistics, serial.statistics)


def test_a_worker_folds_its_rollouts_into_the_batch_norm_statistics_that_players_use(tmp_path) -> None:
    recipe = "wrappers-12-stack4-bn"
    checkpoint = _short_run(recipe, tmp_path / "run")
    num_rollouts = int(checkpoint.counters[:, UPDATES].sum())
    assert num_rollouts == 4
    weights = checkpoint.statistics[0, [0, 1 + 2 * 16]]  # what the two layers' averages add up to
    torch.testing.assert_close(weights, torch.full((2,), 1 - 0.99**num_rollouts, dtype=torch.float64))
    model = _model(recipe)
    observation = torch.rand(1, B, *model.input_shape)
    arguments = observation, torch.zeros(1, B, dtype=torch.bool), torch.zeros(B, 0)
    with torch.no_grad():
        before = model(*arguments)
        model.load_statistics(checkpoint.statistics.sum(0))
        after = model(*arguments)
    assert not torch.allclose(after.value, before.value, rtol=1e-2)
