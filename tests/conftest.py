"""Settings of all tests, and what several files use."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command import Cli

torch.set_num_threads(1)  # small tensors: threads only cost time, most of all on a busy machine


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Cli]]:
    """Start `arcadia` processes; whatever is left of them afterwards is killed."""
    started: list[Cli] = []

    def start_one(*arguments: object, program: list[str] | None = None) -> Cli:
        started.append(Cli([str(argument) for argument in arguments], tmp_path, program))
        return started[-1]

    yield start_one
    for cli in started:
        for pid in cli.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        cli.process.wait()
