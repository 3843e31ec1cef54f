"""Rollouts of scripted environments: every flag at every border, carried from one rollout to the next."""

import copy
import dataclasses
import time
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from arcadia.config import EnvConfig, LossConfig, ModelConfig, OptimizerConfig, RuntimeConfig, TrainConfig
from arcadia.envs import EnvSpec, make_vector_env, spec_of
from arcadia.models import ActorCritic, FlatParameters, build_model
from arcadia.parameters import ENV_STEPS, SharedMemoryStore, create_shared_state
from arcadia.rollout import RolloutCollector
from arcadia.stopwatch import Stopwatch
from arcadia.types import Rollout, Timestep
from arcadia.worker import Worker, seeds

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
T, B, A = 5, 3, 7
NUM_ROLLOUTS = 3
ROWS = T * NUM_ROLLOUTS
# One string per environment, one letter per row: "." plays on, "L" loses a life (terminated, the game goes on), "G" is
# game over, "T" a time limit, "R" the reset row after G or T. Rollouts end after rows 4, 9 and 14.
SCRIPT = (
    "..L.G" + "R..TR" + ".....",
    "....T" + "R.GR." + ".L..G",
    ".GR.." + "....G" + "R...T",
)
LETTERS = np.array([list(row) for row in SCRIPT]).T  # [ROWS, B]
VALID = LETTERS != "R"
TERMINATED, TRUNCATED = np.isin(LETTERS, ["L", "G"]), LETTERS == "T"
IS_FIRST = np.concatenate([np.ones((1, B), np.bool_), ~VALID])  # [ROWS+1, B]
REWARD = np.random.default_rng(0).normal(scale=3, size=(ROWS, B)).astype(np.float32) * VALID


class ScriptedEnv:
    """Plays SCRIPT again and again. An observation is (environment, game, decision of that game, row)."""

    spec = EnvSpec((4,), np.dtype(np.float32), A)
    num_envs = B

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []

    def reset(self) -> np.ndarray:
        self._row, self._game, self._decision = 0, np.zeros(B), np.zeros(B)
        return self._observation()

    def step(self, action: np.ndarray) -> Timestep:
        self.actions.append(action.copy())
        row = self._row % ROWS
        valid, game_over = VALID[row], LETTERS[row] == "G"
        self._row += 1
        self._game += ~valid
        self._decision = np.where(valid, self._decision + 1, 0)
        return Timestep(
            observation=self._observation(),
            reward=REWARD[row],
            terminated=TERMINATED[row],
            truncated=TRUNCATED[row],
            reset_next=TRUNCATED[row] | game_over,
            frames=np.where(valid, 4, 9).astype(np.int64),
        )

    def close(self) -> None:
        pass

    def _observation(self) -> np.ndarray:
        columns = (np.arange(B), self._game, self._decision, np.full(B, self._row))
        return np.stack(columns, axis=1).astype(np.float32)


def _scripted(config: EnvConfig, *, num_envs: int, seed: int) -> ScriptedEnv:
    return ScriptedEnv()


def _collector(
    env: ScriptedEnv,
    *,
    core: str = "none",
    clip_rewards: bool = False,
    normalization: str = "none",
    seed: int = 1,
    reset_on_life_loss: bool = False,
) -> tuple[RolloutCollector, ActorCritic]:
    config = ModelConfig(
        torso="mlp",
        hidden_sizes=(8,),
        core=core,
        core_size=6,
        normalization=normalization,
        normalization_steps=15,
    )
    model = build_model(config, env.spec, seed=1)
    with torch.no_grad():
        model.policy.linear.weight.mul_(100)  # the policy starts nearly uniform
    generator = torch.Generator().manual_seed(seed)
    collector = RolloutCollector(
        env,
        model,
        num_steps=T,
        config=EnvConfig(clip_rewards=clip_rewards),
        gamma=0.9,
        reset_on_life_loss=reset_on_life_loss,
        generator=generator,
        stopwatch=Stopwatch(),
    )
    return collector, model


