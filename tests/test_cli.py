"""The command line: what it accepts, prints and returns, and how it refuses."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from arcadia import __version__
from arcadia.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from arcadia.cli import main
from arcadia.cli.train import parse_config
from arcadia.config import EnvConfig, LossConfig, ModelConfig, OptimizerConfig, RuntimeConfig
from arcadia.metrics import read_metrics
from arcadia.recipes import RECIPES
from arcadia.run_directory import load_config
from arcadia.validation import with_settings

TINY = ["--runtime", "serial", "--eval-episodes", "0", "--num-envs", "3", "--num-steps", "5"]
TINY += ["--num-minibatches", "1", "--total-steps", "60"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def arcadia(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run `arcadia` in this process, in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # the argument parser's way
            code = end.code
        assert isinstance(code, int), code
        return Ended(code, *capsys.readouterr())

    return run


def subprocess_arcadia(*arguments: object, **options: object) -> Ended:
    """Run `arcadia` as users do."""
    command = [sys.executable, "-m", "arcadia", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)
    return Ended(result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run. Not to be changed: see `own_run`."""
    run = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "CartPole-v1", *TINY, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "own"))


def assert_one_line(ended: Ended, *named: object) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("arcadia: error: ")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    for word in named:
        assert str(word) in ended.err


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["xyzzy"], ["unknown environment 'xyzzy'", "try pong", "give make_env, from Python"]),
        (["pongg"], ["'pongg'", "closest: pong"]),
        (["CartPol-v1"], ["'CartPol-v1'", "CartPole-v1"]),
        (["BreakoutNoFramskip-v4"], ["'BreakoutNoFramskip-v4'", "closest: "]),
        (["CartPole-v99"], ["'CartPole-v99'", "CartPole-v1"]),
        (["evil_module:Foo-v0"], ["evil_module:Foo-v0"]),
        ([], ["no environment", "CartPole-v1"]),
        (["--env", ""], ["no environment", "CartPole-v1"]),
        (["pong", "--recipe", "nosuch"], ["'nosuch'", *RECIPES]),
        (["pong", "--recipe=nosuch"], ["'nosuch'", *RECIPES]),
        (["pong", "--num-steps", "0"], ["num_steps must be >= 1", "got 0"]),
        (["pong", "--num-envs", "-2"], ["num_envs must be >= 1", "got -2"]),
        (["pong", "--num-workers", "0"], ["num_workers must be >= 1", "got 0"]),
        (["pong", "--total-steps", "0"], ["total_steps must be >= 1", "got 0"]),
        (["pong", "--total-minutes", "0"], ["total_minutes must be > 0", "got 0"]),
        (["pong", "--stop-score", "nan"], ["stop_score", "got nan"]),
        (["pong", "--seed", "-1"], ["seed must be >= 0", "got -1"]),
        (["pong", "--lr", "-1"], ["lr must be > 0", "got -1"]),
        (["pong", "--lr", "0"], ["lr must be > 0", "got 0"]),
        (["pong", "--lr", "nan"], ["lr must be > 0", "got nan"]),
        (["CartPole-v1", *TINY, "--lr", "inf"], ["lr", "got inf"]),
        (["CartPole-v1", *TINY, "--beta1", "1"], ["beta1", "got 1"]),
        (["CartPole-v1", *TINY, "--beta2", "1.0"], ["beta2", "got 1"]),
        (["pong", "--gamma", "1.5"], ["gamma must be >= 0 and <= 1", "got 1.5"]),
        (["CartPole-v1", *TINY, "--entropy-coefficient", "inf"], ["entropy_coefficient", "got inf"]),
        (["pong", "--max-grad-norm", "0"], ["max_grad_norm must be > 0", "got 0"]),
        (["pong", "--hidden-sizes", "5", "0"], ["hidden_sizes must be >= 1", "got 0"]),
        (["pong", "--recipe", "a3c-ff", "--num-epochs", "3"], ["num_epochs 3", "--clip-range 0.2"]),
        (["CartPole-v1", "--torso", "a3c"], ["a3c", "--torso mlp"]),
        (["pong", "--frame-size", "10", "10"], ["(4, 10, 10)", "too small", "--torso"]),
        (["pong", "--crop-rows", "210", "250"], ["crop_rows", "below 210", "got 210 250"]),
        (["Pendulum-v1", *TINY, "--initial-std", "0"], ["initial_std must be > 0", "got 0"]),
        (["Pendulum-v1", *TINY, "--reward-floor", "nan"], ["reward_floor", "got nan"]),
    ],
    ids=lambda value: " ".join(word for word in value if word not in TINY) or "nothing",
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(arcadia, tmp_path, arguments, named):
    run = tmp_path / "run"
    assert_one_line(arcadia("train", *arguments, "--run-dir", run), *named)
    assert not run.exists(), "nothing is written"


