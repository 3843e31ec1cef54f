"""Checkpoints, run directories, and what a resumed run continues from."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from toy_envs import TOY, configure, make_constant_reward

from arcadia.checkpoint import (
    CHECKPOINTS_KEPT,
    Checkpoint,
    load_checkpoint,
    load_newest,
    newest_checkpoint,
    restore,
    save_checkpoint,
    save_periodic,
    take_checkpoint,
)
from arcadia.config import OptimizerConfig, TrainConfig
from arcadia.errors import UserError
from arcadia.evaluation import evaluate_run
from arcadia.files import write_atomically
from arcadia.metrics import read_metrics
from arcadia.parameters import ENV_STEPS, UPDATES, SharedState, create_shared_state
from arcadia.run_directory import _commit, load_config, lock_run, make_directory, new_run
from arcadia.runtimes import resume, train
from arcadia.validation import config_from_dict

P, W, K = 7, 3, 5  # parameters, workers, statistics


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def filled_state(
    optimizer: str = "amsgrad", *, shared_statistics: bool = False, num_workers: int = W, size: int = P
) -> SharedState:
    """Return a shared state of which every element differs from every other."""
    config = OptimizerConfig(optimizer=optimizer, shared_statistics=shared_statistics)
    state = create_shared_state(
        config, torch.arange(size, dtype=torch.float32) - 0.5, num_workers=num_workers, statistics_size=K
    )
    tensors = [*state.optimizer_state.values(), state.statistics, state.counters]
    for index, tensor in enumerate(tensors, 1):
        tensor.copy_((1000 * index + torch.arange(tensor.numel())).view(tensor.shape))
    return state


def empty_state(like: SharedState) -> SharedState:
    """Return a state of the same shapes, all zero."""
    return SharedState(
        parameters=torch.zeros_like(like.parameters),
        optimizer_state={name: torch.zeros_like(tensor) for name, tensor in like.optimizer_state.items()},
        statistics=torch.zeros_like(like.statistics),
        counters=torch.zeros_like(like.counters),
        heartbeats=torch.zeros_like(like.heartbeats),
        stop=torch.zeros_like(like.stop),
    )


def assert_equal(one: SharedState | Checkpoint, other: SharedState | Checkpoint) -> None:
    for name in ("parameters", "statistics", "counters"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype, name
        assert a.equal(b), name
    assert one.optimizer_state.keys() == other.optimizer_state.keys()
    for name, tensor in one.optimizer_state.items():
        assert tensor.equal(other.optimizer_state[name]), name


# ------------------------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "amsgrad"])
@pytest.mark.parametrize("shared_statistics", [True, False], ids=["shared", "private"])
def test_a_saved_state_comes_back_whole(tmp_path, optimizer, shared_statistics):
    state = filled_state(optimizer, shared_statistics=shared_statistics)
    progress = {"seconds": 12.5, "recent_returns": [1.0, -2.0], "restarts": 1, "best_evaluation": None}
    save_checkpoint(tmp_path / "a.safetensors", take_checkpoint(state, progress))
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.progress == progress
    restored = empty_state(state)
    restore(restored, loaded)
    assert_equal(restored, state)


def test_a_checkpoint_is_a_copy(tmp_path):
    state = filled_state()
    checkpoint = take_checkpoint(state, {})
    before = checkpoint.parameters.clone()
    state.parameters.add_(1)
    state.counters.add_(1)
    assert checkpoint.parameters.equal(before)
    assert not checkpoint.counters.equal(state.counters)


def test_a_checkpoint_is_readable_by_safetensors_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, take_checkpoint(filled_state(), {"seconds": 1.0}))
    with safetensors.safe_open(path, framework="np") as file:
        assert file.get_tensor("parameters").tolist() == [index - 0.5 for index in range(P)]
        assert json.loads(file.metadata()["progress"]) == {"seconds": 1.0}


def test_for_other_workers_sums_are_kept_and_private_statistics_are_dealt_out(tmp_path):
    state = filled_state("adam", num_workers=2)
    for num_workers in (1, 5):
        target = empty_state(filled_state("adam", num_workers=num_workers))
        restore(target, take_checkpoint(state, {}))
        assert target.counters.sum(0).equal(state.counters.sum(0))
        assert target.statistics.sum(0).equal(state.statistics.sum(0))
        for name, tensor in target.optimizer_state.items():
            for worker in range(num_workers):
                assert tensor[worker].equal(state.optimizer_state[name][worker % 2]), (name, worker)


def test_a_new_file_replaces_the_old_one_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    state = filled_state()
    for _ in range(2):
        state.parameters.add_(1)
        save_checkpoint(path, take_checkpoint(state, {}))
    assert load_checkpoint(path).parameters.equal(state.parameters)
    assert os.listdir(tmp_path) == [path.name]


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    """A full disk: the writer's largest file is limited to less than a checkpoint."""
    path = tmp_path / "a.safetensors"
    state = filled_state(size=50_000)
    save_checkpoint(path, take_checkpoint(state, {}))
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, pathlib\n"
        "from arcadia.checkpoint import load_checkpoint, save_checkpoint\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "checkpoint = load_checkpoint(path)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save_checkpoint(path, checkpoint)\n"
        "except OSError:\n    sys.exit(0)\n"
        "sys.exit('it was written')\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == before