def _collect(collector: RolloutCollector) -> Rollout:
    """Collect a rollout and copy it, for the collector uses its tensors again."""
    rollout = collector.collect()
    tensors = {name: value.clone() for name, value in _tensors(rollout).items()}
    return Rollout(**tensors, activations=rollout.activations)


def _tensors(rollout: Rollout) -> dict[str, Tensor]:
    names = [field.name for field in dataclasses.fields(rollout) if field.name != "activations"]
    return {name: getattr(rollout, name) for name in names}


def _rollouts(**settings: object) -> list[Rollout]:
    collector, _ = _collector(ScriptedEnv(), **settings)
    return [_collect(collector) for _ in range(NUM_ROLLOUTS)]


def _rows(rollouts: list[Rollout], field: str) -> Tensor:
    """Return the T rows of a field of all rollouts [ROWS, B, ...]."""
    return torch.cat([getattr(rollout, field)[:T] for rollout in rollouts])


def _games() -> list[list[tuple[float, int]]]:
    """Return the games that end in each rollout, in order of row and environment, by a loop over the script."""
    games: list[list[tuple[float, int]]] = [[] for _ in range(NUM_ROLLOUTS)]
    total, length = np.zeros(B), np.zeros(B, int)
    for row in range(ROWS):
        for b in range(B):
            if LETTERS[row, b] != "R":
                total[b] += float(REWARD[row, b])
                length[b] += 1
            if LETTERS[row, b] in "GT":
                games[row // T].append((float(total[b]), int(length[b])))
                total[b] = length[b] = 0
    return games


def test_borders_are_carried_from_rollout_to_rollout() -> None:
    rollouts = _rollouts()
    assert (_rows(rollouts, "valid").numpy() == VALID).all()
    assert (_rows(rollouts, "terminated").numpy() == TERMINATED).all()
    assert (_rows(rollouts, "truncated").numpy() == TRUNCATED).all()
    assert (_rows(rollouts, "is_first").numpy() == IS_FIRST[:ROWS]).all()
    for number, rollout in enumerate(rollouts):  # row T is row 0 of the next rollout
        assert (rollout.is_first[T].numpy() == IS_FIRST[(number + 1) * T]).all()


def test_shapes_and_dtypes_are_as_promised() -> None:
    rollout = _rollouts(core="lstm")[0]
    described = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(rollout).items()}
    assert described == {
        "observation": ((T + 1, B, 4), torch.float32),
        "is_first": ((T + 1, B), torch.bool),
        "state": ((B, 12), torch.float32),
        "action": ((T, B), torch.int64),
        "reward": ((T, B), torch.float32),
        "terminated": ((T, B), torch.bool),
        "truncated": ((T, B), torch.bool),
        "valid": ((T, B), torch.bool),
        "forced": ((T, B), torch.bool),
        "log_prob": ((T, B), torch.float32),
        "value": ((T + 1, B), torch.float32),
    }
    assert not any(tensor.requires_grad for tensor in _tensors(rollout).values())


def test_observations_are_those_that_the_decisions_were_made_on() -> None:
    env = ScriptedEnv()
    expected = [env.reset()]
    for _ in range(ROWS):
        expected.append(env.step(np.zeros(B, np.int64)).observation)
    for number, rollout in enumerate(_rollouts()):
        rows = np.stack(expected[number * T : (number + 1) * T + 1])
        assert (rollout.observation.numpy() == rows).all()


def test_first_row_of_every_game_is_its_first_observation() -> None:
    rollouts = _rollouts()
    observation, is_first = _rows(rollouts, "observation"), _rows(rollouts, "is_first")
    assert ((observation[..., 2] == 0) == is_first).all()
    final = ~_rows(rollouts, "valid")  # the row that resets still shows the final observation of the last game
    assert (observation[final][:, 2] > 0).all()


def test_actions_are_those_that_the_environments_got() -> None:
    env = ScriptedEnv()
    collector, _ = _collector(env)
    rollouts = [_collect(collector) for _ in range(NUM_ROLLOUTS)]
    action = _rows(rollouts, "action")
    assert (action.numpy() == np.stack(env.actions)).all()
    assert action.unique().tolist() == list(range(A))