@pytest.mark.parametrize("env", ["pong", "CartPole-v1"])
def test_total_envs_are_those_of_all_workers_whatever_the_recipe(env):
    by_command = parse_config([env, "--total-envs", "64", "--num-workers", "4"], prog="arcadia train")
    recipe = RECIPES[by_command.recipe].config
    assert recipe.env.num_envs is not None
    assert by_command == with_settings(recipe, {"env": env, "total_envs": 64, "num_workers": 4})
    assert by_command.envs_per_worker == 16
    assert parse_config([env, "--total_envs=64", "--num-workers", "4"], prog="arcadia train") == by_command
    both = ["--total-envs", "64", "--num-envs", "8"]
    assert parse_config([env, *both], prog="arcadia train").envs_per_worker == 8, "as it is given to each"


def test_a_signal_while_arguments_are_parsed_is_no_mistake_in_them(arcadia, monkeypatch):
    monkeypatch.setattr("tyro.cli", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert arcadia("eval", "run") == (128 + signal.SIGTERM, "", "interrupted\n")


@pytest.mark.parametrize("name", ["pongg", "BreakoutNoFramskip-v4", "ALE/Brekout-v5", "CartPol-v1", "Pong-v7"])
def test_the_environments_that_an_error_suggests_exist(arcadia, tmp_path, name):
    ended = arcadia("train", name, "--help")
    _, closest, suggestions = ended.err.strip().partition("closest: ")
    assert closest
    for suggestion in suggestions.split(", "):
        assert arcadia("train", suggestion, "--help").code == 0, "the recipe for it is found"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num-stpes", "7"], ["--num-stpes", "--num-steps"]),
        (["--nonsense", "7"], ["--nonsense"]),
        (["--total-steps", "1e6"], ["--total-steps", "'1e6' is not a whole number"]),
        (["--num-stpes", "7", "--lrr", "3"], ["perhaps you meant --", "--num-steps [INT", "--lr FLOAT"]),
        (["--num", "7"], ["--num", "perhaps you meant --num-envs", "or --num-workers"]),
        (["--steps", "7"], ["--steps", "--total-steps INT"]),
        (["--eval", "7"], ["--eval", "--eval-episodes INT"]),
        (["--num-steps", "seven"], ["--num-steps [INT [INT ...]]", "seven"]),
        (["--num-steps", "7.5"], ["--num-steps", "7.5"]),
        (["--num-steps"], ["--num-steps"]),
        (["--lr", "fast"], ["--lr", "'fast' is not a number"]),
        (["--dtype", "nonsense"], ["--dtype", "nonsense", "bfloat16"]),
        (["--runtime", "ray"], ["--runtime", "hogwild"]),
        (["--hidden-sizes", "5", "x"], ["--hidden-sizes", "x"]),
        (["extra"], ["extra"]),
    ],
    ids=" ".join,
)
def test_a_bad_argument_is_refused_in_one_line(arcadia, tmp_path, arguments, named):
    run = tmp_path / "run"
    assert_one_line(arcadia("train", "CartPole-v1", "--run-dir", run, *arguments), *named)
    assert not run.exists(), "nothing is written"


@pytest.mark.parametrize("command", ["eval", "resume"])
def test_a_directory_that_is_no_run_is_refused(arcadia, tmp_path, command):
    (tmp_path / "file").write_text("a regular file")
    for name in ("", "absent", "file"):
        assert_one_line(arcadia(command, tmp_path / name), tmp_path / name, "not a run directory")
    assert_one_line(arcadia(command), "RUN")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("command", ["eval", "resume"])
