"""What a child process is given, and what it leaves."""

import atexit
import os
import random
from pathlib import Path

import numpy as np
import torch
from command import slice_ns

from arcadia import fork_server
from arcadia.child import Context, Death
from arcadia.parameters import share
from arcadia.processes import Children


def say(context: Context, variable: str) -> None:
    context.send((os.environ.get(variable), np.random.random(), random.random()))


def register(context: Context, path: Path) -> None:
    atexit.register(path.touch)
    context.send(None)


def compute(context: Context, number: float) -> None:
    context.send(float(torch.tensor(number) * 1))


def take_turns(context: Context, niceness: int) -> None:
    os.nice(niceness)
    fork_server.become_child(dict(os.environ))
    context.send((slice_ns(os.getpid()), os.getpriority(os.PRIO_PROCESS, 0)))


def run(job, argument, count: int) -> list:
    """Return what `count` children send."""
    stop, heartbeats = share(torch.zeros(1, dtype=torch.bool)), share(torch.zeros(count, dtype=torch.int64))
    children = Children(stop, heartbeats, 60.0, is_over=lambda: True)
    for index in range(count):
        children.start(index, f"child-{index}", job, (argument,))
    messages = []
    while len(messages) < count:
        messages += children.receive(60.0)
    messages += children.end()
    assert not any(isinstance(message, Death) for message in messages), messages
    return messages


def test_children_have_their_parents_environment_of_the_moment_and_random_numbers_of_their_own(monkeypatch):
    run(say, "LEVEL", 1)  # the server has begun
    monkeypatch.setenv("LEVEL", "2")
    levels, of_numpy, of_python = zip(*run(say, "LEVEL", 3), strict=True)
    assert levels == ("2", "2", "2")
    assert len(set(of_numpy)) == len(set(of_python)) == 3


def test_children_take_numbers_as_zero_that_processors_are_slow_at():
    assert run(compute, 1e-39, 1) == [0.0]
    assert run(compute, 1e-37, 1) != [0.0]


def test_what_a_child_wanted_done_at_its_end_is_done(tmp_path):
    run(register, tmp_path / "closed", 1)
    assert (tmp_path / "closed").exists()


def test_children_run_for_longer_at_a_time_and_keep_their_priority():
    own = slice_ns(os.getpid())
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    assert run(take_turns, 0, 1) == [(50_000_000, niceness)]
    assert run(take_turns, 3, 1) == [(50_000_000, niceness + 3)]
    assert slice_ns(os.getpid()) == own < 50_000_000
