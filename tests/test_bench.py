"""Measuring speed: training that takes turns, and what is printed."""

import os
import signal
import time

import psutil
import pytest
from command import fork_server, needs_proc, slice_ns

from arcadia.cli.bench import print_results
from arcadia.config import EnvConfig
from arcadia.metrics import read_metrics
from arcadia.speed import Training, random_play


@needs_proc
def test_a_bench_that_is_interrupted_leaves_nothing(start):
    cli = start("bench", "CartPole-v1", "--num-workers", 2, "--num-envs", 4)
    cli.wait_until(lambda: len(cli.workers()) == 3, "workers and an evaluator")
    os.killpg(cli.process.pid, signal.SIGINT)
    assert cli.end() == 130
    assert "Traceback" not in cli.stderr.read_text()
    cli.assert_nothing_is_left()


def all_stand_still(processes):
    """Stopped, or about to be: whoever does not run is only seen to stop when it next would."""
    deadline = time.monotonic() + 5
    while {process.status() for process in processes} != {psutil.STATUS_STOPPED} and time.monotonic() < deadline:
        time.sleep(0.05)
    return {process.status() for process in processes} == {psutil.STATUS_STOPPED}


@needs_proc
def test_training_stands_still_between_its_rounds_and_ends_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("arcadia.speed.WARM_UP_SECONDS", 1.0)
    options = ("CartPole-v1", "--num-minibatches", "1", "--num-epochs", "1", "--eval-episodes", "0")
    training = Training(options, 2, 4, tmp_path / "run")
    with training:
        tree = psutil.Process(training._process.pid).children(recursive=True)
        assert all_stand_still(tree)
        size = (training.run / "metrics.jsonl").stat().st_size
        before = time.perf_counter()
        speed = training.measure(4.0)
        seconds = time.perf_counter() - before
        assert (training.run / "metrics.jsonl").stat().st_size > size
        assert all_stand_still(tree)
        rows = [row for row in read_metrics(training.run) if row["kind"] == "train"]
        steps_per_s = rows[-1]["env_steps"] / rows[-1]["seconds"]
        assert 0.3 * steps_per_s < speed.steps_per_s < 3 * steps_per_s
        time.sleep(3)  # a break that must not count
        again = training.measure(4.0)
        assert sum(again.time.values()) == pytest.approx(1)
        assert max(again.time[name] - speed.time[name] for name in speed.time) < 0.15
    assert seconds > 4
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in tree)


@needs_proc
def test_random_play_is_given_what_training_is():
    slice_ns(os.getpid())
    with random_play(EnvConfig("CartPole-v1"), 2, 4) as play:
        assert play(0.1) > 0
        server = fork_server(os.getpid())
        players = server.children()
        assert len(players) == 2
        assert {slice_ns(player.pid) for player in players} == {50_000_000}
        assert all(player.environ()["MALLOC_TRIM_THRESHOLD_"] for player in [server, *players])
    assert not any(player.is_running() and player.status() != psutil.STATUS_ZOMBIE for player in players)


def test_bench_prints_its_results(capsys):
    result = {
        "env": "pong",
        "recipe": "a3c-ff",
        "num_workers": 2,
        "num_envs": 16,
        "dtype": "bfloat16",
        "torso": "a3c",
        "core": "lstm",
        "evaluator": "off",
        "env_only_steps_per_s": 6000.0,
        "train_steps_per_s": 3600.4,
        "train_frames_per_s": 14400.0,
        "ratio": 0.6001,
        "time": {"acting": 0.4, "env": 0.6},
        "staleness": 0.98,
        "first_update_s": 4.56,
        "memory_mib": 1100.2,
    }
    print_results([result])
    assert capsys.readouterr().out == (
        "pong, recipe a3c-ff, network a3c + lstm, evaluator off, 2 workers x 16 envs, bfloat16\n"
        "env only      6,000 env_steps/s\n"
        "training      3,600 env_steps/s (14,400 frames/s)\n"
        "ratio         60.0%\n"
        "time          acting 40.0%, env 60.0%\n"
        "staleness     0.98 updates\n"
        "first update  after 4.6 s\n"
        "memory        1,100 MiB\n"
    )
    of_gpus = {"gpu_utilization": 0.5123, "gpu_memory_mib": 9876.0, "copies_per_s": 612.3}
    silent = {"gpu_utilization": None, "gpu_memory_mib": None, "copies_per_s": 3.0}
    print_results([result | of_gpus])
    assert capsys.readouterr().out.endswith("MiB\nGPU busy      51%\nGPU memory    9,876 MiB\ncopies        612/s\n")
    print_results([result | of_gpus, result | silent])
    _, columns, first, second = capsys.readouterr().out.splitlines()
    assert len(columns) == len(first) == len(second)
    assert columns.endswith("GPU busy  GPU memory  copies")
    assert first.split()[-4:] == ["51%", "9,876", "MiB", "612/s"]
    assert second.split()[-3:] == ["unknown", "unknown", "3/s"]
    print_results([result, result | {"num_envs": 256, "dtype": "float32"}])
    heading, columns, first, second = capsys.readouterr().out.splitlines()
    assert heading.startswith("pong, recipe a3c-ff, network a3c + lstm, evaluator off")
    assert columns.split()[:5] == ["workers", "envs", "dtype", "env", "only"]
    assert len(columns) == len(first) == len(second)
    assert second.split()[:8] == ["2", "256", "float32", "6,000", "3,600", "14,400", "60.0%", "40.0%"]