def test_a_truncated_checkpoint_is_refused(arcadia, own_run, command):
    path = newest_checkpoint(own_run)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-9])
    assert_one_line(arcadia(command, own_run), path, "delete it to begin anew")
    path.unlink()
    save = shutil.copytree(own_run, own_run.with_name("saved"))
    assert arcadia("eval", own_run, "--episodes", 1).code == 2, "none is left"
    assert sorted(p.name for p in own_run.rglob("*")) == sorted(p.name for p in Path(save).rglob("*"))


def test_warnings_of_gymnasium_are_shown_without_colour_codes(own_run):
    ended = subprocess_arcadia("eval", own_run, "--env", "CartPole-v0", "--episodes", 1)
    assert ended.code == 0, ended
    assert "arcadia: warning: WARN: The environment CartPole-v0 is out of date" in ended.err


@pytest.mark.parametrize("command", [["eval", "--episodes", 1], ["resume", "--total-steps", 200]])
def test_the_checkpoint_before_a_torn_one_is_used_with_a_warning(own_run, command):
    path = newest_checkpoint(own_run)
    assert path is not None
    (torn := path.with_stem("000000999999")).write_bytes(path.read_bytes()[:-9])
    ended = subprocess_arcadia(command[0], own_run, *command[1:])
    assert ended.code == 0, ended
    assert str(torn) in ended.err
    assert "using the checkpoint before it\n" in ended.err
    assert ended.err.startswith("arcadia: warning: ")
    assert "warn(" not in ended.err, "no line of code"


@pytest.mark.parametrize("command", ["eval", "resume"])
def test_a_checkpoint_of_another_shape_is_refused(arcadia, own_run, tmp_path, command):
    arcadia("train", "CartPole-v1", *TINY, "--hidden-sizes", 4, "--run-dir", tmp_path / "other")
    other, path = newest_checkpoint(tmp_path / "other"), newest_checkpoint(own_run)
    assert other is not None
    assert path is not None
    shutil.copy(other, path)
    count = len(load_checkpoint(other).parameters)
    assert_one_line(arcadia(command, own_run), f"holds {count} parameters", "config.json")


def test_a_run_directory_below_a_file_is_refused(arcadia, tmp_path):
    (tmp_path / "file").write_text("a regular file")
    run = tmp_path / "file" / "run"
    assert_one_line(arcadia("train", "CartPole-v1", *TINY, "--run-dir", run), run, "--run-dir")


def test_a_run_directory_that_holds_a_run_is_refused(arcadia, own_run):
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    ended = arcadia("train", "CartPole-v1", *TINY, "--seed", 2, "--run-dir", own_run)
    assert_one_line(ended, own_run, "arcadia resume", "--run-dir")
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before


