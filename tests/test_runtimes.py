"""The runtimes as users meet them: reproducible, asynchronous, and clean at every kind of end."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from command import needs_proc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import (
    TOY,
    configure,
    make_constant_reward,
    make_crash,
    make_crash_in_the_evaluator,
    make_endless,
    make_exit,
    make_half_nan,
    make_infinite_observation,
    make_nan_observation,
    make_only_nan,
    make_rare_nan,
)

from arcadia.checkpoint import (
    Checkpoint,
    best_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_periodic,
)
from arcadia.config import EnvConfig, TrainConfig
from arcadia.envs import make_vector_env
from arcadia.errors import DivergedError, ProcessError, UserError
from arcadia.metrics import read_metrics
from arcadia.parameters import ENV_STEPS, EPISODES, FRAMES, UPDATES
from arcadia.run_directory import load_config
from arcadia.runtimes import resume, train
from arcadia.runtimes.hogwild import num_cores
from arcadia.runtimes.session import default_workers


def final(run: Path) -> Checkpoint:
    path = newest_checkpoint(run)
    assert path is not None
    return load_checkpoint(path)


def pong(run: Path, **settings: object) -> TrainConfig:
    """50 updates of 2 x 5 decisions of Pong. No game ends so soon, so that every row is valid."""
    defaults = {
        "torso": "mlp",
        "hidden_sizes": (16,),
        "normalization_steps": 200,
        "num_envs": 2,
        "num_steps": 5,
        "num_epochs": 1,
        "clip_range": None,
        "clip_rewards": True,
        "schedule": "linear",
        "total_steps": 500,
        "eval_episodes": 1,
        "eval_updates": 30,
        "runtime": "serial",
    }
    return configure(TOY, "pong", run, **(defaults | settings))


def cartpole(run: Path, **settings: object) -> TrainConfig:
    """Short games, so that episode borders, minibatches and several passes take part."""
    defaults = {
        "hidden_sizes": (13,),
        "normalization_steps": 300,
        "num_envs": 3,
        "num_steps": 7,
        "num_epochs": 2,
        "num_minibatches": 2,
        "schedule": "linear",
        "total_steps": 600,
        "eval_episodes": 2,
        "eval_updates": 40,
        "runtime": "serial",
    }
    return configure(TOY, "CartPole-v1", run, **(defaults | settings))


# ------------------------------------------------------------------------------------------------------- reproducible


@pytest.mark.parametrize("make_config", [pong, cartpole])
def test_serial_gives_the_same_bytes_for_one_seed_and_others_for_another(make_config, tmp_path):
    for run, seed in (("first", 5), ("second", 5)):
        train(make_config(tmp_path / run, seed=seed, num_workers=2))
    train(make_config(tmp_path / "other", seed=6, num_workers=2, eval_episodes=0))
    first, second, other = (final(tmp_path / run) for run in ("first", "second", "other"))

    assert first.parameters.isfinite().all()
    assert first.parameters.numpy().tobytes() == second.parameters.numpy().tobytes()
    assert first.parameters.numpy().tobytes() != other.parameters.numpy().tobytes()
    assert first.statistics.equal(second.statistics)
    assert first.statistics[:, 0].min() > 0, "both workers feed the normaliser"
    assert first.counters.equal(second.counters)
    for name, tensor in first.optimizer_state.items():
        assert tensor.numpy().tobytes() == second.optimizer_state[name].numpy().tobytes(), name
    evaluations = [
        [
            {k: v for k, v in row.items() if "seconds" not in k}
            for row in read_metrics(run)
            if row["kind"] == "evaluation"
        ]
        for run in (tmp_path / "first", tmp_path / "second")
    ]
    assert len(evaluations[0]) >= 2
    assert {row["mode"] for row in evaluations[0]} == {"greedy", "sampled"}
    assert evaluations[0] == evaluations[1]


def test_evaluating_does_not_disturb_serial_training(tmp_path):
    train(cartpole(tmp_path / "with"))
    train(cartpole(tmp_path / "without", eval_episodes=0))
    assert final(tmp_path / "with").parameters.equal(final(tmp_path / "without").parameters)


def test_training_gives_back_signal_handlers_and_torchs_settings(tmp_path):
    def read() -> list[object]:
        handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
        return [*handlers, torch.get_num_threads(), float(torch.tensor(1e-39) * 1)]

    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        before = read()
        train(cartpole(tmp_path / "run", total_steps=1))
        assert read() == before
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(("num_envs", "num_minibatches", "parts"), [(5, 4, 4), (3, 8, 3), (6, 3, 3)])
def test_a_pass_has_as_many_minibatches_as_were_asked_for(tmp_path, num_envs, num_minibatches, parts):
    config = cartpole(tmp_path / "run", num_envs=num_envs, num_minibatches=num_minibatches, num_epochs=2, total_steps=1)
    train(config)
    assert final(tmp_path / "run").counters[:, UPDATES].tolist() == [2 * parts]


@pytest.mark.parametrize("runtime", ["serial", "hogwild"])
def test_training_runs_in_a_thread_too(tmp_path, runtime):
    for number in range(2):
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(train, cartpole(tmp_path / str(number), runtime=runtime, num_workers=1))
            assert run.result().reason == "total_steps"


def test_serial_training_takes_numbers_as_zero_that_processors_are_slow_at(tmp_path):
    found = []

    def make_env(config, *, num_envs, seed):
        env = make_vector_env(config, num_envs=num_envs, seed=seed)
        plain_step = env.step

        def step(action):
            found.append(float(torch.tensor(1e-39) * 1))
            return plain_step(action)

        env.step = step
        return env

    train(cartpole(tmp_path / "run", total_steps=1, eval_episodes=0), make_env=make_env)
    assert set(found) == {0.0}


def test_rollouts_without_a_valid_row_do_no_harm(tmp_path):
    """One environment, one decision: every sixteenth rollout is nothing but a reset."""
    config = cartpole(tmp_path / "run", num_envs=1, num_steps=1, num_minibatches=1, total_steps=90, eval_episodes=0)
    assert config.loss.normalize_advantage
    train(config, make_env=make_constant_reward)
    checkpoint = final(tmp_path / "run")
    assert checkpoint.parameters.isfinite().all()
    assert checkpoint.env_steps == 90
    assert checkpoint.counters[0, UPDATES] == 2 * 90, "nothing is learned from resets alone"
    assert checkpoint.counters[0, EPISODES] == 6
    for row in read_metrics(tmp_path / "run"):
        assert all(value == value for key, value in row.items() if key != "kind"), row


@pytest.mark.parametrize(
    ("make_config", "settings"),
    [
        (pong, {}),
        (cartpole, {"optimizer": "amsgrad", "core": "gru", "core_size": 11}),
        (cartpole, {"optimizer": "rmsprop", "shared_statistics": False, "num_epochs": 1, "eval_episodes": 0}),
    ],
    ids=["pong", "cartpole-gru-amsgrad", "cartpole-private-rmsprop"],
)
def test_hogwild_with_one_worker_computes_exactly_what_serial_does(make_config, settings, tmp_path):
    for runtime in ("serial", "hogwild"):
        settings = settings | {"eval_cpu_share": 1.0, "num_workers": 1}
        train(make_config(tmp_path / runtime, runtime=runtime, **settings))
    serial, hogwild = final(tmp_path / "serial"), final(tmp_path / "hogwild")

    updates = int(serial.counters[:, UPDATES].sum())
    assert updates == 50 if make_config is pong else updates >= 25
    assert hogwild.counters.equal(serial.counters)
    assert hogwild.parameters.numpy().tobytes() == serial.parameters.numpy().tobytes()
    assert hogwild.statistics.equal(serial.statistics)
    assert hogwild.optimizer_state.keys() == serial.optimizer_state.keys()
    for name, tensor in serial.optimizer_state.items():
        assert tensor.abs().sum() > 0, name
        assert hogwild.optimizer_state[name].equal(tensor), name


# ------------------------------------------------------------------------------------------------------- asynchronous


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished hogwild run, long enough that both workers take part though one may start seconds later."""
    run = tmp_path_factory.mktemp("hogwild") / "run"
    settings = {
        "num_workers": 2,
        "total_steps": 30_000,
        "normalization_steps": 20_000,
        "eval_cpu_share": 0.1,
        "seed": 3,
    }
    train(cartpole(run, runtime="hogwild", **settings))
    return run