def damaged(path: Path, kind: str) -> None:
    """Turn a good checkpoint into a bad one."""
    whole = path.read_bytes()
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - they map the file
        metadata = file.metadata()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated header":
        path.write_bytes(whole[:60])
    elif kind == "truncated":
        path.write_bytes(whole[:-20])
    elif kind == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(4000))
    elif kind == "pickle":
        torch.save(tensors, path)
    elif kind == "a directory":
        path.unlink()
        path.mkdir()
    elif kind == "no parameters":
        del tensors["parameters"]
        safetensors.torch.save_file(tensors, path, metadata)
    elif kind == "no progress":
        safetensors.torch.save_file(tensors, path)
    elif kind == "progress is no object":
        safetensors.torch.save_file(tensors, path, metadata | {"progress": "[1, 2]"})
    elif kind == "parameters of another dtype":
        safetensors.torch.save_file(tensors | {"parameters": torch.zeros(P, dtype=torch.float64)}, path, metadata)
    elif kind == "parameters of two dimensions":
        safetensors.torch.save_file(tensors | {"parameters": torch.zeros(P, 2)}, path, metadata)
    elif kind == "statistics of one dimension":
        safetensors.torch.save_file(tensors | {"statistics": torch.zeros(K, dtype=torch.float64)}, path, metadata)
    elif kind == "three counters":
        safetensors.torch.save_file(tensors | {"counters": torch.zeros(W, 3, dtype=torch.int64)}, path, metadata)
    else:
        raise ValueError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "truncated header",
        "truncated",
        "garbage",
        "pickle",
        "a directory",
        "no parameters",
        "no progress",
        "progress is no object",
        "parameters of another dtype",
        "parameters of two dimensions",
        "statistics of one dimension",
        "three counters",
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, take_checkpoint(filled_state(), {"seconds": 1.0}))
    damaged(path, kind)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(path) in one_line(caught)


def test_no_flipped_bit_and_no_prefix_of_a_file_is_loaded_wrong(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint = take_checkpoint(filled_state(), {"seconds": 1.0, "recent_returns": [1.0, 2.0]})
    save_checkpoint(path, checkpoint)
    whole, harmless = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), 1000, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        try:
            loaded = load_checkpoint(path)
        except UserError:
            continue
        harmless += 1  # in the name of the program that wrote it
        assert_equal(loaded, checkpoint)
        assert loaded.progress == checkpoint.progress
    assert harmless < 50
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert_equal(load_checkpoint(path), checkpoint)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parameters": torch.zeros(P + 4)}, str(P + 4)),
        ({"statistics": torch.zeros(W, K + 2, dtype=torch.float64)}, "config.json"),
        ({"optimizer_state": {"square_avg": torch.zeros(W, P)}}, "optimizer"),
        (
            {
                "optimizer_state": {
                    "exp_avg": torch.zeros(W, P + 1),
                    "exp_avg_sq": torch.zeros(W, P + 1),
                    "step": torch.zeros(W),
                }
            },
            "optimizer",
        ),
    ],
    ids=["parameters", "statistics", "another optimizer", "optimizer of another size"],
)
def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(changes, named):
    state = filled_state("adam")
    checkpoint = dataclasses.replace(take_checkpoint(state, {}), **changes)
    before = take_checkpoint(state, {})
    with pytest.raises(UserError) as caught:
        restore(state, checkpoint)
    assert named in one_line(caught)
    assert_equal(state, before)