def test_a_limit_that_a_run_has_reached_is_refused_and_not_written(arcadia, own_run):
    before = (own_run / "config.json").read_bytes()
    path = newest_checkpoint(own_run)
    assert path is not None
    steps = load_checkpoint(path).env_steps
    named = f"total_steps counts from the run's start, and it has {steps}: give more, got {steps}"
    assert_one_line(arcadia("resume", own_run, "--total-steps", steps), named)
    assert_one_line(arcadia("resume", own_run, "--total-minutes", 1e-9), "total_minutes counts from the run's start")
    checkpoint = load_checkpoint(path)
    checkpoint.progress["recent_returns"] = [20.0, 22.0] * 50
    save_checkpoint(path, checkpoint)
    named = "stop_score: the last 100 episodes average 21.00 already: give more, got 21"
    assert_one_line(arcadia("resume", own_run, "--stop-score", 21), named)
    assert (own_run / "config.json").read_bytes() == before
    ended = arcadia("resume", own_run, "--total-steps", load_config(own_run).runtime.total_steps)
    assert ended.code == 0, "a command may be repeated"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num-workers", "0"], ["num_workers must be >= 1", "got 0"]),
        (["--total-steps", "-5"], ["total_steps must be >= 1", "got -5"]),
        (["--total-minutes", "nan"], ["total_minutes", "got nan"]),
        (["--stop-score", "nan"], ["stop_score", "got nan"]),
    ],
    ids=" ".join,
)
def test_a_bad_value_for_resume_is_refused_and_not_written(arcadia, own_run, arguments, named):
    before = (own_run / "config.json").read_bytes()
    assert_one_line(arcadia("resume", own_run, *arguments), *named)
    assert (own_run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--episodes", "0"], ["episodes must be an integer >= 1", "got 0"]),
        (["--num-envs", "0"], ["num_envs must be an integer >= 1", "got 0"]),
        (["--seed", "-1"], ["seed must be an integer >= 0", "got -1"]),
        (["--best"], ["no evaluation that was completed"]),
    ],
    ids=" ".join,
)
def test_a_bad_value_for_eval_is_refused(arcadia, own_run, arguments, named):
    assert_one_line(arcadia("eval", own_run, *arguments), *named)
    assert not (own_run / "evaluations").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_refused(arcadia, own_run):
    assert_one_line(arcadia("train", "pong", "--gpu-ids", "0"), "gpu_ids 0", "no CUDA GPU", "leave --gpu-ids out")
    assert_one_line(arcadia("train", "pong", "--device", "cuda"), "device cuda", "no CUDA GPU", "leave --device out")
    assert_one_line(arcadia("train", "pong", "--gpu-ids", "0", "-1"), "gpu_ids must be >= 0", "got -1")
    assert_one_line(arcadia("resume", own_run, "--gpu-ids", 1, "--total-steps", 10**9), "gpu_ids 1", "no CUDA GPU")
    config = json.loads((own_run / "config.json").read_text())
    config["config"]["runtime"] |= {"gpu_ids": [0], "device": "cuda"}  # it was trained where there are GPUs
    (own_run / "config.json").write_text(json.dumps(config))
    assert_one_line(arcadia("resume", own_run, "--total-steps", 120), "gpu_ids 0", "give --gpu-ids without a number")
    ended = arcadia("resume", own_run, "--total-steps", 120, "--gpu-ids")
    assert ended.code == 0, ended
    assert (load_config(own_run).runtime.gpu_ids, load_config(own_run).runtime.device) == ((), "cpu")


def test_a_bad_value_for_bench_is_refused(arcadia):
    assert_one_line(arcadia("bench", "nosuchgame"), "nosuchgame")
    assert_one_line(arcadia("bench", "pong", "--recipe", "nosuch"), "nosuch", *RECIPES)
    for seconds in ("0", "nan", "inf"):
        assert_one_line(arcadia("bench", "pong", "--seconds", seconds), "seconds must be from 1 to 86,400", seconds)
    assert_one_line(arcadia("bench", "pong", "--num-envs", "0"), "num_envs must be >= 1", "got 0")
    assert_one_line(arcadia("bench", "pong", "--num-envs", "4", "100000"), "num_envs", "100000")


def test_bench_takes_the_options_of_training_and_checks_them(arcadia):
    assert_one_line(arcadia("bench", "pong", "--torso", "mlp", "--core-size", "0"), "core_size must be >= 1", "got 0")
    assert_one_line(arcadia("bench", "pong", "--num-workers", "1", "0", "--torso", "nature"), "num_workers", "got 0")
    for option, value in (("--total-minutes", "1"), ("--stop-score", "5"), ("--run-dir", "x"), ("--runtime", "serial")):
        assert_one_line(arcadia("bench", "pong", option, value), f"leave {option}", "out")
    ended = arcadia("bench", "pong", "--nosuch", "3")
    assert ended.code == 2
    assert "--nosuch" in ended.err
    assert "arcadia bench" in ended.err


def test_bench_says_why_training_failed(arcadia):
    assert_one_line(arcadia("bench", "CartPole-v1", "--torso", "nature", "--seconds", 1), "torso nature needs pixels")