def test_two_hogwild_workers_share_one_count_of_everything(two_workers):
    counters = final(two_workers).counters
    assert counters.shape == (2, 4)
    assert (counters[:, UPDATES] > 0).all(), "both workers updated"
    total = counters.sum(0)
    assert total[ENV_STEPS] >= 30_000
    assert total[ENV_STEPS] == total[FRAMES], "one frame per decision in classic control, resets excluded"
    assert total[EPISODES] > 0
    last = [row for row in read_metrics(two_workers) if row["kind"] == "train"][-1]
    assert [last[name] for name in ("env_steps", "frames", "updates", "episodes")] == total.tolist()
    step = final(two_workers).optimizer_state["step"]
    assert step.shape == (1,)
    # Without a lock two increments may fall together; most do not.
    assert 0.5 * total[UPDATES] <= float(step) <= total[UPDATES]


def test_two_hogwild_workers_gather_one_set_of_statistics(two_workers):
    statistics = final(two_workers).statistics
    assert (statistics[:, 0] > 0).all()
    # Each worker may be within one rollout (3 x 7) when the limit of 20,000 is reached, and sees it at its next pull.
    assert 20_000 <= float(statistics[:, 0].sum()) <= 20_000 + 2 * 2 * 21


def test_two_hogwild_workers_write_valid_metrics(two_workers):
    rows = read_metrics(two_workers)
    assert len(rows) == len((two_workers / "metrics.jsonl").read_text().splitlines()), "every line is JSON"
    training = [row for row in rows if row["kind"] == "train"]
    assert training
    for row in training:
        assert all(isinstance(value, (int, float)) and value == value for key, value in row.items() if key != "kind")
        assert 0 <= row["entropy"] <= 0.6932  # nats, two actions
        assert 0 <= row["clip_fraction"] <= 1
        assert row["staleness_max"] >= row["staleness"] >= 0
    for name in ("env_steps", "frames", "updates", "episodes", "seconds"):
        values = [row[name] for row in training]
        assert values == sorted(values), name
    assert max(row["staleness_max"] for row in training) >= 1, "somebody else's update came in between"