@pytest.mark.parametrize("clip_rewards", [False, True])
def test_rewards_are_clipped_for_learning_while_scores_stay_raw(clip_rewards: bool) -> None:
    collector, _ = _collector(ScriptedEnv(), clip_rewards=clip_rewards)
    rewards, games = [], []
    for _ in range(NUM_ROLLOUTS):
        rewards.append(_collect(collector).reward)
        games.append(collector.episodes)
    assert (torch.cat(rewards).numpy() == (np.sign(REWARD) if clip_rewards else REWARD)).all()
    assert np.abs(REWARD).max() > 1
    for played, expected in zip(games, _games(), strict=True):
        assert [game.length for game in played] == [length for _, length in expected]
        assert [game.episode_return for game in played] == pytest.approx([score for score, _ in expected])
    assert [len(played) for played in games] == [3, 3, 2]


def test_max_probability_is_the_mean_over_a_games_decisions() -> None:
    collector, model = _collector(ScriptedEnv())
    largest, played = [], []
    for _ in range(NUM_ROLLOUTS):
        rollout = _collect(collector)
        played += collector.episodes
        with torch.no_grad():
            logits = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state).policy.logits
        largest.append(logits.softmax(-1).amax(-1).numpy())
    rows, expected = np.concatenate(largest), []
    start = np.zeros(B, int)
    for row, b in np.argwhere(np.isin(LETTERS, ["G", "T"])):
        game = slice(start[b], row + 1)
        expected.append(rows[game, b][VALID[game, b]].mean())
        start[b] = row + 1
    assert [game.max_probability for game in played] == pytest.approx(expected, rel=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_steps_whose_action_the_environment_chose_are_marked() -> None:
    env = ScriptedEnv()
    forced = np.random.default_rng(5).random((ROWS, B)) < 0.3
    play = env.step
    env.step = lambda action: play(action)._replace(forced=forced[env._row - 1])
    collector, _ = _collector(env)
    rollouts = [_collect(collector) for _ in range(NUM_ROLLOUTS)]
    assert (_rows(rollouts, "forced").numpy() == forced).all()
    assert not _rows(_rollouts(), "forced").any()


def test_recurrent_state_starts_anew_after_a_lost_life_where_the_config_says_so() -> None:
    collector, _ = _collector(ScriptedEnv(), reset_on_life_loss=True)
    rollouts = [_collect(collector) for _ in range(NUM_ROLLOUTS)]
    after_lost_life = np.concatenate([np.zeros((1, B), np.bool_), LETTERS == "L"])[:ROWS]
    assert (_rows(rollouts, "is_first").numpy() == (IS_FIRST[:ROWS] | after_lost_life)).all()
    assert after_lost_life.any()


def test_a_lost_life_does_not_end_a_game() -> None:
    assert [length for _, length in _games()[0]] == [2, 5, 5]  # environment 0 loses a life in its third decision
    collector, _ = _collector(ScriptedEnv())
    collector.collect()
    assert [game.length for game in collector.episodes] == [2, 5, 5]


def test_log_prob_is_that_of_the_action_when_it_was_chosen() -> None:
    collector, model = _collector(ScriptedEnv(), core="gru")
    for _ in range(NUM_ROLLOUTS):
        rollout = _collect(collector)
        with torch.no_grad():
            logits = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state).policy.logits
        expected = torch.distributions.Categorical(logits=logits).log_prob(rollout.action)
        torch.testing.assert_close(rollout.log_prob, expected, atol=1e-5, rtol=0)
        assert expected.std() > 0.1


def test_actions_follow_the_policy() -> None:
    """With 200 rollouts, actions come as often as their probabilities say (chi-squared, A - 1 degrees of freedom)."""
    collector, model = _collector(ScriptedEnv())
    with torch.no_grad():
        model.policy.linear.weight.zero_()
        model.policy.linear.bias.copy_(torch.arange(A) / 4)
    counts = torch.zeros(A)
    for _ in range(200):
        counts += torch.bincount(collector.collect().action.flatten(), minlength=A)
    expected = (torch.arange(A) / 4).softmax(0) * 200 * T * B
    assert float(((counts - expected).square() / expected).sum()) < 22.5  # p = 0.001