@pytest.mark.slow
def test_bench_says_how_fast_training_is_and_where_its_time_and_memory_go(arcadia):
    options = ("--num-workers", 1, 2, "--num-envs", 4, "--hidden-sizes", 512, 512)
    ended = arcadia("bench", "CartPole-v1", *options, "--seconds", 15, "--json")
    assert ended.code == 0, ended
    results = [json.loads(line) for line in ended.out.splitlines()]
    assert [(result["num_workers"], result["num_envs"]) for result in results] == [(1, 4), (2, 4)]
    for result in results:
        assert 0 < result["train_steps_per_s"] < result["env_only_steps_per_s"]
        assert result["ratio"] == pytest.approx(
            statistics.median([row["train_steps_per_s"] / row["env_only_steps_per_s"] for row in result["rounds"]])
        )
        assert result["time"].keys() == {"env", "acting", "learning", "optimizer", "waiting"}
        assert sum(result["time"].values()) == pytest.approx(1)
        assert result["time"]["learning"] > result["time"]["env"], "64 passes of a wide network"
        assert 200 < result["memory_mib"] < 3000
        assert 0.5 < result["first_update_s"] < 30
    assert results[0]["staleness"] == 0, "nobody else updates"
    assert results[1]["staleness"] > 0.3
    assert results[1]["memory_mib"] > results[0]["memory_mib"]


def test_an_unknown_command_is_refused_and_none_shows_the_usage(arcadia):
    assert_one_line(arcadia("trian", "pong"), "'trian'", "train, resume, eval, play, report, recipes, bench")
    ended = arcadia()
    assert ended.code == 2
    assert ended.out.startswith("usage: arcadia")


def test_a_real_process_refuses_alike():
    """The console script, in a process: exit code, streams, and nothing of the interpreter's."""
    script = Path(sys.executable).with_name("arcadia")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "arcadia"]
    result = subprocess.run(
        [*command, "train", "pong", "--num-steps", "0"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"arcadia: error: num_steps must be >= 1.*, got 0\n", result.stderr)


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("env", [["pong"], ["CartPole-v1"], []], ids=["pong", "cartpole", "none"])
def test_help_for_train_explains_every_setting_with_its_default(arcadia, env):
    ended = arcadia("train", *env, "--help")
    assert ended.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.out).split())
    fields = [
        field
        for section in (EnvConfig, ModelConfig, LossConfig, OptimizerConfig, RuntimeConfig)
        for field in dataclasses.fields(section)
    ]
    for field in fields:
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert text.count("(default:") == len(fields) + 1, "and --recipe"
    assert "env_steps" in text, "units are named"


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_help_in_a_terminal_has_no_colours_where_the_user_wants_none(no_color, is_coloured):
    primary, secondary = pty.openpty()
    environment = os.environ | {"NO_COLOR": no_color, "TERM": "xterm"}
    command = [sys.executable, "-m", "arcadia", "eval", "--help"]
    process = subprocess.Popen(command, stdout=secondary, env=environment)
    os.close(secondary)
    text = b""
    with contextlib.suppress(OSError):  # the end
        while part := os.read(primary, 4096):
            text += part
    os.close(primary)
    assert process.wait() == 0
    assert b"--episodes" in text
    assert (b"\x1b[" in text) == is_coloured


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom arcadia.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\nsys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--num-workers" in ended.stdout
    assert ended.returncode == 0


def test_help_shows_the_defaults_of_the_recipe_that_will_be_used(arcadia):
    def rates(ended: Ended) -> list[str]:
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.out).split())
        return re.findall(r"--lr FLOAT Learning rate at the start. \(default: (\S+)\)", text)

    for name, recipe in RECIPES.items():
        assert [float(rate) for rate in rates(arcadia("train", "--recipe", name, "--help"))] == [
            recipe.config.optimizer.lr
        ]


@pytest.mark.parametrize("command", ["resume", "eval", "play", "report", "recipes", "bench"])
def test_help_for_the_other_commands_exits_with_0(arcadia, command):
    ended = arcadia(command, "--help")
    assert ended.code == 0
    assert f"usage: arcadia {command}" in ended.out
    assert ended.err == ""
    if command in ("eval", "bench"):
        assert "(default:" in ended.out


def test_help_and_version_of_the_whole(arcadia):
    ended = arcadia("--help")
    assert ended.code == 0
    assert all(
        f"\n  {command}" in ended.out for command in ("train", "resume", "eval", "play", "report", "recipes", "bench")
    )
    assert arcadia("--version") == (0, f"arcadia {__version__}\n", "")


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_are_listed_with_their_sources(arcadia):
    ended = arcadia("recipes")
    assert ended.code == 0
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.description}\n" in ended.out
        for text in (recipe.source, recipe.protocol, recipe.reported, *recipe.games):
            assert text in ended.out
    assert "arXiv:1602.01783" in ended.out