def test_a_hogwild_run_is_resumed_by_fewer_workers(two_workers, tmp_path, capsys):
    run = Path(shutil.copytree(two_workers, tmp_path / "run"))
    first = final(run)
    description = json.loads((run / "config.json").read_text())
    description["versions"]["torch"] = "1.0"
    (run / "config.json").write_text(json.dumps(description))
    result = resume(run, total_steps=first.env_steps + 500, num_workers=1)
    note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed at"))
    assert f"resumed at {first.env_steps:,} env_steps, torch 1.0 -> {torch.__version__}, " in note
    assert "num_workers 2 -> 1" in note
    second = final(run)
    assert result.env_steps == second.env_steps >= first.env_steps + 500
    assert second.counters.shape == (1, 4)
    assert (second.counters.sum(0) > first.counters.sum(0)).all()
    assert second.statistics.sum(0).equal(first.statistics.sum(0)), "frozen before, frozen after"
    assert not second.parameters.equal(first.parameters)
    env_steps = [row["env_steps"] for row in read_metrics(run) if row["kind"] == "train"]
    assert env_steps == sorted(set(env_steps))


# -------------------------------------------------------------------------------------------- lengths, ends, outputs


@pytest.mark.parametrize(("runtime", "total_steps"), [("serial", 2_000), ("hogwild", 20_000)])
def test_each_worker_has_its_own_rollout_length(tmp_path, runtime, total_steps):
    lengths = {"num_workers": 3, "num_steps": (4, 16), "num_envs": 2}  # worker 2 takes the first again
    config = cartpole(tmp_path / "run", runtime=runtime, eval_episodes=0, **lengths, total_steps=total_steps)
    train(config)
    seen: dict[str, set[float]] = {}
    for row in read_metrics(tmp_path / "run"):
        for name in row:
            if name.startswith("num_steps_worker_"):
                seen.setdefault(name, set()).add(row[name])
    assert seen == {"num_steps_worker_0": {4.0}, "num_steps_worker_1": {16.0}, "num_steps_worker_2": {4.0}}
    counters = final(tmp_path / "run").counters
    per_update = counters[:, ENV_STEPS] / counters[:, UPDATES] * 4  # passes x minibatches of each rollout
    assert per_update.tolist() == pytest.approx([8, 32, 8], rel=0.1), "some rows are resets"


