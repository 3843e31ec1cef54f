"""What a run survives: processes that are killed, stopped or crash, and disks that are full or gone."""

import contextlib
import errno
import itertools
import json
import os
import pty
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command import PATIENCE, Cli, fork_server, needs_proc

from arcadia.checkpoint import load_checkpoint, newest_checkpoint
from arcadia.files import LineWriter
from arcadia.metrics import read_metrics
from arcadia.parameters import ENV_STEPS, UPDATES

pytestmark = needs_proc
Start = Callable[..., Cli]
TOYS = [str(Path(__file__).with_name("toy_command.py"))]
ROLLOUT = ("--num-envs", 2, "--num-steps", 5, "--num-epochs", 1, "--num-minibatches", 1)
SMALL = ("--num-workers", 2, *ROLLOUT, "--hidden-sizes", 16, "--total-steps", 10**12, "--checkpoint-seconds", 1)


def train(start: Start, run: Path, env: str = "Endless-v0", *options: object) -> Cli:
    cli = start("train", env, "--run-dir", run, *SMALL, *options, program=TOYS)
    cli.wait_for_learning(run)
    return cli


def stop(cli: Cli, code: int = 143) -> None:
    cli.process.terminate()
    assert cli.end() == code, cli.stderr.read_text()
    cli.assert_nothing_is_left()


def env_steps(run: Path) -> int:
    newest = newest_checkpoint(run)
    return 0 if newest is None else int(newest.stem)


def restarts(run: Path) -> list[dict[str, str]]:
    return [row for row in read_metrics(run) if row["kind"] == "restart"]