def test_one_recipe_shows_every_field_and_its_deviations(arcadia):
    ended = arcadia("recipes", "a3c-ff")
    assert ended.code == 0
    head, brace, rest = ended.out.partition("{")
    settings = json.loads(brace + rest)
    assert settings["optimizer"]["optimizer"] == "rmsprop"
    assert settings["optimizer"]["epsilon"] == 0.1
    assert settings["loss"]["max_grad_norm"] == 40.0
    assert settings["runtime"]["num_steps"] == [5]
    assert head.count("deviation: ") == len(RECIPES["a3c-ff"].deviations) > 0
    assert_one_line(arcadia("recipes", "nosuch"), "'nosuch'", *RECIPES)


# ------------------------------------------------------------------------------------------------- train, resume, eval


@pytest.mark.parametrize(
    "arguments",
    [["CartPole-v1", *TINY], [*TINY, "--env", "CartPole-v1"], ["--env=CartPole-v1", *TINY]],
    ids=["first", "--env", "--env="],
)
def test_the_environment_may_come_first_or_as_an_option(arcadia, tmp_path, arguments):
    run = tmp_path / "run"
    ended = arcadia("train", *arguments, "--run-dir", run)
    assert ended.code == 0, ended
    config = load_config(run)
    assert config.env.env == "CartPole-v1"
    assert config.recipe == "control", "the recipe follows from the environment"
    assert (config.env.num_envs, config.runtime.num_steps, config.runtime.total_steps) == (3, (5,), 60)
    assert ended.err == ""
    assert f"arcadia eval {run}" in ended.out


def test_options_replace_the_recipes_settings_and_no_others(arcadia, tmp_path):
    run = tmp_path / "run"
    options = ["--recipe", "a3c-lstm", "--torso", "mlp", "--hidden-sizes", 7, 5, "--core-size", 6, "--lr", 0.5]
    ended = arcadia("train", "CartPole-v1", *options, "--no-clip-rewards", *TINY, "--run-dir", run)
    assert ended.code == 0, ended
    config, recipe = load_config(run), RECIPES["a3c-lstm"].config
    assert config.recipe == "a3c-lstm"
    assert config.loss == recipe.loss
    assert config.optimizer == dataclasses.replace(recipe.optimizer, lr=0.5)
    assert (config.model.core, config.model.core_size, config.model.hidden_sizes) == ("lstm", 6, (7, 5))
    assert config.env.clip_rewards is False
    assert config.model.dtype == "float32", "resolved, and kept by resume"
    assert config.runtime.num_workers == 1


def test_rollout_lengths_of_each_worker_and_an_end_in_episodes(arcadia, tmp_path):
    run = tmp_path / "run"
    options = [*TINY, "--total-steps", 100_000, "--num-workers", 2, "--num-steps", 4, 8, "--total-episodes", 9]
    ended = arcadia("train", "CartPole-v1", *options, "--run-dir", run)
    assert ended.code == 0, ended
    assert "total_episodes reached" in ended.out
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert (rows[-1]["num_steps_worker_0"], rows[-1]["num_steps_worker_1"]) == (4, 8)
    resumed = arcadia("resume", run, "--total-episodes", 14)
    assert "total_episodes reached" in resumed.out
    episodes = [row for row in read_metrics(run) if row["kind"] == "episode"]
    assert 14 <= len(episodes) <= 14 + 2 * 3


def test_a_run_directory_holds_what_others_script_against(finished_run):
    assert {"config.json", "metrics.jsonl", "checkpoints", "best", "tensorboard"} <= set(os.listdir(finished_run))
    *rows, last = read_metrics(finished_run)
    assert last["kind"] == "train"
    assert last["env_steps"] >= 60
    assert {row["kind"] for row in rows} <= {"episode", "train"}


def test_a_run_without_a_directory_gets_a_named_one(tmp_path):
    ended = subprocess_arcadia("train", "CartPole-v1", *TINY, "--seed", 7, cwd=tmp_path)
    assert ended.code == 0, ended
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"CartPole-v1-control-7-\d{8}-\d{6}", run.name)
    assert "total_steps reached" in ended.out
    assert "\x1b" not in ended.out, "plain lines in a pipe"
    assert ended.err == ""