def test_a_run_stops_after_its_episodes(tmp_path):
    result = train(cartpole(tmp_path / "run", eval_episodes=0, total_episodes=12, total_steps=10**6))
    assert result.reason == "total_episodes"
    counters = final(tmp_path / "run").counters
    assert 12 <= counters[:, EPISODES].sum() < 12 + 3
    result = resume(tmp_path / "run", total_episodes=20)
    assert result.reason == "total_episodes"
    assert 20 <= final(tmp_path / "run").counters[:, EPISODES].sum() < 20 + 3


def test_workers_in_processes_stop_after_the_episodes_of_all(tmp_path):
    limits = {"num_workers": 2, "total_episodes": 40, "total_steps": 10**6}
    result = train(cartpole(tmp_path / "run", runtime="hogwild", eval_episodes=0, **limits))
    assert result.reason == "total_episodes"
    episodes = final(tmp_path / "run").counters[:, EPISODES].sum()
    assert 40 <= episodes <= 40 + 2 * 3, "at most one more rollout of 7 decisions, in each of 2 workers x 3 games"


def test_environments_of_all_workers_are_split_over_them(tmp_path):
    config = cartpole(tmp_path / "run", eval_episodes=0, num_envs=None, total_envs=7, num_workers=2, num_minibatches=1)
    train(config)
    assert load_config(tmp_path / "run").envs_per_worker == 4
    resume(tmp_path / "run", num_workers=1, total_steps=700)
    assert load_config(tmp_path / "run").envs_per_worker == 7


def test_one_worker_per_core_but_no_more_than_environments_to_share(monkeypatch):
    monkeypatch.setattr("arcadia.runtimes.session.num_cores", lambda: 64)
    assert default_workers(EnvConfig(num_envs=16)) == 64
    assert default_workers(EnvConfig(total_envs=24)) == 24
    monkeypatch.setattr("arcadia.runtimes.session.num_cores", lambda: 2)
    assert default_workers(EnvConfig(total_envs=24)) == 2


def test_as_many_environments_as_were_asked_for(tmp_path):
    config = cartpole(tmp_path / "run", num_envs=3, eval_episodes=0)
    make_two = lambda config, *, num_envs, seed: make_constant_reward(config, num_envs=2, seed=seed)  # noqa: E731
    with pytest.raises(UserError, match="make_env must return num_envs = 3 environments, got 2"):
        train(config, make_env=make_two)


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_a_container_has_the_cores_that_it_is_given_the_time_of(tmp_path, monkeypatch, limit, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("arcadia.runtimes.hogwild.CPU_LIMIT", tmp_path / "cpu.max")
    assert num_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert num_cores() == cores


def test_learning_rate_and_entropy_weight_of_all_workers_are_logged(tmp_path):
    """Two processes: 1e-3 / log10(10 + 0.01 n), n being the episodes of both."""
    run = tmp_path / "run"
    schedules = {"schedule": "log_episodes", "entropy_schedule": "linear", "entropy_coefficient": 0.1}
    config = cartpole(run, runtime="hogwild", num_workers=2, eval_episodes=0, lr=1e-3, **schedules, total_steps=60_000)
    train(config)
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert len(rows) > 5
    assert rows[-1]["episodes"] == final(run).counters[:, EPISODES].sum() > 500
    episodes = env_steps = 0
    for row in rows:  # each is a mean since the last; a worker held up by the machine may report a little late
        lowest, highest = (1e-3 / math.log10(10 + 0.01 * n) for n in (row["episodes"] + 500, max(0, episodes - 500)))
        assert lowest <= row["lr"] <= highest * (1 + 1e-9)
        assert 0.1 * (1 - (row["env_steps"] + 5_000) / 60_000) <= row["entropy_coefficient"]
        assert row["entropy_coefficient"] <= 0.1 * (1 - (env_steps - 5_000) / 60_000)
        episodes, env_steps = row["episodes"], row["env_steps"]


def test_a_checkpoint_is_written_at_the_pace_asked_for(tmp_path, monkeypatch):
    times = []

    def save(run: Path, checkpoint: Checkpoint) -> None:
        times.append(time.monotonic())
        save_periodic(run, checkpoint)

    monkeypatch.setattr("arcadia.runtimes.supervise.save_periodic", save)
    train(cartpole(tmp_path / "run", eval_episodes=0, checkpoint_seconds=0.5, total_minutes=0.05, total_steps=10**6))
    assert 4 <= len(times) <= 7, "in 3 seconds, and at the end"
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(times[:-1]))