def assert_counted_exactly(run: Path) -> None:
    """Without resets every update is of 2 x 5 decisions."""
    newest = newest_checkpoint(run)
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    assert checkpoint.counters[:, ENV_STEPS].equal(checkpoint.counters[:, UPDATES] * 10)
    assert checkpoint.parameters.isfinite().all()


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_processes_are_replaced_and_the_counters_stay_exact(start, tmp_path, kills):
    run, chance = tmp_path / "run", random.Random(kills)
    cli = train(start, run, "Endless-v0", "--eval-episodes", 1)
    cli.wait_until(lambda: len(cli.workers()) == 3, "evaluator")
    handles = []
    killed: set[int] = set()
    while len(killed) < kills:
        family = [pid for pid in cli.workers() if pid not in killed]  # one that was killed takes a moment to end
        try:
            os.kill(victim := chance.choice(family), signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            continue
        killed.add(victim)
        time.sleep(chance.uniform(0, 2))
        assert cli.process.poll() is None, cli.stderr.read_text()
        handles.append(len(os.listdir(f"/proc/{cli.process.pid}/fd")))
    cli.wait_until(lambda: len(restarts(run)) == kills, "all restarts")
    before = env_steps(run)
    cli.wait_until(lambda: len(cli.workers()) == 3 and env_steps(run) > before, "learning")
    stop(cli)
    assert_counted_exactly(run)
    assert {row["why"] for row in restarts(run)} == {"was killed by SIGKILL (out of memory?)"}
    assert {row["process"] for row in restarts(run)} <= {"worker-0", "worker-1", "evaluator"}
    assert max(handles[-3:]) <= max(handles[:3]) + 3, "of a process that is just starting"
    for row in restarts(run):
        assert f"{row['process']} was killed by SIGKILL (out of memory?); started again" in cli.stdout.read_text()


def test_a_stopped_worker_is_named_and_replaced_in_time(start, tmp_path):
    run = tmp_path / "run"
    cli = train(start, run, "Endless-v0", "--eval-episodes", 0, "--heartbeat-seconds", 3)
    cli.wait_until(lambda: len(cli.workers()) == 2, "second worker")
    time.sleep(3)  # both play
    victim = cli.workers()[1]
    os.kill(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    cli.wait_until(lambda: bool(restarts(run)), "restart")
    assert 2 < time.monotonic() - stopped < 3 + 5
    assert victim not in cli.workers()
    before = env_steps(run)
    cli.wait_until(lambda: len(cli.workers()) == 2 and env_steps(run) > before, "learning")
    stop(cli)
    assert_counted_exactly(run)
    assert [row["process"] for row in restarts(run)] == ["worker-1"]
    assert re.search(
        r"worker-1 showed no sign of life for 3 s \(heartbeat_seconds\) and was killed; started again",
        cli.stdout.read_text(),
    )


def test_first_resets_may_take_longer_than_steps(start, tmp_path):
    """Two environments of a worker, one after the other, take 4 seconds."""
    run = tmp_path / "run"
    cli = train(start, run, "Late-v0", "--eval-episodes", 0, "--heartbeat-seconds", 3)
    cli.wait_until(lambda: env_steps(run) > 0, "learning")
    stop(cli)
    assert not restarts(run)


def test_the_fork_server_is_replaced_with_all_that_it_started(start, tmp_path):
    run = tmp_path / "run"
    cli = train(start, run, "Endless-v0", "--eval-episodes", 0)
    cli.wait_until(lambda: len(cli.workers()) == 2, "second worker")
    time.sleep(1)  # both play
    victims = cli.workers()
    server = fork_server(cli.process.pid)
    assert server is not None
    server.kill()
    cli.wait_until(lambda: len(restarts(run)) == 2 and len(cli.workers()) == 2, "restarts")
    assert not set(victims) & set(cli.workers())
    before = env_steps(run)
    cli.wait_until(lambda: env_steps(run) > before, "learning")
    stop(cli)
    assert_counted_exactly(run)


def test_processes_that_are_stopped_end_with_the_run(start, tmp_path):
    cli = train(start, tmp_path / "run", "Endless-v0", "--eval-episodes", 0)
    cli.wait_until(lambda: len(cli.workers()) == 2, "second worker")
    time.sleep(1)  # both play
    server = fork_server(cli.process.pid)
    assert server is not None
    for pid in (server.pid, *cli.workers()):
        os.kill(pid, signal.SIGSTOP)
    cli.process.kill()
    cli.end()
    cli.assert_nothing_is_left()


@pytest.mark.slow
def test_a_pause_of_the_whole_run_is_nobodys_fault(start, tmp_path):
    """As by Ctrl-Z and fg, or when a laptop sleeps."""
    run = tmp_path / "run"
    cli = train(start, run, "Endless-v0", "--eval-episodes", 0, "--heartbeat-seconds", 4)
    os.killpg(cli.process.pid, signal.SIGSTOP)
    time.sleep(8)
    os.killpg(cli.process.pid, signal.SIGCONT)
    before = env_steps(run)
    cli.wait_until(lambda: env_steps(run) > before, "learning")
    stop(cli)
    assert not restarts(run)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_goes_on_wherever_it_was_killed(start, tmp_path, kills):
    """The whole tree is killed at random moments; each time `resume` goes on from a checkpoint."""
    run, chance = tmp_path / "run", random.Random(kills)
    cli = start("train", "CartPole-v1", "--run-dir", run, *SMALL)
    kept_rows: list[dict[str, float]] = []
    for _ in range(kills):
        cli.wait_until((run / "config.json").exists, "run directory")
        time.sleep(chance.uniform(0, 12))
        assert cli.process.poll() is None, cli.stderr.read_text()
        os.killpg(cli.process.pid, signal.SIGKILL)
        cli.end()
        kept, rows = env_steps(run), [row for row in read_metrics(run) if row["kind"] == "train"]
        assert rows[: len(kept_rows)] == kept_rows, "nothing of what was kept is lost or changed"
        kept_rows = [row for row in rows if row["env_steps"] <= kept]
        lost = [row["seconds"] for row in rows[len(kept_rows) :]]
        assert not lost or lost[-1] - lost[0] < 1 + 5, "no more than the checkpoint interval"
        cli = start("resume", run)
    before = env_steps(run)
    cli.wait_until(lambda: env_steps(run) > before, "learning")
    stop(cli)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert rows[: len(kept_rows)] == kept_rows
    episodes = sum(json.loads(line)["kind"] == "episode" for line in lines)
    assert episodes == rows[-1]["episodes"], "a row for each episode that is counted"
    for name in ("env_steps", "updates", "seconds"):
        assert all(row[name] < later[name] for row, later in itertools.pairwise(rows)), name
    assert all(row["episodes"] <= later["episodes"] for row, later in itertools.pairwise(rows))
    assert not list(run.rglob(".*.tmp"))


def test_a_full_disk_does_not_end_training(start, tmp_path):
    """No file may grow beyond 30 kB: checkpoints are larger, and TensorBoard and metrics.jsonl get there."""
    run = tmp_path / "run"
    options = ("--hidden-sizes", 64, 64, "--total-minutes", 0.3, "--num-workers", 1, "--eval-episodes", 0)
    cli = start(
        *("--largest-file", 30_000, "train", "CartPole-v1", "--run-dir", run, *ROLLOUT, *options),
        *("--checkpoint-seconds", 2),
        program=TOYS,
    )
    assert cli.end() == 1, cli.stderr.read_text()
    cli.assert_nothing_is_left()
    assert cli.stderr.read_text() == f"arcadia: error: {run}: the last checkpoint could not be written\n"
    out = cli.stdout.read_text()
    assert out.count("no checkpoint was written (File too large): training goes on") > 4
    assert out.count("TensorBoard cannot be written (File too large)") == 1
    assert out.count("metrics.jsonl cannot be written (File too large)") == 1
    assert "total_minutes" not in out
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(list(map(json.loads, lines))) > 10
    assert not list((run / "checkpoints").iterdir())


def test_a_run_directory_that_disappears_ends_with_a_line(start, tmp_path):
    run = tmp_path / "run"
    cli = train(start, run, "CartPole-v1", "--eval-episodes", 0)
    shutil.rmtree(run)
    cli.wait_until(lambda: "no checkpoint was written (No such file" in cli.stdout.read_text(), "warning")
    stop(cli, code=1)
    assert cli.stderr.read_text() == f"arcadia: error: {run}: the last checkpoint could not be written\n"


def test_a_directory_that_is_read_only_for_a_while(start, tmp_path):
    """Root may write everywhere, so its privilege to do so is dropped."""
    run, script = tmp_path / "run", tmp_path / "unprivileged.py"
    privileges = "--bounding-set=-dac_override,-dac_read_search" if os.geteuid() == 0 else "--no-new-privs"
    script.write_text(
        "import os, sys\n"
        f"os.execvp('setpriv', ['setpriv', {privileges!r}, sys.executable, '-m', 'arcadia', *sys.argv[1:]])\n"
    )
    cli = start("train", "CartPole-v1", "--run-dir", run, *SMALL, "--eval-episodes", 0, program=[str(script)])
    cli.wait_for_learning(run)
    folders = (run, run / "checkpoints")
    for folder in folders:
        folder.chmod(0o555)
    complaint = "no checkpoint was written (Permission denied): training goes on"
    cli.wait_until(lambda: cli.stdout.read_text().count(complaint) > 2, "warnings")
    other = start("train", "CartPole-v1", "--run-dir", run / "inside", *SMALL, program=[str(script)])
    assert other.end() == 2
    assert re.fullmatch(r"arcadia: error: .*inside.* cannot be .*Permission denied.*\n", other.stderr.read_text())
    before = env_steps(run)
    for folder in folders:
        folder.chmod(0o755)
    cli.wait_until(lambda: env_steps(run) > before, "checkpoint")
    stop(cli)
    rows = [row["env_steps"] for row in read_metrics(run) if row["kind"] == "train"]
    assert sum(steps > before for steps in rows) > 1, "rows of the time without checkpoints"
    assert load_checkpoint(newest_checkpoint(run)).env_steps == rows[-1]


def test_lines_that_could_not_be_written_are_written_later_and_whole(tmp_path):
    warnings: list[str] = []
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    writer = LineWriter(path, warnings.append)
    file = writer._file

    class Full:
        """A disk with room for 3 bytes more."""

        room = 3

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data, self.room = data[: self.room], 0
            return file.write(data)

        def truncate(self, size: int) -> None:
            file.truncate(size)

    writer.write("first")
    writer._file = Full()  # type: ignore[assignment]
    writer.write("second")
    writer._next_try = 0.0
    writer.write("third")
    assert path.read_text() == "old\nfirst\n"
    assert warnings == ["metrics.jsonl cannot be written (No space left on device): its lines are kept until it can"]
    writer._file = file
    writer._next_try = 0.0
    writer.write("fourth")
    writer.close()
    assert path.read_text() == "old\nfirst\nsecond\nthird\nfourth\n"
    assert warnings[1:] == ["metrics.jsonl is written again"]


@pytest.mark.parametrize(
    ("env", "runtime", "message"),
    [
        ("Crash-v0", "serial", r"training failed: ArithmeticError: the toy environment broke \(toy_envs\.py:\d+\)\n"),
        ("Misshapen-v0", "hogwild", r"worker-0 failed: ValueError: .*shape.* soon after each of 3 starts\n"),
        ("Broken-v0", "hogwild", r"Broken-v0 cannot be built: ArithmeticError: the toy environment broke \(.*\)\n$"),
    ],
)
def test_an_environment_that_fails_is_named_in_the_first_line(start, tmp_path, env, runtime, message):
    options = (*ROLLOUT, "--num-workers", 1, "--eval-episodes", 0, "--runtime", runtime)
    cli = start("train", env, "--run-dir", tmp_path / "run", *options, program=TOYS)
    assert cli.end() in (1, 2)
    assert re.match(rf"arcadia: error: {message}", cli.stderr.read_text()), cli.stderr.read_text()


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    ("after", "number"), [(0.5, signal.SIGINT), (1.5, signal.SIGTERM), (3.0, signal.SIGINT), (4.5, signal.SIGTERM)]
)
def test_signals_at_the_start_end_it_quietly(start, tmp_path, after, number):
    cli = start("train", "CartPole-v1", "--run-dir", tmp_path / "run", *SMALL)
    time.sleep(after)
    asked = time.monotonic()
    os.killpg(cli.process.pid, number)
    assert cli.end() == 128 + number, cli.stderr.read_text()
    assert time.monotonic() - asked < 15, "the bar is 5 s on an idle machine"
    assert cli.stderr.read_text() in ("", "interrupted\n")
    cli.assert_nothing_is_left()


@pytest.mark.parametrize("survives", [False, True])
def test_a_run_whose_terminal_is_closed_stops_with_a_checkpoint_unless_under_nohup(tmp_path, survives):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "arcadia", "train", "CartPole-v1", "--run-dir", run, *SMALL]
    command = [*(["nohup"] if survives else []), *command, "--checkpoint-seconds", 3]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be under nohup
        os.environ.pop("PYTHONUNBUFFERED", None)
        os.chdir(tmp_path)
        os.execvp(command[0], list(map(str, command)))
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + PATIENCE
    try:
        while not env_steps(run):
            with contextlib.suppress(OSError):  # nothing to read
                os.read(terminal, 2**16)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(pid).children(recursive=True)
        before = env_steps(run)
        time.sleep(0.5)
        os.close(terminal)
        if survives:
            while env_steps(run) == before:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(pid, signal.SIGTERM)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(ended[1]) == 128 + (signal.SIGTERM if survives else signal.SIGHUP)
    assert env_steps(run) > before
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_a_second_ctrl_c_does_not_wait_for_workers(start, tmp_path):
    """A worker is stopped, so that the first Ctrl-C takes seconds to give it up."""
    run = tmp_path / "run"
    cli = train(start, run, "CartPole-v1", "--eval-episodes", 0)
    os.kill(cli.workers()[0], signal.SIGSTOP)
    os.kill(cli.process.pid, signal.SIGINT)
    time.sleep(0.7)
    assert cli.process.poll() is None
    asked = time.monotonic()
    os.kill(cli.process.pid, signal.SIGINT)
    assert cli.end() == 130
    assert time.monotonic() - asked < 2
    cli.assert_nothing_is_left()
    assert cli.stderr.read_text() == ""
    assert env_steps(run) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_sigint_was_ignored_both_signals_are_obeyed(start, tmp_path, number):
    """As in the background of a script."""
    run, script = tmp_path / "run", tmp_path / "ignore.py"
    script.write_text(
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'arcadia', *sys.argv[1:]])\n"
    )
    cli = start("train", "CartPole-v1", "--run-dir", run, *SMALL, program=[str(script)])
    cli.wait_for_learning(run)
    os.kill(cli.process.pid, number)
    assert cli.end() == 128 + number, cli.stderr.read_text()
    cli.assert_nothing_is_left()


def test_ctrl_c_during_a_serial_evaluation_stops_it(start, tmp_path):
    """Its games never end."""
    run = tmp_path / "run"
    options = ("--runtime", "serial", "--num-workers", 1, "--eval-episodes", 1, "--eval-updates", 20)
    cli = start("train", "Endless-v0", "--run-dir", run, *ROLLOUT, *options, program=TOYS)
    cli.wait_until(lambda: (run / "metrics.jsonl").exists(), "first row")
    time.sleep(6)
    os.kill(cli.process.pid, signal.SIGINT)
    assert cli.end() == 130, cli.stderr.read_text()
    assert env_steps(run) == 20 * 10
