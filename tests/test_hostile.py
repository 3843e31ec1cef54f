"""Files, settings and names that are damaged or made to do harm: refused in one line, nothing executed."""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toy_envs import TOY, configure

from arcadia.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from arcadia.cli import main
from arcadia.envs.factory import find
from arcadia.errors import UserError
from arcadia.metrics import MetricsWriter, RunningFigures, read_metrics
from arcadia.report.runs import read_run
from arcadia.run_directory import load_config
from arcadia.runtimes import train
from arcadia.validation import config_from_dict

COMMANDS = (("eval",), ("resume",), ("play", "--video", "x.gif"), ("report", "--output", "page.html"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with everything in it."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    small = {"num_envs": 2, "num_steps": 5, "hidden_sizes": (4,), "total_steps": 600, "eval_updates": 20}
    train(configure(TOY, "CartPole-v1", run, **small, runtime="serial", num_workers=1, eval_episodes=1, quiet=True))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(run: Path, capsys: pytest.CaptureFixture[str], *commands: tuple[str, ...]) -> str:
    """Every command refuses the run with code 2 and one line; return the last."""
    error = ""
    for command in commands or COMMANDS:
        assert main([command[0], str(run), *command[1:]]) == 2, command
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if not line.startswith("arcadia: warning: ")]
        assert len(lines) == 1, error
        assert lines[0].startswith("arcadia: error: ")
        assert len(lines[0]) < 500
    return error


def every_checkpoint(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("[0-9]*.safetensors"))


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def hostile(kind: str, mark: Path) -> bytes:
    buffer = io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(Bomb(mark))
    if kind == "torch.save":
        torch.save(Bomb(mark), buffer)
    elif kind == "zip bomb":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", bytes(10**8))
    elif kind == "huge header":
        return struct.pack("<Q", 2**62) + b"{}"
    elif kind == "large header":
        return struct.pack("<Q", 90_000_000) + b"{" * 10_000
    elif kind == "shape of petabytes":
        header = json.dumps({"parameters": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}).encode()
        return struct.pack("<Q", len(header)) + header + bytes(64)
    elif kind == "overlapping tensors":
        entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
        header = json.dumps({f"tensor {n}": entry for n in range(10_000)}).encode()
        return struct.pack("<Q", len(header)) + header + bytes(64)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "torch.save", "zip bomb", "huge header", "large header"),
        *("shape of petabytes", "overlapping tensors", "empty"),
    ],
)
def test_a_file_in_place_of_checkpoints_is_refused_and_does_nothing(run, tmp_path, capsys, kind):
    mark = tmp_path / "mark"
    for path in [*every_checkpoint(run), run / "best" / "checkpoint.safetensors"]:
        path.write_bytes(hostile(kind, mark))
    tracemalloc.start()
    started = time.monotonic()
    refused(run, capsys, ("eval",), ("eval", "--best"), ("resume",))
    assert time.monotonic() - started < 20
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert not mark.exists()


def test_a_file_of_a_terabyte_is_not_read(run, capsys):
    for path in every_checkpoint(run):
        with open(path, "r+b") as file:
            file.truncate(2**40)  # a hole, which takes no room on disk
    assert "more than any checkpoint has" in refused(run, capsys, ("eval",), ("resume",))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints", "best", "tensorboard", "lock"])
def test_links_out_of_a_run_are_refused(run, tmp_path, capsys, name):
    outside = tmp_path / "outside"
    entry = run / name
    if entry.exists():
        entry.rename(outside)
    else:
        outside.touch()
    entry.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(outside.iterdir())
    assert f"{entry} is a link that leads out of the run" in refused(run, capsys)
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.iterdir()))


def test_a_link_to_nothing_is_not_written_through(run, tmp_path, capsys):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("../planted")
    refused(run, capsys)
    assert not (tmp_path / "planted").exists()


def test_links_inside_of_a_run_and_of_other_programs_work(run, tmp_path, capsys):
    """Weights & Biases links its log into the user's cache."""
    (run / "best" / "newest").symlink_to("../checkpoints")
    (run / "wandb").mkdir()
    (run / "wandb" / "debug.log").symlink_to(tmp_path)
    assert main(["eval", str(run), "--episodes", "2"]) == 0