def test_training_goes_on_where_a_checkpoint_cannot_be_written(tmp_path, monkeypatch, capsys):
    """The folder is gone for the first two."""
    run, tries = tmp_path / "run", []

    def save(path: Path, checkpoint: Checkpoint) -> None:
        tries.append(path)
        folder = path / "checkpoints"
        if len(tries) == 1:
            folder.rename(path / "away")
        if len(tries) == 3:
            (path / "away").rename(folder)
        save_periodic(path, checkpoint)

    monkeypatch.setattr("arcadia.runtimes.supervise.save_periodic", save)
    train(cartpole(run, eval_episodes=0, checkpoint_seconds=0.3, total_minutes=0.03, total_steps=10**6))
    assert len(tries) >= 4
    assert capsys.readouterr().out.count("no checkpoint was written (No such file or directory): training goes on") == 2
    assert final(run).counters[:, ENV_STEPS].sum() > 0


def test_tensorboard_shows_graph_histograms_and_episodes(tmp_path):
    run = tmp_path / "run"
    train(cartpole(run, eval_episodes=0))
    accumulator = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = accumulator.Tags()
    assert tags["graph"]
    assert {"actor/torso/layers/1/weight", "policy/linear/bias", "value/linear/weight"} <= set(tags["histograms"])
    names = ("episode_return", "length", "max_probability", "running_max", "exponential_average")
    rows = [row for row in read_metrics(run) if row["kind"] == "episode"]
    assert len(rows) == final(run).counters[:, EPISODES].sum() > 5
    for name in names:
        shown = [event.value for event in accumulator.Scalars(f"episode/{name}")]
        assert shown == pytest.approx([row[name] for row in rows], rel=1e-5)
    best, average = -math.inf, rows[0]["episode_return"]
    for row in rows:
        assert row["episode_return"] == row["length"], "CartPole pays 1 for each decision"
        assert 0.5 <= row["max_probability"] <= 1
        best, average = max(best, row["episode_return"]), 0.9 * average + 0.1 * row["episode_return"]
        assert row["running_max"] == best
        assert row["exponential_average"] == pytest.approx(average)


def test_episode_averages_go_on_after_a_resume(tmp_path):
    run = tmp_path / "run"
    train(cartpole(run, eval_episodes=0))
    resume(run, total_steps=1_200)
    rows = [row for row in read_metrics(run) if row["kind"] == "episode"]
    average = rows[0]["episode_return"]
    for row in rows:
        average = 0.9 * average + 0.1 * row["episode_return"]
    assert rows[-1]["env_steps"] > 600
    assert rows[-1]["exponential_average"] == pytest.approx(average)
    assert rows[-1]["running_max"] == max(row["episode_return"] for row in rows)


# ------------------------------------------------------------------------------------------------- a failing process


def test_an_exception_in_a_worker_is_raised_with_its_name_and_traceback(tmp_path):
    config = configure(
        TOY, "toy", tmp_path / "run", num_workers=2, num_envs=2, num_steps=4, eval_episodes=0, total_steps=10**6
    )
    with pytest.raises(ProcessError) as caught:
        train(config, make_env=make_crash)
    lines = str(caught.value).splitlines()
    what = r"ArithmeticError: the toy environment broke \(toy_envs\.py:\d+\)"
    assert re.fullmatch(rf"worker-[01] failed: {what} soon after each of 3 starts", lines[0])
    assert lines[1].startswith("Traceback")
    checkpoint = final(tmp_path / "run")
    assert 0 < checkpoint.env_steps <= 2 * 3 * 2 * 20, "what was learned before is kept"
    restarts = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "restart"]
    assert {row["process"] for row in restarts} <= {"worker-0", "worker-1"}
    assert 2 <= len(restarts) <= 4
    assert all("toy_envs.py" in row["error"] for row in restarts)


def test_restarts_have_a_limit(tmp_path):
    settings = {"num_workers": 1, "num_envs": 2, "num_steps": 4, "eval_episodes": 0, "max_restarts": 1}
    config = configure(TOY, "toy", tmp_path / "run", **settings, total_steps=10**6)
    with pytest.raises(ProcessError, match=r"^worker-0 failed: .* after 1 restarts \(max_restarts\)\nTraceback"):
        train(config, make_env=make_crash)


def test_an_exception_in_the_evaluator_is_raised_with_its_name(tmp_path):
    config = configure(TOY, "toy", tmp_path / "run", num_workers=1, num_envs=3, eval_episodes=2, total_steps=10**9)
    with pytest.raises(ProcessError, match=r"^evaluator failed: ArithmeticError: the toy environment broke"):
        train(config, make_env=make_crash_in_the_evaluator)