def test_a_terminal_gets_a_live_table(tmp_path):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "arcadia", "train", "CartPole-v1", *TINY, "--run-dir", "run"]
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    env.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, cwd=tmp_path, env=env) as process:
        os.close(slave)
        output = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux's way to say that the other end has closed
                break
            if not data:
                break
            output += data
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(master)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    for label in (
        "env steps",
        "frames",
        "steps/s",
        "episodes",
        "mean-",
        "best eval",
        "staleness",
        "time left",
        "score",
    ):
        assert label in text, label


def test_quiet_training_prints_nothing(tmp_path):
    ended = subprocess_arcadia("train", "CartPole-v1", *TINY, "--quiet", cwd=tmp_path)
    assert ended == (0, "", "")


def test_stop_score_and_total_minutes_end_a_run(arcadia, tmp_path):
    options = ["--runtime", "serial", "--num-envs", 8, "--num-steps", 16, "--num-epochs", 1, "--eval-episodes", 0]
    ended = arcadia("train", "CartPole-v1", *options, "--stop-score", 5, "--run-dir", tmp_path / "score")
    assert ended.code == 0
    assert "stop_score reached" in ended.out
    assert f"arcadia resume {tmp_path / 'score'} --stop-score N\n" in ended.out
    assert read_metrics(tmp_path / "score")[-1]["episodes"] >= 100, "a mean of 100 episodes, never of fewer"
    ended = arcadia("train", "CartPole-v1", *options, "--total-minutes", 0.01, "--run-dir", tmp_path / "minutes")
    assert ended.code == 0
    assert "total_minutes over" in ended.out


def test_resume_goes_on_and_keeps_the_new_end(arcadia, own_run):
    ended = arcadia("resume", own_run, "--total-steps", 120)
    assert ended.code == 0, ended
    path = newest_checkpoint(own_run)
    assert path is not None
    assert load_checkpoint(path).env_steps >= 120
    assert load_config(own_run).runtime.total_steps == 120
    env_steps = [row["env_steps"] for row in read_metrics(own_run) if row["kind"] == "train"]
    assert env_steps == sorted(env_steps)
    assert env_steps[0] < 120 <= env_steps[-1]


def test_eval_prints_the_scores_and_writes_them(arcadia, own_run):
    ended = arcadia("eval", own_run, "--episodes", 5)
    assert ended.code == 0, ended
    for word in ("CartPole-v1, 5 sampled games", "mean", "95% interval", "std", "median", "min", "max"):
        assert word in ended.out
    assert re.search(r"^[\d,]+ decisions/s$", ended.err, re.MULTILINE)
    (path,) = (own_run / "evaluations").iterdir()
    assert str(path) in ended.out.replace("\n", "")
    result = json.loads(path.read_text())
    assert f"mean {result['mean']:.2f}" in ended.out


def test_eval_as_json_prints_nothing_else_on_stdout(own_run):
    ended = subprocess_arcadia("eval", own_run, "--episodes", 3, "--greedy", "--json")
    assert ended.code == 0, ended
    result = json.loads(ended.out)
    assert result["mode"] == "greedy"
    assert result["episodes"] == len(result["scores"]) == 3
    assert {"mean", "std", "median", "min", "max", "ci95", "env", "env_steps", "seed"} <= result.keys()


def test_eval_with_one_seed_prints_one_result(arcadia, own_run):
    first, second, other = (
        json.loads(arcadia("eval", own_run, "--episodes", 4, "--seed", seed, "--json").out) for seed in (5, 5, 6)
    )
    assert first == second
    assert first["scores"] != other["scores"]


@pytest.mark.slow
def test_many_more_workers_than_cores_train_with_a_warning(tmp_path):
    run = tmp_path / "run"
    size = ["--num-workers", 24, "--num-envs", 1, "--num-steps", 5, "--total-steps", 3000]
    ended = subprocess_arcadia("train", "pong", *size, "--run-dir", run)
    assert ended.code == 0, ended
    assert re.fullmatch(r"arcadia: warning: 24 workers share \d+ cores?; .*--num-envs.*\n", ended.err)
    path = newest_checkpoint(run)
    assert path is not None
    checkpoint = load_checkpoint(path)
    assert checkpoint.counters.shape == (24, 4)
    assert checkpoint.env_steps >= 3000