def test_what_is_no_file_is_refused_instead_of_waited_for(run, capsys):
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    assert "is neither a file nor a folder" in refused(run, capsys)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000, "nested too deeply"),
        (" " * 2**21, "larger than"),
        ('{"config": ' * 50_000, "nested too deeply"),
        ("\ud800", "cannot be read"),
        ("null", "must hold an object"),
    ],
)
def test_a_config_made_to_exhaust_the_reader_is_refused(run, capsys, text, named):
    (run / "config.json").write_text(text, errors="surrogatepass")
    assert named in refused(run, capsys)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("env", "env", "os:system-v0"),
        ("env", "env", "toy_envs:Crash-v0"),
        ("env", "env", "../../etc/passwd"),
        ("env", "env", "pong\x1b[2J"),
        ("env", "num_envs", 10**9),
        ("env", "frame_size", [10**6, 10**6]),
        ("model", "hidden_sizes", [10**9, 10**9]),
        ("model", "hidden_sizes", [4096] * 1000),
        ("model", "core_size", 10**9),
        ("runtime", "num_steps", [10**9]),
        ("runtime", "num_steps", [100_000]),
        ("env", "env", "a\0b"),
        ("runtime", "num_workers", 10**9),
        ("runtime", "total_steps", 10**4000),
        ("runtime", "stop_score", 10**400),
        ("optimizer", "lr", 10**400),
        ("loss", "gamma", float("nan")),
        ("runtime", "seed", 2**70),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_made_to_do_harm_are_refused_before_anything_is_allocated(run, capsys, section, field, value):
    description = json.loads((run / "config.json").read_text())
    description["config"][section][field] = value
    if value == [100_000]:
        description["config"]["env"]["num_envs"] = 4096
    (run / "config.json").write_text(json.dumps(description))
    assert "\x1b" not in refused(run, capsys, ("resume",))


def test_a_recipe_cannot_write_to_the_terminal(run, capsys):
    description = json.loads((run / "config.json").read_text())
    description["config"]["recipe"] = "\x1b]0;title\x07"
    (run / "config.json").write_text(json.dumps(description))
    assert "\x1b" not in refused(run, capsys)


@pytest.mark.parametrize(
    "progress",
    [
        *({"seconds": "soon"}, {"seconds": -(10.0**300)}, {"restarts": -1}, {"restarts": 10**30}),
        *({"recent_returns": "abc"}, {"recent_returns": [None]}, {"recent_returns": {"a": 1}}),
        *({"episode_record": [1, 2, 3]}, {"episode_record": ["a", "b"]}, {"skipped_updates": None}, ["a list"]),
    ],
    ids=str,
)
def test_a_checkpoint_with_a_valid_checksum_is_not_trusted_either(run, capsys, progress):
    newest = load_checkpoint(every_checkpoint(run)[-1])
    for path in every_checkpoint(run):
        save_checkpoint(path, Checkpoint(**(fields(newest) | {"progress": progress})))
    assert "is not laid out as a checkpoint" in refused(run, capsys, ("resume",), ("eval",))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("parameters", torch.zeros(1, 4)),
        ("parameters", torch.zeros(4, dtype=torch.float16)),
        ("statistics", torch.zeros(4, dtype=torch.float64)),
        ("counters", torch.zeros(2, 5, dtype=torch.int64)),
        ("counters", torch.zeros(2, 4)),
        ("optimizer.square", torch.zeros(1, 10**6)),
        ("optimizer.square", torch.zeros(0, 4)),
        ("optimizer.square", torch.zeros(())),
        ("optimizer.square", torch.zeros(1, 4, dtype=torch.uint8)),
        ("picture", torch.zeros(1, 4)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {tuple(value.shape)}",
)
def test_a_checkpoint_is_refused_by_its_header(tmp_path, name, tensor):
    """Nothing of the tensors is read: the checksum, which is wrong here too, would be the complaint."""
    good = {
        "parameters": torch.zeros(4),
        "statistics": torch.zeros(2, 3, dtype=torch.float64),
        "counters": torch.zeros(2, 4, dtype=torch.int64),
        "optimizer.step": torch.zeros(1),
    }
    path = tmp_path / "checkpoint.safetensors"
    metadata = {"progress": "{}", "sha256": "0"}
    safetensors.torch.save_file(good, path, metadata)
    with pytest.raises(UserError, match="its checksum differs"):
        load_checkpoint(path)
    safetensors.torch.save_file(good | {name: tensor}, path, metadata)
    with pytest.raises(
        UserError, match=r"\(ValueError: its (tensors are|\S+ is) not (those|the optimizer state) of one\)"
    ):
        load_checkpoint(path)


