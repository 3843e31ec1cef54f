"""metrics.jsonl, TensorBoard and the running figures."""

import contextlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import TOY, configure
from wandb.proto import wandb_internal_pb2

from arcadia.cli import main
from arcadia.metrics import MetricsWriter, RunningFigures, read_metrics
from arcadia.runtimes import resume, train
from arcadia.types import Episode, UpdateReport


def report(loss: float, staleness: tuple[int, ...], scores: tuple[float, ...] = ()) -> UpdateReport:
    episodes = tuple(Episode(score, 10 * (index + 1), 0.5) for index, score in enumerate(scores))
    return UpdateReport(
        worker=0,
        num_steps=3,
        env_steps=6,
        frames=24,
        updates=len(staleness),
        skipped=(),
        episodes=episodes,
        staleness=staleness,
        metrics={"loss": loss},
        seconds={"env": abs(loss), "acting": 3.0},
    )


def train_row(env_steps: int, loss: float) -> dict[str, object]:
    return {
        "kind": "train",
        "env_steps": env_steps,
        "frames": 4 * env_steps,
        "updates": env_steps // 10,
        "seconds": env_steps / 100,
        "loss": loss,
    }


def evaluation_row(env_steps: int, mean: float, mode: str = "greedy") -> dict[str, object]:
    row = train_row(env_steps, 0.0) | {"kind": "evaluation", "mode": mode, "mean": mean, "ci95": [mean - 1, mean + 1]}
    del row["loss"]
    return row


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TensorBoard's files: tag -> [(step, value), ...]."""
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_figures_are_means_since_the_last_flush():
    figures = RunningFigures()
    figures.add(report(1.0, (0, 3), scores=(5.0, 7.0)))
    figures.add(report(4.0, (6,)))
    assert figures.flush() == {
        "loss": 2.5,
        "staleness": 3.0,
        "staleness_max": 6.0,
        "episode_return": 6.0,
        "episode_length": 15.0,
        "num_steps_worker_0": 3.0,
        "time_env": pytest.approx((1 + 4) / (1 + 4 + 3 + 3)),
        "time_acting": pytest.approx(6 / 11),
    }
    assert figures.flush() == {}
    figures.add(report(-1.0, (2,)))
    assert figures.flush() == {
        "loss": -1.0,
        "staleness": 2.0,
        "staleness_max": 2.0,
        "num_steps_worker_0": 3.0,
        "time_env": 0.25,
        "time_acting": 0.75,
    }, "no episode ended in between"


def test_the_mean_score_covers_the_last_100_episodes_across_flushes():
    figures = RunningFigures()
    assert figures.mean_return is None
    figures.add(report(0.0, (0,), scores=tuple(range(60))))
    figures.flush()
    assert figures.mean_return == 29.5
    assert not figures.reach(29.5)
    figures.add(report(0.0, (0,), scores=tuple(range(60, 107))))
    assert figures.mean_return == (7 + 106) / 2
    assert figures.reach(56.5)
    assert not figures.reach(57)
    assert not figures.reach(None)


def test_a_resumed_run_starts_from_the_scores_of_its_checkpoint():
    figures = RunningFigures([1.0] * 99)
    assert not figures.reach(1)
    figures.add(report(0.0, (0,), scores=(101.0,)))
    assert figures.reach(2)
    assert figures.mean_return == 2.0


def test_rows_reach_the_file_at_once_and_tensorboard_holds_the_same_figures(tmp_path):
    rows = [train_row(100, 0.5), evaluation_row(90, 20.5), evaluation_row(95, 19.0, "sampled"), train_row(200, 0.25)]
    writer = MetricsWriter(tmp_path, TOY, (0, 0.0), print)
    for count, row in enumerate(rows, 1):
        writer.write(row)
        assert read_metrics(tmp_path) == rows[:count], "readable while the run goes on"
    writer.close()
    written = scalars(tmp_path)
    assert written["train/loss"] == [(100, 0.5), (200, 0.25)]
    assert written["evaluation_greedy/mean"] == [(90, 20.5)]
    assert written["evaluation_sampled/mean"] == [(95, 19.0)]


def test_rows_are_strict_json(tmp_path):
    writer = MetricsWriter(tmp_path, TOY, (0, 0.0), print)
    writer.write(train_row(100, 0.5))
    writer.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == train_row(100, 0.5)


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(train_row(100, 0.5)) + '\n{"kind": "train", "env_st')
    assert read_metrics(tmp_path) == [train_row(100, 0.5)]