@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
def test_recurrent_state_runs_through_a_game_and_resets_on_the_row_after_the_reset(core: str) -> None:
    collector, model = _collector(ScriptedEnv(), core=core)
    rollouts = [_collect(collector) for _ in range(NUM_ROLLOUTS)]
    never = torch.zeros(1, 1, dtype=torch.bool)
    for b in range(B):
        state = model.initial_state(1)
        for row in range(ROWS + 1):
            if IS_FIRST[row, b]:
                state = model.initial_state(1)
            number, t = divmod(row, T) if row < ROWS else (NUM_ROLLOUTS - 1, T)
            rollout = rollouts[number]
            if t == 0:
                torch.testing.assert_close(rollout.state[b : b + 1] * ~rollout.is_first[0, b], state)
            with torch.no_grad():
                output = model(rollout.observation[t : t + 1, b : b + 1], never, state)
            state = output.state
            torch.testing.assert_close(rollout.value[t, b], output.value[0, 0], atol=1e-5, rtol=0)
            if t == 0 and number > 0:  # the same observation was the last one of the rollout before
                torch.testing.assert_close(rollouts[number - 1].value[T, b], output.value[0, 0], atol=1e-5, rtol=0)


def test_learning_computes_what_acting_saw() -> None:
    collector, model = _collector(ScriptedEnv(), core="lstm")
    for _ in range(NUM_ROLLOUTS):
        rollout = _collect(collector)
        with torch.no_grad():
            output = model(rollout.observation, rollout.is_first, rollout.state)
        torch.testing.assert_close(output.value, rollout.value, atol=1e-5, rtol=0)


def test_bootstrap_is_the_value_of_the_last_observation_under_the_same_parameters() -> None:
    collector, model = _collector(ScriptedEnv(), core="gru")
    parameters = FlatParameters(model)
    before = None
    for number in range(NUM_ROLLOUTS):
        rollout = _collect(collector)
        with torch.no_grad():
            output = model(rollout.observation, rollout.is_first, rollout.state)
        torch.testing.assert_close(rollout.value[T], output.value[T], atol=1e-5, rtol=0)
        if before is not None:
            assert torch.equal(before.observation[T], rollout.observation[0])
            assert not torch.equal(before.value[T], rollout.value[0])  # computed anew with new parameters
        before = rollout
        parameters.load(parameters.read() * (1.1 + number))


def test_generator_alone_decides_the_actions() -> None:
    torch.manual_seed(0)
    first = _rows(_rollouts(seed=1), "action")
    torch.manual_seed(1)
    assert torch.equal(_rows(_rollouts(seed=1), "action"), first)
    assert not torch.equal(_rows(_rollouts(seed=2), "action"), first)


def test_frames_and_episodes_are_of_the_last_rollout_alone() -> None:
    collector, _ = _collector(ScriptedEnv())
    for number in range(NUM_ROLLOUTS):
        collector.collect()
        valid = VALID[number * T : (number + 1) * T]
        assert collector.frames == 4 * valid.sum() + 9 * (~valid).sum()
        assert len(collector.episodes) == len(_games()[number])


def test_statistics_are_of_raw_observations_on_valid_rows_and_end_with_the_freeze() -> None:
    env = ScriptedEnv()
    observations = [env.reset()] + [env.step(np.zeros(B, np.int64)).observation for _ in range(ROWS)]
    collector, model = _collector(ScriptedEnv(), normalization="per_element")
    total = torch.zeros(model.statistics_size, dtype=torch.float64)
    for number, count in enumerate((14, 11)):
        model.load_statistics(total)
        assert not model.normalizer.is_frozen  # 0 and 14 rows were seen, the limit is 15
        collector.collect()
        rows = slice(number * T, (number + 1) * T)
        seen = np.stack(observations[rows])[VALID[rows]].astype(np.float64)
        keep, statistics = collector.statistics()
        assert (keep == 1).all()
        assert statistics[0] == len(seen) == count
        assert (statistics[1:].view(2, 4).numpy() == [seen.sum(0), (seen**2).sum(0)]).all()
        total += statistics
    model.load_statistics(total)
    collector.collect()
    assert collector.statistics() is None