def test_an_exception_in_a_serial_worker_leaves_a_checkpoint(tmp_path):
    config = configure(
        TOY, "toy", tmp_path / "run", runtime="serial", num_workers=1, num_envs=2, num_steps=4, eval_episodes=0
    )
    with pytest.raises(ProcessError, match=r"^training failed: ArithmeticError: the toy .*\nTraceback"):
        train(config, make_env=make_crash)
    assert final(tmp_path / "run").env_steps > 0


def test_a_worker_that_exits_before_the_end_is_a_failure(tmp_path):
    settings = {"num_workers": 1, "num_envs": 2, "num_steps": 4, "eval_episodes": 0, "max_restarts": 1}
    config = configure(TOY, "toy", tmp_path / "run", **settings, total_steps=10**6)
    with pytest.raises(ProcessError, match=r"^worker-0 failed: SystemExit: 0 .* after 1 restarts \(max_restarts\)"):
        train(config, make_env=make_exit)


# ------------------------------------------------------------------------------------------------------------- NaN


# With two workers long enough that both take part though one may start seconds later.
@pytest.mark.parametrize(
    ("runtime", "num_workers", "total_steps"), [("serial", 1, 8_000), ("hogwild", 2, 25_000)], ids=["serial", "hogwild"]
)
def test_gradients_that_are_not_finite_are_skipped_counted_and_reported(
    tmp_path, capsys, runtime, num_workers, total_steps
):
    settings = {"runtime": runtime, "num_workers": num_workers, "num_envs": 2, "num_steps": 16, "eval_episodes": 0}
    config = configure(TOY, "toy", tmp_path / "run", **settings, total_steps=total_steps)
    result = train(config, make_env=make_rare_nan)
    checkpoint = final(tmp_path / "run")
    assert checkpoint.parameters.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in checkpoint.optimizer_state.values())
    # A rollout is one episode of each environment, 15 decisions and a reset: 15 of 100 are lost, in all passes.
    learned = result.env_steps / (2 * 15)
    assert result.skipped_updates == pytest.approx(4 * learned * 15 / 85, rel=0.1)
    assert checkpoint.counters[:, UPDATES].sum() == 4 * learned, "lost rollouts are not counted"
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "skipped"]
    assert sum(row["skipped_updates"] for row in rows) == result.skipped_updates
    assert {row["worker"] for row in rows} == set(range(num_workers))
    assert f"{result.skipped_updates:,} in all" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    resumed = resume(tmp_path / "run", total_steps=result.env_steps + 1_600, make_env=make_rare_nan)
    assert resumed.skipped_updates > result.skipped_updates, "a resumed run counts on"


def test_a_reward_that_is_not_finite_is_no_zero_where_rewards_are_clipped(tmp_path):
    settings = {"runtime": "serial", "num_envs": 2, "num_steps": 16, "eval_episodes": 0, "clip_rewards": True}
    result = train(configure(TOY, "toy", tmp_path / "run", **settings, total_steps=4_000), make_env=make_rare_nan)
    learned = result.env_steps / (2 * 15)
    assert result.skipped_updates == pytest.approx(4 * learned * 15 / 85, rel=0.1)


def evaluations_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run) if row["kind"] == "evaluation"]


@pytest.mark.parametrize(("runtime", "num_workers"), [("serial", 1), ("hogwild", 2)])
def test_a_run_ends_with_an_evaluation_of_its_last_parameters(tmp_path, runtime, num_workers):
    run = tmp_path / "run"
    settings = {"num_workers": num_workers, "total_steps": 2_000, "eval_episodes": 3, "eval_updates": 10**9}
    result = train(cartpole(run, runtime=runtime, **settings))
    last = evaluations_of(run)[-1]
    assert (last["mode"], last["env_steps"], last["episodes"]) == ("sampled", result.env_steps, 3)
    assert last["seconds"] == pytest.approx(result.seconds, abs=1.0)
    before = len(evaluations_of(run))
    if runtime == "serial":
        assert before == 1
        assert load_checkpoint(best_checkpoint(run)).parameters.equal(final(run).parameters)
    resume(run)  # nothing is left to do
    assert len(evaluations_of(run)) == before