# -------------------------------------------------------------------------------------------------------- run directory


def checkpoint_at(env_steps: int) -> Checkpoint:
    counters = torch.tensor([[env_steps - 5, 0, 0, 0], [5, 0, 0, 0]])
    return dataclasses.replace(take_checkpoint(filled_state(num_workers=2), {}), counters=counters)


def test_a_run_keeps_the_checkpoints_of_most_env_steps(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None
    for env_steps in (999, 20_000, 100_000, 3_000_000):
        save_periodic(tmp_path, checkpoint_at(env_steps))
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        assert load_checkpoint(newest).env_steps == env_steps
    kept = sorted(load_checkpoint(path).env_steps for path in (tmp_path / "checkpoints").iterdir())
    assert CHECKPOINTS_KEPT == 3
    assert kept == [20_000, 100_000, 3_000_000]


def test_newest_is_by_env_steps_not_by_time(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_periodic(tmp_path, checkpoint_at(5_000))
    save_periodic(tmp_path, checkpoint_at(700))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest).env_steps == 5_000


def test_a_file_that_was_being_written_is_never_the_newest(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_periodic(tmp_path, checkpoint_at(700))
    (tmp_path / "checkpoints" / ".000000000900.safetensors.tmp").write_bytes(b"torn")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert int(newest.stem) == 700


def test_the_newest_readable_checkpoint_is_used(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert load_newest(tmp_path) is None
    for env_steps in (100, 200, 300):
        save_periodic(tmp_path, checkpoint_at(env_steps))
    paths = sorted((tmp_path / "checkpoints").iterdir())
    for torn, env_steps in ((2, 200), (1, 100)):
        paths[torn].write_bytes(b"torn")
        with pytest.warns(UserWarning, match="using the checkpoint before it"):
            found = load_newest(tmp_path)
        assert found is not None
        assert found[1].env_steps == env_steps
        assert found[0] == paths[torn - 1]
    paths[0].write_bytes(b"torn")
    with pytest.raises(UserError, match="none before it"), pytest.warns(UserWarning, match="before it"):
        load_newest(tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    """The second is refused with the owner named; a lock dies with its owner, however that ends."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom arcadia.run_directory import lock_run\n"
        "with lock_run(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"being trained by process {owner.pid}"), lock_run(tmp_path):
            pass
        owner.kill()
        owner.wait()
    assert (tmp_path / "lock").read_text() == str(owner.pid), "killed, it could not tidy up"
    with lock_run(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert (tmp_path / "lock").read_text() == ""


def test_a_new_owner_removes_what_a_killed_trainer_was_writing_and_nothing_else(tmp_path):
    for folder in ("checkpoints", "videos", "evaluations"):
        (tmp_path / folder).mkdir()
    own = [".config.json.tmp", "checkpoints/.000000000900.safetensors.tmp", "videos/.training-000000000900.tmp.mp4"]
    foreign = [".notes.tmp", "videos/.sampled-newest-000000000900-game.tmp.mp4", "evaluations/.greedy.json.tmp"]
    for name in own + foreign:
        (tmp_path / name).write_bytes(b"torn")
    with lock_run(tmp_path):
        pass
    assert [name for name in own + foreign if (tmp_path / name).exists()] == foreign


def toy(run: Path, **settings: object) -> TrainConfig:
    defaults = {
        "runtime": "serial",
        "num_workers": 1,
        "num_envs": 3,
        "num_steps": 7,
        "hidden_sizes": (5,),
        "num_epochs": 1,
        "normalization_steps": 10**6,
        "total_steps": 200,
        "eval_episodes": 0,
    }
    return configure(TOY, "CartPole-v1", run, **(defaults | settings))


def test_config_json_gives_back_every_setting_and_names_versions(tmp_path):
    config = toy(tmp_path / "run", clip_range=None, total_minutes=2.5, stop_score=-3.0, dtype="float32")
    with new_run(tmp_path / "run", config):
        assert (tmp_path / "run" / "lock").read_text() == str(os.getpid())
    assert load_config(tmp_path / "run") == config
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["versions"]["torch"] == str(torch.__version__)
    assert {"arcadia", "python"} <= description["versions"].keys()
    assert "commit" in description
    assert description["config"]["runtime"]["seed"] == 1


def test_a_directory_that_holds_a_run_is_not_overwritten(tmp_path):
    with new_run(tmp_path / "run", toy(tmp_path / "run")):
        pass
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match="already holds a run: `arcadia resume"):
        train(toy(tmp_path / "run", seed=9))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["file/run", "file", "x" * 300])
def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(UserError) as caught:
        train(toy(tmp_path / name))
    assert "--run-dir" in one_line(caught)
    assert name in one_line(caught)
    assert (tmp_path / "file").read_text() == "a regular file"


def edit(change: str) -> str:
    """Return config.json after one change, as its text."""
    config = toy(Path("run"), dtype="float32").to_dict()
    if change == "unknown field":
        config["loss"]["gama"] = 0.9
    elif change == "missing section":
        del config["optimizer"]
    elif change == "mistyped number":
        config["optimizer"]["lr"] = "0.1"
    elif change == "mistyped truth":
        config["env"]["num_envs"] = True
    elif change == "mistyped list":
        config["model"]["hidden_sizes"] = [5, 2.5]
    elif change == "unknown choice":
        config["model"]["core"] = "transformer"
    elif change == "out of range":
        config["runtime"]["num_steps"] = [0]
    elif change == "nan":
        config["loss"]["gamma"] = float("nan")
    elif change == "a section is a list":
        config["env"] = []
    elif change == "not an object":
        return "[]"
    elif change == "no config":
        return "{}"
    elif change == "torn":
        return json.dumps({"config": config})[:-40]
    elif change == "not text":
        return "\udcff\udcfe"
    return json.dumps({"config": config})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("unknown field", "gama"),
        ("missing section", "optimizer"),
        ("mistyped number", "optimizer.lr"),
        ("mistyped truth", "num_envs"),
        ("mistyped list", "hidden_sizes"),
        ("unknown choice", "transformer"),
        ("out of range", "num_steps must be >= 1"),
        ("nan", "gamma"),
        ("a section is a list", "env"),
        ("not an object", "config"),
        ("no config", "config"),
        ("torn", "config.json"),
        ("not text", "config.json"),
    ],
)
def test_a_damaged_config_is_refused_in_one_line_that_names_the_field(tmp_path, change, named):
    (tmp_path / "config.json").write_text(edit(change), errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path)
    assert named in one_line(caught)
    assert str(tmp_path) in one_line(caught)


def test_a_run_that_is_older_than_a_setting_has_its_default(tmp_path):
    config = toy(Path("run"), dtype="float32").to_dict()
    del config["runtime"]["quiet"], config["loss"]["entropy_schedule"]
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    assert load_config(tmp_path) == toy(Path("run"), dtype="float32")


@pytest.mark.parametrize(("section", "field", "value"), [("model", "dtype", "auto"), ("runtime", "num_workers", None)])
def test_a_config_written_by_hand_may_leave_to_the_machine_what_train_does(tmp_path, section, field, value):
    """config.json normally holds resolved values; one without them must work or be refused, never break."""
    train(toy(tmp_path / "run"))
    path = tmp_path / "run" / "config.json"
    description = json.loads(path.read_text())
    description["config"][section][field] = value
    path.write_text(json.dumps(description))
    try:
        evaluate_run(tmp_path / "run", episodes=1)
        resume(tmp_path / "run", total_steps=300)
    except UserError as error:
        assert field in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("env", ["evil_module:Foo-v0", "evil_module:CartPole-v1"])
@pytest.mark.parametrize("use", [resume, lambda run: evaluate_run(run, episodes=1)], ids=["resume", "eval"])
def test_a_config_never_imports_the_module_that_an_environment_names(tmp_path, monkeypatch, env, use):
    train(toy(tmp_path / "run", total_steps=21))
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "run" / "config.json"
    description = json.loads(path.read_text())
    description["config"]["env"]["env"] = env
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="unknown environment 'evil_module:"):
        use(tmp_path / "run")
    assert not (tmp_path / "imported").exists()
    assert "evil_module" not in sys.modules


# --------------------------------------------------------------------------------------------------------------- resume


def newest(run: Path) -> Checkpoint:
    path = newest_checkpoint(run)
    assert path is not None
    return load_checkpoint(path)


def training_rows(run: Path) -> list[dict[str, object]]:
    return [row for row in read_metrics(run) if row["kind"] == "train"]


@pytest.mark.parametrize("shared_statistics", [True, False], ids=["shared", "private"])
def test_a_resumed_run_continues_everything(tmp_path, shared_statistics):
    run = tmp_path / "run"
    train(toy(run, schedule="linear", num_workers=2, shared_statistics=shared_statistics))
    first = newest(run)
    before = training_rows(run)
    result = resume(run, total_steps=600)
    second = newest(run)

    assert result.reason == "total_steps"
    assert 200 <= first.env_steps < 600 <= second.env_steps == result.env_steps
    assert (second.counters >= first.counters).all()
    assert (second.counters.sum(0) > first.counters.sum(0)).all()
    # Statistics of observations and the optimizer's step count follow the counters exactly, across the border.
    for checkpoint in (first, second):
        assert float(checkpoint.statistics[:, 0].sum()) == checkpoint.env_steps
        updates = checkpoint.counters[:, UPDATES]
        expected = updates.sum()[None] if shared_statistics else updates
        assert checkpoint.optimizer_state["step"].tolist() == expected.tolist()
    assert second.progress["seconds"] > first.progress["seconds"]
    assert second.progress["restarts"] == first.progress["restarts"] + 1
    after = training_rows(run)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert load_config(run).runtime.total_steps == 600


def test_a_resumed_run_that_has_nothing_to_do_changes_no_parameter(tmp_path):
    run = tmp_path / "run"
    train(toy(run))
    first = newest(run)
    assert resume(run).reason == "total_steps"
    assert_equal(newest(run), first)


def test_rows_after_the_checkpoint_and_a_torn_line_are_cut_on_resume(tmp_path):
    run = tmp_path / "run"
    train(toy(run))
    steps = newest(run).env_steps
    rows = read_metrics(run)
    later = [rows[-1] | {"env_steps": steps + more, "loss": 77.0} for more in (1, 50, 5000)]
    with open(run / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in later) + '{"kind": "train", "env_steps": 90')
    resume(run, total_steps=500)
    after = read_metrics(run)
    assert len(after) == len((run / "metrics.jsonl").read_text().splitlines()), "no torn line is left"
    assert all(row.get("loss") != 77.0 for row in after)
    env_steps = [row["env_steps"] for row in after if row["kind"] == "train"]
    assert env_steps == sorted(set(env_steps)), "they rise, and none comes twice"
    assert env_steps[-1] == newest(run).env_steps >= 500


def test_the_learning_rate_schedule_continues_where_it_was(tmp_path):
    """One more update at the schedule's very end, with a rate so large that its size shows in the parameters."""
    run = tmp_path / "run"
    train(toy(run, schedule="linear", total_steps=400))
    first = newest(run)
    path = run / "config.json"
    description = json.loads(path.read_text())
    description["config"]["runtime"]["total_steps"] = first.env_steps + 1
    description["config"]["optimizer"]["lr"] = 1e6
    path.write_text(json.dumps(description))
    resume(run)
    second = newest(run)
    assert second.counters[0, UPDATES] == first.counters[0, UPDATES] + 1
    # The rate there is 1e6 / (env_steps + 1). A schedule that began again would give 1e6, 400 times as much.
    rate = 1e6 / (first.env_steps + 1)
    change = float((second.parameters - first.parameters).abs().max())
    assert 0.01 * rate < change < 10 * rate, "Adam's step is about the rate"


def test_a_run_resumes_with_another_number_of_workers(tmp_path):
    run = tmp_path / "run"
    train(toy(run, num_workers=2, shared_statistics=False))
    first = newest(run)
    resume(run, num_workers=3, total_steps=400)
    second = newest(run)
    assert second.counters.shape == (3, 4)
    assert (second.counters[:, UPDATES] > 0).all()
    assert second.env_steps >= 400 > first.env_steps
    assert float(second.statistics[:, 0].sum()) == second.env_steps
    resume(run, num_workers=1, total_steps=500)
    third = newest(run)
    assert third.counters.shape == (1, 4)
    assert (third.counters.sum(0) >= second.counters.sum(0)).all()
    assert third.env_steps >= 500


def test_a_resumed_run_plays_other_games(tmp_path):
    """The same random numbers again would show a worker the same games again."""
    config = toy(tmp_path / "run", total_steps=21, lr=1e-12)
    train(config)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for run in ("run", "copy"):
        resume(tmp_path / run, total_steps=42)
    first, second = newest(tmp_path / "run"), newest(tmp_path / "copy")
    assert_equal(first, second)
    once = config.runtime.num_steps[0] * config.envs_per_worker
    assert first.env_steps == 2 * once
    train(toy(tmp_path / "single", total_steps=21, lr=1e-12))
    single = newest(tmp_path / "single").statistics
    assert not first.statistics.allclose(2 * single), "the same observations twice"


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "arcadia", "train", "CartPole-v1", "--runtime", "serial", "--run-dir", str(run)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and (rows := read_metrics(run)) and rows[-1]["env_steps"] > 2_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert newest_checkpoint(run) is None
    played = read_metrics(run)[-1]["env_steps"]
    result = resume(run, total_steps=512)
    assert result.env_steps == newest(run).env_steps
    assert 512 <= result.env_steps < played
    env_steps = [row["env_steps"] for row in training_rows(run)]
    assert env_steps == sorted(set(env_steps)), "rows of the lost start are cut"
    assert env_steps[-1] == result.env_steps


def test_resume_with_another_environment_factory_keeps_learning(tmp_path):
    run = tmp_path / "run"
    train(toy(run), make_env=make_constant_reward)
    result = resume(run, total_steps=400, make_env=make_constant_reward)
    assert result.env_steps >= 400
    assert result.mean_return == 15.0


@pytest.mark.parametrize("damage", ["truncated", "other shape"])
def test_a_resume_that_is_refused_loses_nothing(tmp_path, damage):
    run = tmp_path / "run"
    train(toy(run))
    path = newest_checkpoint(run)
    assert path is not None
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        train(toy(tmp_path / "other", hidden_sizes=(6,)))
        other = newest_checkpoint(tmp_path / "other")
        assert other is not None
        path.write_bytes(other.read_bytes())
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError):
        resume(run, total_steps=9_000)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_config_round_trips_through_json():
    config = toy(Path("run"))
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_counters_of_a_run_count_valid_decisions(tmp_path):
    """ConstantReward ends every 15 decisions; the 16th row is a reset and counts nowhere."""
    train(toy(tmp_path / "run", num_steps=16, total_steps=3 * 15 * 4), make_env=make_constant_reward)
    checkpoint = newest(tmp_path / "run")
    assert checkpoint.counters[0, ENV_STEPS] == 3 * 15 * 4
    assert checkpoint.counters[0].tolist() == [180, 180, 4, 12]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    warning = r"cannot be locked \(No locks available\): start no second training of it"
    with pytest.warns(UserWarning, match=warning), lock_run(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_file_system_that_syncs_no_folder_is_written_to(tmp_path, monkeypatch):
    fsync = os.fsync

    def sync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", sync_files)
    number = errno.EINVAL
    write_atomically(tmp_path / "file", [b"whole"])
    assert (tmp_path / "file").read_bytes() == b"whole"
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "file", [b"whole"])


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")
    config = configure(TOY, "CartPole-v1", tmp_path)
    name = "runs/CartPole-v1-toy-1-20260102-030405"
    assert [str(make_directory(config)) for _ in range(3)] == [name, f"{name}-2", f"{name}-3"]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for make in (lambda: Path("runs").touch(), lambda: Path("runs").symlink_to("nowhere")):
        make()
        assert str(make_directory(config)) == name, "new_run says what is wrong with it"
        Path("runs").unlink()


def test_a_package_in_somebody_elses_repository_has_no_commit(tmp_path, monkeypatch):
    assert _commit() is not None
    package = tmp_path / "site-packages" / "run_directory.py"
    package.parent.mkdir()
    package.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr("arcadia.run_directory.__file__", str(package))
    assert _commit() is None