def test_inputs_are_normalized_once_by_the_snapshot_of_their_rollout() -> None:
    env = ScriptedEnv()
    observations = np.stack([env.reset()] + [env.step(np.zeros(B, np.int64)).observation for _ in range(ROWS)])
    collector, model = _collector(ScriptedEnv(), normalization="per_element")
    first = _collect(collector)
    assert (first.observation.numpy() == observations[: T + 1]).all()  # nothing was known yet
    statistics = collector.statistics().add
    model.load_statistics(statistics)
    count, (sums, squares) = float(statistics[0]), statistics[1:].view(2, 4).numpy()
    mean, variance = sums / count, squares / count - (sums / count) ** 2
    for rows in (observations[T : 2 * T + 1], observations[2 * T : 3 * T + 1]):
        expected = np.clip((rows - mean) / np.sqrt(variance + 0.01**2), -20, 20)
        np.testing.assert_allclose(_collect(collector).observation.numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("torso", ["mlp", "a3c"])
@pytest.mark.parametrize("refill", [True, False])
def test_each_frame_of_a_stack_is_converted_once_by_the_snapshot_of_its_rollout(
    refill: bool, torso: Literal["mlp", "a3c"]
) -> None:
    """Breakout, in which lives and games end; the statistics change with every other rollout."""
    config = EnvConfig(env="breakout", refill_on_life_loss=refill, frame_size=(20, 20), noop_max=1)
    env = make_vector_env(config, num_envs=B, seed=0)
    model = build_model(ModelConfig(torso=torso, hidden_sizes=(4,)), env.spec, seed=0)
    observations, shifted = [], []
    plain_step, plain_reset = env.step, env.reset

    def reset() -> np.ndarray:
        observations.append(plain_reset())
        return observations[-1]

    def step(action: np.ndarray) -> Timestep:
        timestep = plain_step(action)
        observations.append(timestep.observation.copy())
        shifted.append(timestep.shifted)
        return timestep

    def converted(observation: np.ndarray, snapshots: list[int]) -> Tensor:
        """Return the input whose frame i is converted with the normalizer of rollout snapshots[i]."""
        frames = []
        for i, snapshot in enumerate(snapshots):
            whole = torch.empty(1, *model.input_shape)
            normalizers[snapshot].apply(observation[None], out=whole)
            frames.append(whole.chunk(4, 1 if torso == "mlp" else -1)[i])
        return torch.cat(frames, 1 if torso == "mlp" else -1)[0]

    env.step, env.reset = step, reset
    generator = torch.Generator().manual_seed(0)
    collector = RolloutCollector(
        env, model, num_steps=50, config=config, gamma=0.9, generator=generator, stopwatch=Stopwatch()
    )
    statistics = torch.zeros(model.statistics_size, dtype=torch.float64)
    snapshots = [[0] * 4 for _ in range(B)]  # by environment and frame
    normalizers = []
    mixed = 0
    for number in range(8):
        normalizers.append(copy.deepcopy(model.normalizer))
        rollout = collector.collect()
        assert len(observations) == len(rollout.observation)
        for row, (observation, inputs) in enumerate(zip(observations, rollout.observation, strict=True)):
            for b in range(B):
                if row > 0:
                    snapshots[b] = [*snapshots[b][1:], number] if shifted[row - 51][b] else [number] * 4
                assert torch.equal(inputs[b], converted(observation[b], snapshots[b]))
                mixed += len(set(snapshots[b])) > 1
        del observations[:-1]
        statistics += collector.statistics().add
        if number % 2:
            model.load_statistics(statistics)
    assert 4 < sum(not row.all() for row in shifted) < len(shifted) / 4
    assert mixed > 50  # rows: the first ones of each rollout but the first
    env.close()


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_activations_are_those_of_the_rows(core: Literal["none", "lstm"]) -> None:
    config = EnvConfig(env="pong", frame_size=(44, 44), noop_max=1)
    env = make_vector_env(config, num_envs=B, seed=0)
    model = build_model(ModelConfig(core=core, core_size=7), env.spec, seed=0)
    collector = RolloutCollector(
        env,
        model,
        num_steps=T,
        config=config,
        gamma=0.9,
        keep_activations=True,
        generator=torch.Generator().manual_seed(0),
        stopwatch=Stopwatch(),
    )
    for _ in range(2):
        rollout = collector.collect()
        output = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state)
        assert len(rollout.activations) == 3
        for kept, computed in zip(rollout.activations, output.activations, strict=True):
            torch.testing.assert_close(kept, computed, atol=1e-5, rtol=1e-4)
        assert rollout.environments(torch.tensor([0])).activations == ()
    env.close()