def test_a_run_without_evaluations_ends_without_one_too(tmp_path):
    train(cartpole(tmp_path / "run", eval_episodes=0))
    assert not evaluations_of(tmp_path / "run")


def test_a_last_evaluation_that_fails_costs_nothing(tmp_path, capsys):
    config = configure(TOY, "toy", tmp_path / "run", runtime="serial", total_steps=1_000, eval_episodes=3)
    result = train(config, make_env=make_crash_in_the_evaluator)
    assert (result.reason, final(tmp_path / "run").env_steps) == ("total_steps", result.env_steps)
    assert "the last parameters were not evaluated: the environment failed: ArithmeticError" in capsys.readouterr().out


def test_ctrl_c_skips_the_last_evaluation_of_a_run_that_is_complete(start, tmp_path):
    run = tmp_path / "run"
    options = ("--runtime", "serial", "--total-steps", 2_000, "--eval-episodes", 1_000, "--eval-updates", 10**9)
    cli = start("train", "Pendulum-v1", *options, "--num-envs", 4, "--run-dir", run, *ONE_UPDATE)
    cli.wait_until(lambda: "evaluating these parameters" in cli.stdout.read_text(), "last evaluation")
    cli.process.send_signal(signal.SIGINT)
    assert cli.end() == 0
    *_, skipped, reached, _ = cli.stdout.read_text().splitlines()
    assert skipped == "the last parameters were not evaluated"
    assert reached.startswith("total_steps reached: ")
    assert final(run).env_steps >= 2_000
    assert not evaluations_of(run)


def test_a_last_evaluation_takes_no_longer_than_it_may(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("arcadia.runtimes.session.LAST_EVALUATION_SECONDS", 0.2)
    config = configure(TOY, "toy", tmp_path / "run", runtime="serial", total_steps=1_000, eval_episodes=3)
    train(config, make_env=make_endless)
    assert "the last parameters were not evaluated within 0 s" in capsys.readouterr().out


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path, capsys):
    run = tmp_path / "run"
    settings = {"runtime": "serial", "num_envs": 2, "num_steps": 16, "eval_episodes": 4, "eval_updates": 20}
    train(configure(TOY, "toy", run, **settings, total_steps=8_000), make_env=make_rare_nan)
    out = capsys.readouterr().out
    assert "score is NaN or infinite" in out
    assert re.search(r"^\d:\d\d:\d\d  evaluation at [\d,]+ env_steps, 4 sampled games: mean 15.00", out, re.MULTILINE)
    rows = read_metrics(run)
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert {row["mean"] for row in rows if row["kind"] == "evaluation"} == {15.0}
    assert load_checkpoint(best_checkpoint(run)).progress["best_evaluation"] == 15.0


def test_a_worker_of_which_a_part_is_always_lost_stops_with_advice(tmp_path):
    """One environment of two breaks for good: every other part of each rollout teaches nothing."""
    settings = {"runtime": "serial", "num_envs": 2, "num_steps": 8, "eval_episodes": 0, "total_steps": 10**6}
    parts = {"num_minibatches": 2, "normalize_advantage": False}
    config = configure(TOY, "toy", tmp_path / "run", **settings, **parts)
    with pytest.raises(DivergedError, match=r"^worker 0 at update .*: gradients of 50 rollouts in a row"):
        train(config, make_env=make_half_nan)
    assert final(tmp_path / "run").parameters.isfinite().all()


@pytest.mark.parametrize(
    ("make_env", "cause"),
    [
        (make_only_nan, "every gradient of 5 rollouts"),
        (make_nan_observation, "an observation is NaN"),
        (make_infinite_observation, "an observation is NaN or infinite"),
    ],
)
def test_a_diverging_run_stops_with_one_line_of_advice_and_a_finite_checkpoint(tmp_path, make_env, cause):
    settings = {"num_envs": 2, "num_steps": 8, "eval_episodes": 0, "total_steps": 10**6}
    serial = configure(TOY, "toy", tmp_path / "serial", runtime="serial", **settings)
    with pytest.raises(DivergedError, match=f"^worker 0 at update [0-9]+: .*{cause}.* in the environment$"):
        train(serial, make_env=make_env)
    hogwild = configure(TOY, "toy", tmp_path / "hogwild", num_workers=2, **settings)
    diverged = f"^training diverged: worker [01] at update [0-9]+: .*{cause}.* in the environment$"
    with pytest.raises(ProcessError, match=diverged):
        train(hogwild, make_env=make_env)
    for run in ("serial", "hogwild"):
        checkpoint = final(tmp_path / run)
        assert checkpoint.env_steps >= 2 * 8 * 2
        assert checkpoint.parameters.isfinite().all()
        assert checkpoint.statistics.isfinite().all()


