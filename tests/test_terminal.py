"""What a person sees while a run goes on, in terminals of all kinds."""

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from arcadia.terminal import Progress, plain, sparkline, table, workers

PROGRESS = Progress(
    env_steps=123_456_789,
    frames=493_827_156,
    updates=987_654,
    episodes=54_321,
    steps_per_s=2345.6,
    mean_return=-12.34,
    num_returns=100,
    best_evaluation=20.5,
    figures={"entropy": 1.2, "policy_loss": -0.01, "gradient_norm": 0.7},
    seconds=86_400.0,
    seconds_left=3_600.0,
    worker_steps_per_s=[1200.0, 1145.6],
    score_history=[-21.0, -20.0, -12.34],
)


def test_a_sparkline_spans_the_range_of_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 24) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0], 24) == "█▁"
    assert sparkline([3, 3, 3], 24) == "▁▁▁"
    long = sparkline(list(range(1000)), 24)
    assert len(long) == 24
    assert (long[0], long[-1]) == ("▁", "█")


def test_the_speed_of_each_worker() -> None:
    assert workers([1200.0]) == "1,200/s"
    assert workers([1200.0, 1145.6]) == "1,200 + 1,146/s"
    assert workers([900.0, 0.0, 1145.6]) == "3: 0 to 1,146/s"


@pytest.mark.parametrize("rates", [[1200.0, 1145.6], [1234.5] * 16])
def test_every_figure_fits_at_any_width(rates: list[float]) -> None:
    values = ("123,456,789", "493,827,156", "54,321", "-12.34", "20.50", "24:00:00", "1:00:00", workers(rates))
    for width in range(36, 121):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(table(PROGRESS._replace(worker_steps_per_s=rates), width))
        text = capture.get()
        assert all(len(line.rstrip()) <= width for line in text.splitlines())
        for value in values:
            assert value in text, width


def test_a_figure_that_is_not_known_yet_is_a_dash() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(PROGRESS, 80))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["time", "left", "1:00:00", "expl.", "var.", "-"] in lines
    assert ["policy", "loss", "-0.0100", "value", "loss", "-"] in lines


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.parametrize("environment", ["", "NO_COLOR=1 "])
def test_in_a_terminal_of_80_by_24(tmp_path: Path, environment: str) -> None:
    """tmux keeps the screen as a person would see it: one table, below the lines."""
    command = f"{sys.executable} -m arcadia train CartPole-v1 --run-dir run --eval-episodes 2 --total-minutes 1"
    tmux = ["tmux", "-S", str(tmp_path / "socket")]
    start = ["new-session", "-d", "-x", "80", "-y", "24", f"cd {tmp_path} && {environment}{command}"]
    subprocess.run([*tmux, *start], check=True)
    try:
        deadline, screen = time.monotonic() + 60, ""
        while "time left" not in screen or "score" not in screen:
            assert time.monotonic() < deadline, screen
            time.sleep(0.5)
            screen = subprocess.run([*tmux, "capture-pane", "-pe"], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert screen.count("env steps") == screen.count("time left") == 1
    assert ("\x1b[36m" in screen) == (environment == ""), "cyan labels"


def test_the_mean_names_how_many_episodes_it_is_of() -> None:
    assert "mean-100 -12.34" in plain(PROGRESS)
    assert "mean-3 -12.34" in plain(PROGRESS._replace(num_returns=3))
    assert "mean-100 - " in plain(PROGRESS._replace(num_returns=0, mean_return=None))


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    code = (
        "from test_terminal import PROGRESS\nfrom arcadia.terminal import Display\n"
        "with Display('title') as display: display.update(PROGRESS)"
    )
    folder = Path(__file__).parent
    environment = os.environ | {"TERM": "dumb", "PYTHONPATH": str(folder)}
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True, timeout=60)
        os.close(theirs)
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
    assert "env_steps 123,456,789" in shown