def test_environments_picks_columns_of_every_field() -> None:
    rollout = _rollouts(core="lstm")[1]
    index = torch.tensor([2, 0])
    part = rollout.environments(index)
    for name, whole in _tensors(rollout).items():
        expected = whole[index] if name == "state" else torch.stack([whole[:, 2], whole[:, 0]], dim=1)
        assert torch.equal(getattr(part, name), expected)


def _worker(
    num_minibatches: int = 1,
    num_epochs: int = 1,
    entropy_schedule: Literal["constant", "linear"] = "constant",
    entropy_horizon: float = 1.0,
) -> tuple[Worker, SharedMemoryStore, torch.Tensor]:
    """Return a worker on the script, its store and the store's counters."""
    config = TrainConfig(
        env=EnvConfig(env="scripted", num_envs=B),
        model=ModelConfig(torso="mlp", hidden_sizes=(8,), core="gru", core_size=6, dtype="float32"),
        loss=LossConfig(
            num_minibatches=num_minibatches,
            num_epochs=num_epochs,
            clip_range=0.2,
            entropy_coefficient=0.2,
            entropy_schedule=entropy_schedule,
            entropy_horizon=entropy_horizon,
        ),
        optimizer=OptimizerConfig(),
        runtime=RuntimeConfig(num_steps=(T,), total_steps=1000),
    )
    model = build_model(config.model, ScriptedEnv.spec, seed=1)
    state = create_shared_state(
        config.optimizer, FlatParameters(model).read(), num_workers=2, statistics_size=1 + 2 * 4
    )
    store = SharedMemoryStore(state, config.optimizer, worker=0, total_steps=1000)
    return Worker(config, store, _scripted, worker=0), store, state.counters


def test_kept_activations_serve_the_first_pass_alone() -> None:
    """Three passes: the parameters end where they do without keeping anything."""
    config = TrainConfig(
        env=EnvConfig(env="pong", num_envs=B, frame_size=(44, 44), noop_max=1),
        model=ModelConfig(dtype="float32"),
        loss=LossConfig(num_epochs=3, num_minibatches=1, clip_range=None),
        optimizer=OptimizerConfig(optimizer="rmsprop", lr=0.01, epsilon=0.1),
        runtime=RuntimeConfig(num_steps=(T,), total_steps=1000),
    )
    model = build_model(config.model, spec_of(config.env), seed=1)
    start = FlatParameters(model).read()
    ends = []
    for keeps in (True, False):
        state = create_shared_state(config.optimizer, start, num_workers=1, statistics_size=model.statistics_size)
        store = SharedMemoryStore(state, config.optimizer, worker=0, total_steps=1000)
        worker = Worker(config, store, make_vector_env, worker=0)
        assert worker._collector._keep_activations
        worker._collector._keep_activations = keeps
        for _ in range(3):
            worker.update()
        ends.append(state.parameters - start)
    assert float((ends[1] - ends[0]).norm() / ends[1].norm()) < 1e-3