# ------------------------------------------------------------------------------------------------------ real processes


def consistent(run: Path, *, num_workers: int, rollout: int) -> None:
    """Check a final checkpoint of a run without episode borders: counters agree, and nothing was written later."""
    checkpoint = final(run)
    assert checkpoint.counters.shape == (num_workers, 4)
    # One update per rollout of valid rows; a stopped worker finishes the update that it is in.
    assert checkpoint.counters[:, ENV_STEPS].equal(checkpoint.counters[:, UPDATES] * rollout)
    assert checkpoint.env_steps > 0
    assert checkpoint.parameters.isfinite().all()
    rows = read_metrics(run)
    assert max(row["env_steps"] for row in rows) == checkpoint.env_steps


SOON = ("--checkpoint-seconds", 0.2)
ONE_UPDATE = ("--num-epochs", 1, "--num-minibatches", 1)  # per rollout
SMALL_PONG = ("--torso", "mlp", "--hidden-sizes", 16, "--num-envs", 2, "--num-steps", 5, *ONE_UPDATE, *SOON)


@needs_proc
def test_ctrl_c_stops_the_whole_group_within_seconds_and_leaves_a_checkpoint(start, tmp_path):
    cli = start("train", "pong", "--run-dir", tmp_path / "run", "--num-workers", 2, *SMALL_PONG)
    cli.wait_for_learning(tmp_path / "run")
    asked = time.monotonic()
    os.killpg(cli.process.pid, signal.SIGINT)  # as a terminal does
    assert cli.end() == 130, cli.stderr.read_text()
    took = time.monotonic() - asked
    assert took < 15, "the bar is 5 s on an idle machine"
    cli.assert_nothing_is_left()
    consistent(tmp_path / "run", num_workers=2, rollout=10)
    assert "stopped by a signal" in cli.stdout.read_text()
    assert cli.stderr.read_text() == ""


@needs_proc
@pytest.mark.parametrize("sends", [[os.kill], [os.killpg], [os.kill, os.killpg]], ids=["kill", "service", "timeout"])
def test_sigterm_stops_cleanly(start, tmp_path, sends):
    """`kill` reaches the main process, service managers the whole group, `timeout` one after the other."""
    run = tmp_path / "run"
    cli = start("train", "pong", "--run-dir", run, "--num-workers", 1, "--eval-episodes", 0, *SMALL_PONG)
    cli.wait_for_learning(run)
    for send in sends:
        send(cli.process.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert cli.end() == 143, cli.stderr.read_text()
    assert "checkpoint written: " in cli.stdout.read_text()
    cli.assert_nothing_is_left()
    consistent(run, num_workers=1, rollout=10)


@needs_proc
def test_children_end_soon_after_the_main_process_was_killed(start, tmp_path):
    run = tmp_path / "run"
    cli = start("train", "CartPole-v1", "--run-dir", run, "--num-workers", 2, "--total-steps", 10**9, *SOON)
    cli.wait_for_learning(run)
    cli.wait_until(lambda: len(cli.workers()) == 3, "two workers and the evaluator")
    cli.process.kill()
    assert cli.end() == -signal.SIGKILL
    cli.assert_nothing_is_left(seconds=30)  # 10 s on an idle machine


@needs_proc
def test_an_exception_in_a_worker_ends_the_command_with_1_and_leaves_nothing(start, tmp_path):
    script = tmp_path / "train_crash.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import gymnasium, toy_envs\n"
        "gymnasium.register('Crash-v0', toy_envs.Crash, disable_env_checker=True)\n"
        "from arcadia.cli import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    options = ("--num-workers", 2, "--num-envs", 2, "--eval-episodes", 0, *ONE_UPDATE)
    cli = start("train", "Crash-v0", *options, "--run-dir", tmp_path / "run", program=[str(script)])
    assert cli.end() == 1
    cli.assert_nothing_is_left()
    error = cli.stderr.read_text()
    assert re.match(r"arcadia: error: worker-[01] failed: ArithmeticError: the toy .*\nTraceback", error)
    assert error.count("Traceback") == 1, "one process is blamed"