def test_a_checkpoint_with_a_wild_score_is_resumed(run, capsys):
    """A glitch of physics may score 1e17: that is no reason to lose the run."""
    newest = load_checkpoint(every_checkpoint(run)[-1])
    progress = newest.progress | {"recent_returns": [1e17, -1e250], "episode_record": [1e250, 2.0]}
    save_checkpoint(every_checkpoint(run)[-1], Checkpoint(**(fields(newest) | {"progress": progress})))
    assert main(["resume", str(run), "--total-steps", "620"]) == 0


def test_a_checkpoint_cannot_write_to_the_terminal(run, capsys):
    header = json.dumps({"parameters": {"dtype": "\x1b[2J\n" * 1000, "shape": [1], "data_offsets": [0, 4]}}).encode()
    for path in every_checkpoint(run):
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert main(["resume", str(run)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_versions_cannot_write_to_the_terminal(run, capsys):
    description = json.loads((run / "config.json").read_text())
    description["versions"]["torch"] = "1.0\x1b[2J\n"
    description["config"]["runtime"]["quiet"] = False
    (run / "config.json").write_text(json.dumps(description))
    assert main(["resume", str(run), "--total-steps", "620"]) == 0
    out = capsys.readouterr().out
    assert "torch 1.0\\x1b[2J\\n -> " in out
    assert "\x1b" not in out


def fields(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}


def test_negative_counters_are_refused(run, capsys):
    newest = load_checkpoint(every_checkpoint(run)[-1])
    for path in every_checkpoint(run):
        save_checkpoint(path, Checkpoint(**(fields(newest) | {"counters": -newest.counters})))
    refused(run, capsys, ("resume",), ("eval",))


# ------------------------------------------------------------------------------------------------------------ fuzzing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([0, -1, 1e308, 2**63, 10**400])


def fuzz(examples: int) -> Any:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def only_user_errors(function: Any, *arguments: Any) -> Any:
    """Call it; a UserError of one line is an answer too."""
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 500
    return None


@fuzz(3000)
@given(section=st.sampled_from(["env", "model", "loss", "optimizer", "runtime"]), data=st.data(), value=JSON | NUMBERS)
def test_any_setting_is_taken_or_refused(section, data, value):
    config = copy.deepcopy(configure(TOY, "CartPole-v1", Path("run")).to_dict())
    name = data.draw(st.sampled_from(sorted(config[section])) | st.text(max_size=8))
    config[section][name] = value
    changed = only_user_errors(config_from_dict, config)
    assert changed is None or json.loads(json.dumps(changed.to_dict())), "what is taken can be written"


@fuzz(500)
@given(JSON)
def test_any_json_is_refused_as_a_configuration(value):
    assert only_user_errors(config_from_dict, value) is None


@fuzz(500)
@given(
    st.text(max_size=30)
    | st.sampled_from(["Pong", "pong", "ALE/", "-v4", "NoFrameskip", "CartPole"]).flatmap(
        lambda part: st.builds(lambda a, b: a + part + b, st.text(max_size=5), st.text(max_size=5))
    )
)
def test_any_id_is_found_or_refused(name):
    only_user_errors(find, name)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of a file with some cut out, changed, doubled or put in."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(result)))
        stop = min(len(result), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["cut", "random", "end", "double", "flip"]))
        if kind == "cut":
            del result[start:stop]
        elif kind == "random":
            result[start:stop] = draw(st.binary(max_size=40))
        elif kind == "end":
            del result[start:]
        elif kind == "double":
            result[start:start] = result[start:stop]
        elif start < len(result):
            result[start] ^= 1 << draw(st.integers(0, 7))
    return bytes(result)


@fuzz(2000)
@given(data=st.data())
def test_a_damaged_config_is_read_or_refused(trained, tmp_path_factory, data):
    text = (trained / "config.json").read_bytes()
    folder = tmp_path_factory.getbasetemp() / "fuzz-config"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data.draw(damaged(text) | st.binary(max_size=100)))
    only_user_errors(load_config, folder)


@fuzz(2000)
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_as_it_was(trained, tmp_path_factory, data):
    path = every_checkpoint(trained)[-1]
    whole = load_checkpoint(path)
    copied = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    copied.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=200)))
    loaded = only_user_errors(load_checkpoint, copied)
    if loaded is not None:
        assert loaded.parameters.equal(whole.parameters)
        assert loaded.progress == whole.progress


PROGRESS = ("seconds", "restarts", "skipped_updates", "recent_returns", "episode_record", "best_evaluation")