def test_the_stopwatch_says_where_the_time_of_a_worker_goes() -> None:
    """An environment that sleeps for 4 ms, a pause of 20 ms between two updates."""
    config = TrainConfig(
        env=EnvConfig(num_envs=B), model=ModelConfig(torso="mlp"), runtime=RuntimeConfig(num_steps=(T,))
    )
    env = ScriptedEnv()
    model = build_model(config.model, env.spec, seed=0)
    state = create_shared_state(
        config.optimizer, FlatParameters(model).read(), num_workers=1, statistics_size=model.statistics_size
    )
    store = SharedMemoryStore(state, config.optimizer, worker=0, total_steps=1000)
    step = env.step

    def slow(action: np.ndarray) -> Timestep:
        time.sleep(0.004)
        return step(action)

    env.step = slow
    worker = Worker(config, store, lambda *_, **__: env, worker=0)
    for _ in range(5):
        worker.update()
    time.sleep(0.02)
    started = time.perf_counter()
    seconds = worker.update().seconds
    elapsed = time.perf_counter() - started
    assert seconds.keys() == {"env", "acting", "learning", "optimizer", "waiting"}
    assert sum(seconds.values()) == pytest.approx(0.02 + elapsed, abs=0.01)
    assert min(seconds["env"], seconds["waiting"]) >= 0.02
    assert 0 < seconds["acting"] + seconds["learning"] + seconds["optimizer"] < elapsed - 0.02


def test_every_run_worker_and_restart_has_its_own_random_numbers() -> None:
    drawn = [seed for key in np.ndindex(3, 3, 3) for seed in seeds(*map(int, key), 3)]
    assert len(set(drawn)) == len(drawn) == 81
    assert all(0 <= seed < 2**30 for seed in drawn)
    assert seeds(1, 0, 2, 3) == seeds(1, 0, 2, 3)


@pytest.mark.parametrize(
    ("schedule", "horizon", "share_left"),
    [
        ("constant", 1.0, [1, 1, 1]),
        ("linear", 1.0, [0.6, 0.586, 0.575]),  # at 400, 414 and 425 of 1000 env_steps
        ("linear", 0.42, [1 - 400 / 420, 1 - 414 / 420, 0]),
    ],
)
def test_entropy_coefficient_follows_its_schedule_over_all_workers_steps(
    schedule: Literal["constant", "linear"], horizon: float, share_left: list[float]
) -> None:
    worker, _, counters = _worker(entropy_schedule=schedule, entropy_horizon=horizon)
    counters[1, ENV_STEPS] = 400  # of another worker, of 1000 in all
    for expected in share_left:
        losses = worker.update().metrics
        weighted_entropy = losses["policy_loss"] + 0.5 * losses["value_loss"] - losses["loss"]
        assert weighted_entropy / losses["entropy"] == pytest.approx(0.2 * expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("num_minibatches", "num_epochs"), [(1, 1), (3, 2)])
def test_worker_counts_decisions_of_valid_rows_only(num_minibatches: int, num_epochs: int) -> None:
    worker, _, counters = _worker(num_minibatches, num_epochs)
    reports = [worker.update() for _ in range(NUM_ROLLOUTS)]
    per_rollout = VALID.reshape(NUM_ROLLOUTS, T * B).sum(1)
    assert [report.env_steps for report in reports] == per_rollout.tolist() == [14, 11, 14]
    updates = num_minibatches * num_epochs
    frames = 4 * VALID.sum() + 9 * (~VALID).sum()
    assert counters[0].tolist() == [VALID.sum(), frames, NUM_ROLLOUTS * updates, 8]
    assert sum(report.frames for report in reports) == frames
    assert [report.updates for report in reports] == [updates] * NUM_ROLLOUTS
    assert [report.staleness for report in reports] == [(0,) * updates] * NUM_ROLLOUTS  # nobody else updates
    returns = [game.episode_return for report in reports for game in report.episodes]
    assert returns == pytest.approx([score for games in _games() for score, _ in games])
