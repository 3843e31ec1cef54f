"""`arcadia` as a process of its own, with all its descendants."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from arcadia.checkpoint import newest_checkpoint

PATIENCE = 120.0  # seconds; a machine that is busy with other things starts processes slowly
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


class Cli:
    """`arcadia` in a process of its own, with a mark in the environment that all its descendants inherit."""

    def __init__(self, arguments: list[str], folder: Path, program: list[str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.shared_memory = shared_memory()
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        with open(self.stdout, "w") as out, open(self.stderr, "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ["-m", "arcadia"]), *arguments],
                cwd=folder,
                stdout=out,
                stderr=err,
                env=os.environ | {"ARCADIA_TEST_MARK": self.mark},
                start_new_session=True,
            )

    def family(self) -> list[int]:
        """Return the process ids of `arcadia` and all its descendants, oldest first."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile
                continue
        return sorted(found)

    def workers(self) -> list[int]:
        """Return the process ids of the children that train or evaluate, oldest first."""
        server = fork_server(self.process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            return [] if server is None else sorted(child.pid for child in server.children())
        return []

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.stderr.read_text()}"
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE:.0f} s: {self.stdout.read_text()}"
            time.sleep(0.05)

    def wait_for_learning(self, run: Path) -> None:
        """Wait for a checkpoint after the first update."""
        self.wait_until(lambda: (newest := newest_checkpoint(run)) is not None and int(newest.stem) > 0, "checkpoint")

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def assert_nothing_is_left(self, seconds: float = 1.0) -> None:
        deadline = time.monotonic() + seconds
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes live on"
        deadline = time.monotonic() + PATIENCE
        while (left_files := shared_memory() - self.shared_memory) and time.monotonic() < deadline:
            time.sleep(0.5)  # another test, which runs beside this one, may have some for a while
        assert not left_files, "files in /dev/shm"


def fork_server(pid: int) -> psutil.Process | None:
    """Return the fork server of a process or of one that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):  # parents before their children
            with contextlib.suppress(psutil.NoSuchProcess):
                if "forkserver" in " ".join(child.cmdline()):
                    return child
    return None


def slice_ns(pid: int) -> int:
    """Return how long Linux runs a process at a time; skips the test where it does not say."""
    path = Path(f"/proc/{pid}/sched")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(line.split()[-1]) for line in lines if line.startswith("se.slice ")]
    if not found:
        pytest.skip("Linux from 6.12 on says for how long it runs a process")
    return found[0]


def shared_memory() -> set[str]:
    """Return what torch and multiprocessing have in /dev/shm."""
    folder = Path("/dev/shm")
    names = os.listdir(folder) if folder.exists() else []
    return {name for name in names if name.startswith(("torch_", "sem.", "psm_", "mp-", "pym-"))}