@fuzz(1000)
@example(progress={"recent_returns": [2.0**53]})
@example(progress={"recent_returns": [1.7e308, 1.7e308]})
@given(progress=JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(PROGRESS, JSON | NUMBERS)))
def test_any_progress_is_usable_or_refused(trained, tmp_path_factory, progress):
    path = tmp_path_factory.getbasetemp() / "progress.safetensors"
    whole = load_checkpoint(every_checkpoint(trained)[-1])
    with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate cannot be written
        save_checkpoint(path, Checkpoint(**(fields(whole) | {"progress": progress})))
        loaded = only_user_errors(load_checkpoint, path)
        if loaded is not None:
            figures = RunningFigures(loaded.progress.get("recent_returns", ()))
            assert figures.mean_return is None or math.isfinite(figures.mean_return)


@fuzz(1000)
@given(data=st.data())
def test_damaged_metrics_are_read_as_far_as_they_go(trained, tmp_path_factory, data):
    text = (trained / "metrics.jsonl").read_bytes()
    folder = tmp_path_factory.getbasetemp() / "fuzz-metrics"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((trained / "config.json").read_bytes())
    (folder / "metrics.jsonl").write_bytes(data.draw(damaged(text) | st.binary(max_size=100)))
    rows = read_metrics(folder)
    assert all(isinstance(row["env_steps"], int | float) for row in rows)
    only_user_errors(read_run, folder)


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "skipped", "skipped_updates": float("nan")},
        {"kind": "train", "episodes": 10**400},
        {"kind": "train", "episodes": 1, "mean_return_100": float("inf")},
        {"kind": "evaluation", "mean": 1.0},
        {"kind": "evaluation", "mean": 1.0, "mode": "\x1b[2J"},
    ],
    ids=str,
)
def test_a_report_leaves_out_rows_that_are_none(run, tmp_path, row):
    counters = {"env_steps": 1, "frames": 1, "updates": 1, "seconds": 1.0}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(counters | row) + "\n")
    assert main(["report", str(run), "--output", str(tmp_path / "page")]) == 0


def test_metrics_of_absurd_size_are_not_read(run, capsys):
    os.truncate(run / "metrics.jsonl", 2**40)
    assert "metrics.jsonl cannot be read (1,099,511,627,776 bytes" in refused(run, capsys, ("report",))
    assert "metrics.jsonl cannot be continued (1,099,511,627,776 bytes" in refused(run, capsys, ("resume",))


def test_no_more_rows_are_kept_than_memory_allows(run, capsys, monkeypatch):
    monkeypatch.setattr("arcadia.metrics.MAX_ROWS_BYTES", 1000)
    assert "metrics.jsonl cannot be read (more than 1,000 bytes of rows)" in refused(run, capsys, ("report",))


@pytest.mark.parametrize("value", [10**400, float("nan"), None, "1", [1]])
def test_a_report_refuses_an_evaluation_without_its_figures(run, capsys, value):
    (run / "evaluations").mkdir()
    figures = dict.fromkeys(("mean", "median", "min", "max", "env_steps", "episodes"), 1.0)
    text = json.dumps(figures | {"ci95": None, "mode": "greedy", "mean": value})
    (run / "evaluations" / "greedy.json").write_text(text)
    refused(run, capsys, ("report",))


def test_a_resumed_run_goes_on_with_damaged_metrics(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"kind": 1}', "[]", *lines[3:]]))
    warnings: list[str] = []
    writer = MetricsWriter(run, configure(TOY, "CartPole-v1", run), (10**6, 1e6), warnings.append)
    writer.write({"kind": "train", "env_steps": 1, "frames": 1, "updates": 1, "seconds": 1.0})
    writer.close()
    assert path.read_text().splitlines()[:-1] == lines, "only what is no row is dropped"
    assert len(read_metrics(run)) == len(lines) + 1
    assert not warnings


@fuzz(200)
@given(
    st.lists(
        st.sampled_from(["pong", "--lr", "--num-envs", "--num-steps", "--env", "--recipe", "nan", "-1", "1e999", "x"])
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
        max_size=4,
    )
)
def test_any_command_line_that_is_wrong_gets_a_short_message(tmp_path_factory, arguments):
    errors, out = io.StringIO(), io.StringIO()
    # eval of a directory that does not exist never starts anything
    for command in ("eval", "resume", "report", "recipes"):
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out):
            try:
                code = main([command, *arguments])
            except SystemExit as ended:
                code = int(ended.code or 0)
        assert code in (0, 2), errors.getvalue()
    assert "Traceback" not in errors.getvalue()


def test_safetensors_is_what_this_file_damages(trained):
    """The tests above would pass without reading anything if the layout changed."""
    tensors = safetensors.torch.load_file(every_checkpoint(trained)[-1])
    assert {"parameters", "statistics", "counters"} <= tensors.keys()
