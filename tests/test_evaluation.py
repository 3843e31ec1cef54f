"""Evaluation: whole games, fair to long ones, with one snapshot."""

import json
import math
import os
import shutil
import signal
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import fork_server, needs_proc
from toy_envs import (
    TOY,
    Choice,
    MakeEndlessPong,
    be_killed,
    configure,
    fail,
    leave,
    leave_a_mark,
    make_choice,
    make_constant_reward,
    make_crash,
    make_endless,
    make_numbered,
    make_restless,
    make_unserved,
    refuse,
)

from arcadia.checkpoint import best_checkpoint, load_checkpoint, save_best
from arcadia.child import STOP_SECONDS
from arcadia.config import TrainConfig
from arcadia.envs import EnvFactory, EnvSpec, make_camera, make_vector_env, spec_of
from arcadia.errors import ProcessError, UserError
from arcadia.evaluation import PeriodicEvaluator, evaluate_run, load_run_snapshot, save_evaluation, summarize
from arcadia.metrics import read_metrics
from arcadia.models import FlatParameters, build_model
from arcadia.parameters import Snapshot
from arcadia.player import Evaluation, Player
from arcadia.runtimes import train
from arcadia.types import Episode, Timestep
from arcadia.video import replay


def games(scores: list[float], *, greedy: bool = False) -> Evaluation:
    played = tuple(Episode(score, 10 + index, 0.5) for index, score in enumerate(scores))
    return Evaluation(greedy, Snapshot(np.zeros(1, np.float32), np.zeros(0), 0, 0, 0), played, 1.0)


def summarized(evaluation: Evaluation, env: str) -> dict[str, Any]:
    return summarize(evaluation.episodes, env, greedy=evaluation.greedy)


def test_a_summary_of_four_games_computed_by_hand():
    summary = summarized(games([1.0, 2.0, 3.0, 6.0]), "pong")
    low, high = summary.pop("ci95")
    assert summary == {
        "episodes": 4,
        "distinct_episodes": 4,
        "mean": 3.0,
        "std": pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3)),
        "median": 2.5,
        "min": 1.0,
        "max": 6.0,
        "mean_length": 11.5,
    }
    assert 1 <= low < 3 < high <= 6


def test_the_interval_of_many_games_is_the_normal_one():
    scores = np.random.default_rng(3).normal(50, 8, 400)
    low, high = summarized(games(scores.tolist()), "pong")["ci95"]
    half_width = 1.96 * scores.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(scores.mean() - half_width, abs=0.05 * half_width)
    assert high == pytest.approx(scores.mean() + half_width, abs=0.05 * half_width)
    assert summarized(games(scores.tolist()), "pong")["ci95"] == [low, high], "the resamples have a fixed seed"