@pytest.mark.parametrize("torn", ["", '{"kind": "train", "env_steps": 3'])
def test_a_resumed_writer_drops_what_came_after_the_checkpoint(tmp_path, torn):
    writer = MetricsWriter(tmp_path, TOY, (0, 0.0), print)
    kept = [train_row(100, 1.0), evaluation_row(90, 5.0), train_row(200, 2.0), evaluation_row(200, 6.0, "sampled")]
    kept[3]["seconds"] = 2.5  # of the checkpoint's own parameters
    # Written as a report came that was on its way as the checkpoint was taken.
    late = [train_row(200, 4.0) | {"kind": kind, "seconds": 2.001} for kind in ("episode", "skipped", "restart")]
    for row in (*kept, *late, evaluation_row(201, 6.0), train_row(300, 3.0)):
        writer.write(row)
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in which they were begun

    resumed = MetricsWriter(tmp_path, TOY, (200, 2.0), print)
    resumed.write(train_row(250, 2.5))
    resumed.close()
    assert read_metrics(tmp_path) == [*kept, train_row(250, 2.5)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert not list(tmp_path.glob("*.tmp"))
    written = scalars(tmp_path)
    assert written["train/loss"] == [(100, 1.0), (200, 2.0), (250, 2.5)], "TensorBoard was purged too"
    assert written.get("evaluation_greedy/mean") == [(90, 5.0)]


# ----------------------------------------------------------------------------------------------------- Weights & Biases


def wandb_records(file: Path) -> list[wandb_internal_pb2.Record]:
    """Read an offline run: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    data, position, payload, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        rest = 32_768 - position % 32_768
        if rest < 7:
            position += rest
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        payload += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            records.append(record)
            payload = b""
    return records


def whole_wandb_records(file: Path) -> list[wandb_internal_pb2.Record]:
    """Wait until the service behind wandb, a process of its own, has written the last record."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(DecodeError):
            records = wandb_records(file)
            if records and records[-1].WhichOneof("record_type") == "exit":
                return records
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.2)


def wandb_history(run: Path) -> list[dict[str, float]]:
    """Return what all offline sessions of a run logged, oldest first."""
    rows = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in whole_wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return rows


def test_wandb_offline_holds_the_scalars_of_tensorboard_and_of_metrics_jsonl(tmp_path):
    run = tmp_path / "run"
    settings = {"runtime": "serial", "num_envs": 3, "num_steps": 16, "eval_episodes": 2, "eval_updates": 40}
    train(configure(TOY, "CartPole-v1", run, total_steps=1500, wandb="offline", **settings))
    first = len(wandb_history(run))
    resume(run, total_steps=3000)
    history = wandb_history(run)
    assert len(history) > first > 10, "a resumed run logs on"
    assert len({file.name for file in run.glob("wandb/offline-run-*/*.wandb")}) == 1, "under the same id"

    rows = read_metrics(run)
    assert {row["kind"] for row in rows} == {"train", "episode", "evaluation"}
    logged = {}
    for row in history:
        for name, value in row.items():
            if "/" in name:
                logged.setdefault(name, []).append((row["env_steps"], value))
    shown = scalars(run)
    assert logged.keys() == shown.keys()
    for name, points in logged.items():
        np.testing.assert_allclose(points, shown[name], rtol=1e-6, err_msg=name)
    for row in (row for row in rows if row["kind"] == "train"):
        assert (row["env_steps"], row["loss"]) in logged["train/loss"]
    assert all({"frames", "seconds"} <= row.keys() for row in history)


def test_wandb_without_its_extra_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "CartPole-v1", "--wandb", "offline", "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == 'arcadia: error: --wandb needs an extra: pip install "arcadia[wandb]"\n'
    assert not (tmp_path / "run").exists()


def test_wandb_is_off_unless_asked_for(tmp_path):
    train(configure(TOY, "CartPole-v1", tmp_path / "run", runtime="serial", total_steps=600, eval_episodes=0))
    assert not list((tmp_path / "run").glob("wandb*"))
    assert wandb.run is None


def test_every_figure_of_a_run_is_documented(tmp_path):
    settings = {"runtime": "serial", "num_envs": 3, "num_steps": 16, "eval_episodes": 2, "eval_updates": 40}
    train(configure(TOY, "CartPole-v1", tmp_path / "run", total_steps=1500, **settings))
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    names = {name for row in read_metrics(tmp_path / "run") for name in row}
    assert len(names) > 35
    for name in names - {"num_steps_worker_0"}:
        assert f"`{name}`" in text, name