def test_the_interval_of_very_many_games_takes_little_memory():
    """It is the one of all resamples at once, which would take half a gigabyte."""
    scores = np.random.default_rng(3).normal(50, 8, 3000)
    tracemalloc.start()
    try:
        interval = summarized(games(scores.tolist()), "pong")["ci95"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    draws = np.random.default_rng(0).choice(scores, (10_000, 3000))
    assert interval == np.percentile(draws.mean(1), [2.5, 97.5]).tolist()


def test_the_summary_of_one_game_is_that_game():
    summary = summarized(games([-7.0]), "pong")
    assert [summary[name] for name in ("mean", "median", "min", "max", "std")] == [-7.0, -7.0, -7.0, -7.0, 0.0]
    assert summary["ci95"] is None


@pytest.mark.parametrize(
    ("env", "has_interval"),
    [("pong", False), ("PongNoFrameskip-v4", False), ("Pong-v4", True), ("ALE/Pong-v5", True), ("CartPole-v1", True)],
)
def test_games_that_repeat_themselves_have_no_interval(env, has_interval):
    """Greedy play without sticky actions or random frame skip; an unknown id is an environment of the caller's own."""
    assert (summarized(games([1.0, 2.0], greedy=True), env)["ci95"] is not None) == has_interval
    assert summarized(games([1.0, 2.0]), env)["ci95"] is not None
    assert summarized(games([1.0, 2.0], greedy=True), "mine")["ci95"] is not None


def test_games_of_equal_score_and_length_are_one():
    one = Episode(3.0, 10, None)
    evaluation = games([])._replace(episodes=(one, one, one._replace(length=11), one._replace(episode_return=4.0), one))
    assert summarized(evaluation, "pong")["distinct_episodes"] == 3


# --------------------------------------------------------------------------------------------------------------- Player


def toy(run: Path = Path("unused"), **settings: object) -> TrainConfig:
    defaults = {"dtype": "float32", "normalization": "none", "hidden_sizes": (1,), "num_envs": 3}
    return configure(TOY, "toy", run, **(defaults | settings))


def snapshot(
    config: TrainConfig,
    make_env: EnvFactory,
    *,
    bias: tuple[float, ...] = (0.0, 0.0),
    weight: float = 0.0,
    statistics: list[float] | None = None,
    updates: int = 1,
) -> Snapshot:
    """Return parameters with logits[a] = bias[a], and logits[1] += weight * tanh(first input)."""
    model = build_model(config.model, spec_of(config.env, make_env), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.actor.torso.layers[1].weight[0, 0] = 1.0
        model.policy.linear.bias.copy_(torch.tensor(bias))
        model.policy.linear.weight[1, 0] = weight
    return Snapshot(FlatParameters(model).read().numpy(), np.array(statistics or []), 1000, 4000, updates)


def play(player: Player, snapshot: Snapshot) -> Evaluation:
    player.start(snapshot)
    while (evaluation := player.step()) is None:
        pass
    return evaluation


def scores(evaluation: Evaluation) -> list[float]:
    return [episode.episode_return for episode in evaluation.episodes]


def test_long_games_count_as_often_as_they_are_played():
    """Half of these games end at once. Who takes the first 120 to end has hardly any of the others."""
    config = toy()
    player = Player(config, make_choice, num_episodes=120, greedy=False, seed=3, num_envs=120)
    result = play(player, snapshot(config, make_choice))
    assert len(result.episodes) == 120
    assert set(scores(result)) == {0.0, float(Choice.LONG)}
    assert {episode[:2] for episode in result.episodes} == {(0.0, 1), (30.0, 30)}
    share = scores(result).count(30.0) / 120
    assert 0.32 < share < 0.68, "4 standard deviations around a half"


def test_every_environment_plays_its_fixed_number_of_games():
    """The score tells the environment: 5, 10, 15 or 20. Short games are over long before."""
    config = toy()
    player = Player(config, make_numbered, num_episodes=11, greedy=False, seed=2, num_envs=4)
    for _ in range(2):  # a second evaluation owes nothing to the first
        result = play(player, snapshot(config, make_numbered, bias=(0.0, 0.0, 0.0)))
        counts = Counter(scores(result))
        assert set(counts) == {5.0, 10.0, 15.0, 20.0}
        assert sorted(counts.values()) == [2, 3, 3, 3]
        assert all(episode.episode_return == 5 * episode.length for episode in result.episodes)


@pytest.mark.parametrize("env", ["CartPole-v1", "pong"])
def test_a_game_does_not_depend_on_how_many_others_still_play(env):
    """One game an environment, then two: the first three are the same, but beside them more go on."""
    settings = {"core": "lstm", "core_size": 4, "torso": "mlp", "hidden_sizes": (4,)}
    config = configure(TOY, env, Path("unused"), **settings, dtype="float32", normalization="scale")
    model = build_model(config.model, spec_of(config.env, make_vector_env), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=torch.Generator().manual_seed(0))
    parameters = FlatParameters(model).read().numpy()
    first_games = []
    for num_episodes in (3, 6):
        player = Player(
            config, make_vector_env, num_episodes=num_episodes, greedy=True, seed=3, num_envs=3, record=True
        )
        play(player, Snapshot(parameters, np.array([]), 1000, 4000, 1))
        assert player.recording is not None
        games = sorted(player.recording.games, key=lambda game: (game.start > 0, game.env))[:3]
        first_games.append([[d.value[game.env] for d in player.recording.decisions[: game.stop]] for game in games])
    alone, together = first_games
    lengths = [len(game) for game in alone]
    assert lengths[0] < max(lengths), "the others move up"
    for game, other in zip(alone, together, strict=True):
        assert np.std(game[len(game) // 2 :]) > 0.001
        np.testing.assert_allclose(game, other, rtol=1e-4, atol=1e-5)


def test_greedy_takes_the_most_probable_action_and_sampling_follows_the_policy():
    config = toy()
    policy = snapshot(config, make_choice, bias=(0.0, 1.0))  # P(action 1) = 0.731
    greedy = Player(config, make_choice, num_episodes=50, greedy=True, seed=0, num_envs=50)
    sampled = Player(config, make_choice, num_episodes=300, greedy=False, seed=0, num_envs=150)
    result = play(greedy, policy)
    assert result.greedy
    assert scores(result) == [30.0] * 50
    result = play(sampled, policy)
    assert not result.greedy
    assert 0.731 - 0.11 < scores(result).count(30.0) / 300 < 0.731 + 0.11  # 4 standard deviations


def test_games_are_played_with_the_statistics_of_the_snapshot():
    """The first observation is 1. Where the mean is 2 it becomes negative, and the policy chooses otherwise."""
    config = toy(normalization="per_element")
    player = Player(config, make_choice, num_episodes=3, greedy=True, seed=0, num_envs=3)
    count, mean, square = 10.0, 2.0, 5.0
    seen = [count, count * mean, count * mean, count * square, count * square]
    assert scores(play(player, snapshot(config, make_choice, weight=1.0, statistics=[0.0] * 5))) == [30.0] * 3
    assert scores(play(player, snapshot(config, make_choice, weight=-1.0, statistics=seen))) == [30.0] * 3
    assert scores(play(player, snapshot(config, make_choice, weight=1.0, statistics=seen))) == [0.0] * 3


def test_parameters_of_another_shape_are_refused():
    config = toy()
    player = Player(config, make_choice, num_episodes=3, greedy=True, seed=0, num_envs=3)
    good = snapshot(config, make_choice)
    with pytest.raises(UserError, match=f"holds {len(good.parameters) + 2} parameters"):
        player.start(good._replace(parameters=np.zeros(len(good.parameters) + 2, np.float32)))
    with pytest.raises(UserError, match="5 running statistics"):
        player.start(good._replace(statistics=np.zeros(5)))


# ---------------------------------------------------------------------------------------------------- PeriodicEvaluator


def test_a_whole_evaluation_is_played_with_one_snapshot_and_the_next_with_another():
    config = toy(eval_episodes=4)
    long = snapshot(config, make_choice, bias=(0.0, 50.0), updates=1)
    short = snapshot(config, make_choice, bias=(50.0, 0.0), updates=2)
    taken: list[int] = []
    current = long

    def take() -> Snapshot:
        taken.append(current.updates)
        return current

    evaluator = PeriodicEvaluator(config, make_choice, take)
    finished = evaluator.step()
    assert not finished
    assert not evaluator.is_idle
    current = short  # training goes on while the games are played
    turns = 1
    while len(finished) < 4:
        turns += 1
        finished += evaluator.step()
    assert turns == 51, "30 sampled decisions, beside them 10 greedy ones and then 20, one with the other snapshot"
    assert {(evaluation.greedy, evaluation.snapshot.updates) for evaluation in finished} == {
        (greedy, updates) for greedy in (False, True) for updates in (1, 2)
    }
    for evaluation in finished:
        assert scores(evaluation) == [30.0 if evaluation.snapshot.updates == 1 else 0.0] * 4


def test_neither_untrained_nor_unchanged_parameters_are_evaluated():
    config = toy(eval_episodes=2)
    current = snapshot(config, make_choice, updates=0)
    evaluator = PeriodicEvaluator(config, make_choice, lambda: current)
    assert evaluator.run() == []
    current = current._replace(updates=3)
    assert len(evaluator.run()) == 2
    assert evaluator.run() == []
    assert evaluator.is_idle
    current = current._replace(updates=4)
    assert len(evaluator.run()) == 2


def test_a_game_that_no_longer_scores_counts_as_over_in_training(monkeypatch):
    monkeypatch.setattr("arcadia.evaluation.PATIENCE", 15)
    config = toy(eval_episodes=3)
    evaluator = PeriodicEvaluator(config, make_unserved, lambda: snapshot(config, make_unserved))
    evaluations = evaluator.run()
    assert {evaluation.greedy for evaluation in evaluations} == {False, True}
    for evaluation in evaluations:
        assert [(game.episode_return, game.length) for game in evaluation.episodes] == [(2.0, 35)] * 3
    assert evaluator.is_idle


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CartPole run that was evaluated several times."""
    run = tmp_path_factory.mktemp("evaluate") / "run"
    config = configure(
        TOY,
        "CartPole-v1",
        run,
        runtime="serial",
        num_envs=3,
        num_steps=16,
        hidden_sizes=(11,),
        total_steps=1500,
        eval_episodes=3,
        eval_updates=20,
    )
    train(config)
    return run


def test_best_is_kept_by_the_mean_of_sampled_evaluation_games(trained):
    rows = [row for row in read_metrics(trained) if row["kind"] == "evaluation"]
    sampled = [row for row in rows if row["mode"] == "sampled"]
    assert len(sampled) >= 4
    assert all(row["episodes"] == 3 and row["min"] <= row["mean"] <= row["max"] for row in rows)
    best = max(sampled, key=lambda row: row["mean"])
    kept = load_checkpoint(best_checkpoint(trained))
    assert kept.progress["best_evaluation"] == best["mean"]
    assert kept.env_steps == best["env_steps"]
    assert kept.counters.tolist() == [[best["env_steps"], best["frames"], best["updates"], 0]]


def test_an_evaluation_of_a_run_is_written_as_json(trained):
    finished: list[int] = []
    _, result, _, steps_per_s = evaluate_run(trained, episodes=7, num_envs=3, on_progress=finished.append)
    path = save_evaluation(trained, result)
    assert path.parent == trained / "evaluations"
    assert json.loads(path.read_text()) == result
    assert result["env"] == "CartPole-v1"
    assert result["mode"] == "sampled"
    assert result["episodes"] == len(result["scores"]) == 7
    assert result["mean"] == pytest.approx(np.mean(result["scores"]))
    assert (result["min"], result["max"]) == (min(result["scores"]), max(result["scores"]))
    assert 10 < steps_per_s < 1e6
    assert result["mean_length"] == result["mean"], "CartPole pays 1 a decision"
    assert finished == sorted(finished)
    assert finished[-1] == 7


@pytest.mark.parametrize("greedy", [False, True])
def test_one_seed_gives_one_set_of_scores(trained, greedy):
    first = evaluate_run(trained, episodes=6, num_envs=4, seed=11, greedy=greedy).result
    second = evaluate_run(trained, episodes=6, num_envs=4, seed=11, greedy=greedy).result
    other = evaluate_run(trained, episodes=6, num_envs=4, seed=12, greedy=greedy).result
    assert first == second
    assert first["scores"] != other["scores"]
    assert first["mode"] == ("greedy" if greedy else "sampled")


def test_the_best_and_the_newest_parameters_are_different_ones(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    _, snapshot = load_run_snapshot(run, best=False)
    still = snapshot._replace(parameters=np.zeros_like(snapshot.parameters), env_steps=100)
    save_best(run, still, 99.0)
    newest = evaluate_run(run, episodes=4).result
    best = evaluate_run(run, episodes=4, best=True).result
    assert (newest["env_steps"], best["env_steps"]) == (snapshot.env_steps, 100)
    assert newest["scores"] != best["scores"]
    assert save_evaluation(run, newest) != save_evaluation(run, best)
    assert best["checkpoint"] == "best/checkpoint.safetensors"
    other = evaluate_run(run, episodes=4, seed=7).result
    assert save_evaluation(run, other).name == save_evaluation(run, newest).stem + "-seed-7.json", "none is overwritten"


def test_scores_are_raw_where_learning_clips_rewards(tmp_path):
    run = tmp_path / "run"
    config = configure(
        TOY,
        "toy",
        run,
        runtime="serial",
        clip_rewards=True,
        num_envs=4,
        num_steps=8,
        total_steps=300,
        eval_episodes=4,
        eval_updates=5,
    )
    result = train(config, make_env=make_numbered)
    assert result.mean_return is not None
    assert 5 <= result.mean_return <= 20
    rows = read_metrics(run)
    assert {row["kind"] for row in rows} == {"train", "episode", "evaluation"}
    for row in rows:
        if row["kind"] == "evaluation":
            assert (row["min"], row["mean"], row["max"]) == (5.0, 12.5, 20.0)
    played = evaluate_run(run, episodes=4, make_env=make_numbered).result
    assert sorted(played["scores"]) == [5.0, 10.0, 15.0, 20.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be an integer >= 1, got 0"),
        ({"episodes": 3, "num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
        ({"episodes": 3, "seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(trained, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate_run(trained, **arguments)


def test_a_run_without_a_best_evaluation_says_so(tmp_path):
    run = tmp_path / "run"
    train(configure(TOY, "CartPole-v1", run, runtime="serial", total_steps=1, num_steps=3, eval_episodes=0))
    with pytest.raises(UserError, match="no evaluation that was completed"):
        evaluate_run(run, episodes=1, best=True)
    assert not (run / "evaluations").exists()


def test_a_game_that_never_ends_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("arcadia.player.MAX_GAME_STEPS", 50)
    settings = {"runtime": "serial", "num_workers": 1, "num_envs": 2, "num_steps": 5, "eval_episodes": 2}
    run = tmp_path / "run"
    train(configure(TOY, "toy", run, **settings, eval_updates=10, total_steps=300), make_env=make_endless)
    assert capsys.readouterr().out.count("game does not end; evaluation dropped") >= 4, "sampled and greedy, twice"
    assert not [row for row in read_metrics(run) if row["kind"] == "evaluation"]
    with pytest.raises(UserError, match=r"^a game has not ended within 50 decisions: the environment needs a limit$"):
        evaluate_run(run, episodes=2, make_env=make_endless)


class Uneven:
    """Two games that stand still once they are dismissed: the first always lasts 5 decisions, the second 40."""

    num_envs = 2
    spec = EnvSpec((4,), np.dtype(np.float32), 2, is_emulated=True)

    def __init__(self) -> None:
        self._lengths, self._stands = np.array([5, 40]), np.zeros(2, np.bool_)
        self._count = np.zeros(2, np.int64)

    def reset(self) -> np.ndarray:
        return np.zeros((2, 4), np.float32)

    def step(self, action: np.ndarray) -> Timestep:
        self._count[~self._stands] += 1
        over = self._count == self._lengths
        self._count[self._count > self._lengths] = 0  # the step of the reset
        none = np.zeros(2, np.bool_)
        return Timestep(self.reset(), np.ones(2, np.float32), over, none, over & ~self._stands, np.ones(2, np.int64))

    def dismiss(self, index: int) -> None:
        self._stands[index] = True

    def close(self) -> None:
        pass


def test_a_game_that_waits_for_longer_ones_is_no_endless_one(monkeypatch):
    monkeypatch.setattr("arcadia.player.MAX_GAME_STEPS", 50)
    config = configure(TOY, "CartPole-v1", Path("unused"), hidden_sizes=(4,))
    player = Player(config, lambda *_, **__: Uneven(), num_envs=2, num_episodes=6, greedy=True, seed=1)
    model = build_model(config.model, Uneven.spec, seed=1)
    statistics = np.zeros(model.statistics_size)
    player.start(Snapshot(FlatParameters(model).read().numpy(), statistics, 0, 0, 0))
    while (evaluation := player.step()) is None:
        pass
    assert sorted(episode.length for episode in evaluation.episodes) == [5, 5, 5, 40, 40, 40]


def test_an_environment_that_fails_in_an_evaluation_is_named(tmp_path):
    run = tmp_path / "run"
    settings = {"runtime": "serial", "num_workers": 1, "num_envs": 2, "num_steps": 5, "eval_episodes": 0}
    train(configure(TOY, "toy", run, **settings, total_steps=50), make_env=make_constant_reward)
    with pytest.raises(ProcessError, match=r"^the environment failed: ArithmeticError: the toy .*\nTraceback"):
        evaluate_run(run, episodes=2, make_env=make_crash)

    def make_none(config, *, num_envs, seed):
        raise ArithmeticError("none today")

    with pytest.raises(ProcessError, match=r"^the environment failed: ArithmeticError: none today"):
        evaluate_run(run, episodes=2, make_env=make_none)


@pytest.fixture(scope="module")
def pong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pong") / "run"
    settings = {"runtime": "serial", "num_workers": 1, "num_envs": 2, "num_steps": 5, "eval_episodes": 0}
    small = {"torso": "mlp", "hidden_sizes": (4,), "max_episode_steps": 60}
    train(configure(TOY, "pong", run, **settings, **small, total_steps=20))
    return run


def test_atari_games_are_played_in_processes_and_their_scores_are_those_of_one_seed(pong):
    finished = []
    first = evaluate_run(pong, episodes=5, record=True, on_progress=finished.append)
    assert finished == sorted(finished)
    assert finished[-1] == 5
    recordings = {recording.seed: recording for recording, _ in first.games}.values()
    assert [recording.num_envs for recording in recordings] == [2, 3]
    assert [game.score for _, game in first.games] == first.result["scores"]
    recording, game = first.games[-1]
    camera = make_camera(first.config.env, num_envs=recording.num_envs, seed=recording.seed)
    assert [scene.score for scene in replay(camera, recording, game)][-1] == game.score
    assert evaluate_run(pong, episodes=5, make_env=make_restless).result == first.result


def test_what_the_network_sees_is_the_same_where_all_frames_are_converted(pong):
    def make_env(config, *, num_envs, seed):
        env = make_vector_env(config, num_envs=num_envs, seed=seed)
        step = env.step
        env.step = lambda action: step(action)._replace(shifted=None)
        return env

    (first, *_), (second, *_) = (
        [recording for recording, _ in evaluate_run(pong, episodes=4, num_envs=2, record=True, make_env=make).games]
        for make in (make_vector_env, make_env)
    )
    assert len(first.decisions) == len(second.decisions) > 100
    assert all((a.value == b.value).all() for a, b in zip(first.decisions, second.decisions, strict=True))


@pytest.mark.parametrize(
    ("event", "kind", "message"),
    [
        (fail, ProcessError, r"^player-1 failed: ArithmeticError: broken .*\nTraceback"),
        (refuse, UserError, "^no more of this$"),
        (be_killed, ProcessError, r"^player-1 was killed by SIGKILL \(out of memory"),
        (leave, ProcessError, "^player-1 exited with code 0$"),
    ],
)
def test_every_process_ends_where_one_fails(pong, event, kind, message):
    """The games of the other process never end."""
    with pytest.raises(kind, match=message):
        evaluate_run(pong, episodes=5, make_env=MakeEndlessPong(event))
    server = fork_server(os.getpid())
    assert server is not None
    assert not server.children()


def test_processes_that_cannot_import_the_environments_are_not_started(pong):
    with pytest.raises(UserError, match=r"^make_env must be a function of a module, not a lambda"):
        evaluate_run(pong, episodes=33, make_env=lambda *args, **kwargs: make_vector_env(*args, **kwargs))


def test_every_process_ends_where_the_user_interrupts(pong, tmp_path, monkeypatch):
    monkeypatch.setenv("PLAYING", str(tmp_path))
    interrupted = 0.0

    def interrupt(finished: int) -> None:
        nonlocal interrupted
        if len(list(tmp_path.iterdir())) == 2:
            interrupted = time.monotonic()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(pong, episodes=5, on_progress=interrupt, make_env=MakeEndlessPong(leave_a_mark, False))
    assert time.monotonic() - interrupted < STOP_SECONDS, "nobody had to be killed"
    server = fork_server(os.getpid())
    assert server is not None
    assert not server.children()


@needs_proc
def test_ctrl_c_ends_the_command_and_its_processes(start, pong):
    cli = start("eval", pong, "--episodes", 10**6)
    cli.wait_until(lambda: len(cli.workers()) == 2, "two processes")
    os.killpg(cli.process.pid, signal.SIGINT)
    assert cli.end() == 130, cli.stderr.read_text()
    cli.assert_nothing_is_left()
    assert cli.stderr.read_text().strip().endswith("interrupted")


@needs_proc
def test_the_command_names_a_process_that_was_killed(start, pong):
    cli = start("eval", pong, "--episodes", 10**6)
    cli.wait_until(lambda: len(cli.workers()) == 2, "two processes")
    os.kill(cli.workers()[0], signal.SIGKILL)
    assert cli.end() == 1
    cli.assert_nothing_is_left()
    assert "player-0 was killed by SIGKILL" in cli.stderr.read_text()


@pytest.mark.parametrize("call", ["arcadia.evaluate(pong, episodes=33)", "arcadia.train('CartPole-v1', run_dir=new)"])
def test_a_script_without_a_guard_is_told_so(start, pong, tmp_path, call):
    """Its processes import it, and would begin a run of their own."""
    script = tmp_path / "script.py"
    script.write_text(f"import arcadia\npong, new = {str(pong)!r}, {str(tmp_path / 'new')!r}\n{call}\n")
    cli = start(program=[str(script)])
    assert cli.end() == 1
    errors = cli.stderr.read_text()
    assert 'exited with code 1 before it began (a script calls Arcadia under `if __name__ == "__main__":`)' in errors
    assert errors.count("Traceback") == 1  # the script's own


def test_environments_of_the_callers_own_are_stepped_where_they_are_made(tmp_path):
    def make_env(config, *, num_envs, seed):
        env = make_numbered(config, num_envs=num_envs, seed=seed)
        plain_step, home = env.step, threading.get_ident()

        def step(action):
            assert threading.get_ident() == home
            return plain_step(action)

        env.step = step
        return env

    run = tmp_path / "run"
    settings = {"runtime": "serial", "num_envs": 4, "num_steps": 8, "total_steps": 30, "eval_episodes": 0}
    train(configure(TOY, "toy", run, **settings), make_env=make_numbered)
    assert sorted(evaluate_run(run, episodes=4, make_env=make_env).result["scores"]) == [5.0, 10.0, 15.0, 20.0]


@pytest.mark.parametrize(("episodes", "num_envs"), [(17, 17), (33, 40), (34, 20), (1, 40), (3, 1)])
def test_games_are_spread_evenly_and_never_more_than_asked_for_are_played_at_once(pong, episodes, num_envs):
    games = evaluate_run(pong, episodes=episodes, num_envs=num_envs, record=True).games
    assert len(games) == episodes
    players = {recording.seed: recording for recording, _ in games}.values()
    assert sum(recording.num_envs for recording in players) <= num_envs
    rounds = math.ceil(episodes / num_envs)
    assert {math.ceil(len(recording.games) / recording.num_envs) for recording in players} == {rounds}


def test_a_protocol_by_flag(pong):
    """Greedy games without sticky actions and with one start are one game; with sticky ones they are not."""
    fixed = evaluate_run(pong, episodes=6, greedy=True, noop_max=1).result
    assert fixed["distinct_episodes"] == 1
    assert fixed["ci95"] is None
    sticky = evaluate_run(pong, episodes=6, greedy=True, env="ALE/Pong-v5").result
    assert sticky["env"] == "ALE/Pong-v5"
    assert sticky["ci95"] is not None
    assert save_evaluation(pong, sticky) != save_evaluation(pong, fixed)
    assert save_evaluation(pong, sticky).name.endswith("-env-ALE-Pong-v5-6.json")


def test_another_task_is_no_protocol(trained):
    with pytest.raises(UserError, match=r"has learned CartPole-v1, not Acrobot-v1: give another id of the same game$"):
        evaluate_run(trained, episodes=2, env="Acrobot-v1")
    assert evaluate_run(trained, episodes=2, env="CartPole-v1").result["env"] == "CartPole-v1"


def test_a_protocol_of_another_game_is_refused(pong):
    with pytest.raises(UserError, match=r"has learned pong, not ALE/Breakout-v5: give another id of the same game$"):
        evaluate_run(pong, episodes=1, env="ALE/Breakout-v5")
    with pytest.raises(UserError, match="noop_max must be >= 0"):
        evaluate_run(pong, episodes=1, noop_max=-1)
