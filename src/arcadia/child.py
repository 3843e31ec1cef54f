"""A child process that may crash, be killed or hang at any moment.

It has one pipe to the main process and otherwise only plain shared tensors, so that one killed anywhere blocks
nobody (a queue's lock would) and leaves nothing behind. A thread reads the pipe: a child stopped in the middle of a
message holds up nobody either.
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from arcadia import fork_server
from arcadia.errors import DivergedError, GpuMemoryError, ProcessError, summary_of
from arcadia.stop_signals import stop_signals_blocked

STOP_SECONDS = 3.0  # children that have not ended by then are killed
START_SECONDS = 300.0  # allowed to a child for its imports, its environments' first reset and its model's first use
START_SIGNS = 4  # of life, that it shows before its first step
BREATH_SECONDS = 0.5
SERVER_DIED = 255  # the exit code that multiprocessing makes up
MAX_TRACEBACK = 10_000  # characters
AWAKE_SECONDS = 1.0  # a longer pause between two looks is this process's own, asleep or stopped


class Failure(NamedTuple):
    """Sent by a child before it dies of an exception."""

    why: str  # one line
    traceback: str
    is_final: bool  # another start would fail in the same way


class Death(NamedTuple):
    """How a child ended that should not have."""

    name: str
    why: str  # one line
    traceback: str  # empty unless it was an exception
    is_final: bool
    is_external: bool  # killed by somebody else
    signs_of_life: int  # since its start


class Context(NamedTuple):
    """What a child's job is given first."""

    send: Callable[[Any], None]  # a message to the main process
    should_stop: Callable[[], bool]
    beat: Callable[[], None]  # a sign of life


class End(NamedTuple):
    """Put in place of a message by the thread that reads a pipe, at its end."""


Inbox = queue.Queue[tuple["Child", Any]]


class Child:
    """A job in a process of its own.

    Args:
        name: shown to users.
        job: called in the process as job(context, *arguments); importable by name.
        stop: [1] bool shared, asks it to end.
        heartbeat: [1] int64 shared, where it counts its signs of life.
        inbox: gets (child, message), and (child, End()) when it has ended.
    """

    def __init__(
        self,
        name: str,
        job: Callable[..., None],
        arguments: tuple[object, ...],
        stop: Tensor,
        heartbeat: Tensor,
        inbox: Inbox,
    ) -> None:
        self.name = name
        self._heartbeat, self._inbox = heartbeat, inbox
        self._first_beat = self._last_beat = int(heartbeat[0])
        self._silent_seconds = 0.0
        self._failure: Failure | None = None
        self._is_hung = False
        context: Any = torch.multiprocessing.get_context(fork_server.METHOD)
        self._receiver, self._sender = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_main,
            args=(dict(os.environ), job, self._sender, stop, heartbeat, arguments),
            name=name,
            daemon=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Start the process.

        Raises:
            ProcessError: it cannot be.
        """
        for is_last in (False, True):
            try:
                fork_server.start()
                with stop_signals_blocked():
                    self._process.start()
                    self._sender.close()  # so that the pipe ends when the child does
                    self._reader.start()
                return
            except (EOFError, OSError) as error:
                if is_last:
                    raise ProcessError(f"{self.name} could not be started: {summary_of(error)}") from None
                time.sleep(BREATH_SECONDS)  # the server may have been killed a moment ago

    def _read(self) -> None:
        try:
            # The sentinel too: a process that the child started may hold the pipe open.
            while self._receiver in wait([self._receiver, self._process.sentinel]):
                message = self._receiver.recv()
                if isinstance(message, Failure):
                    self._failure = message
                else:
                    self._inbox.put((self, message))
        except (EOFError, OSError):  # OSError: the end came within a message
            pass
        finally:
            self._inbox.put((self, End()))

    def watch(self, elapsed: float, heartbeat_seconds: float) -> None:
        """Kill the process if it has shown no sign of life for too long; `elapsed` seconds since the last look."""
        beat = int(self._heartbeat[0])
        self._silent_seconds = self._silent_seconds + elapsed if beat == self._last_beat else 0.0
        self._last_beat = beat
        has_begun = self.signs_of_life > START_SIGNS
        allowed = heartbeat_seconds if has_begun else max(START_SECONDS, heartbeat_seconds)
        if self._silent_seconds > allowed and not self._is_hung:
            self._is_hung = True
            self._process.kill()

    @property
    def signs_of_life(self) -> int:
        """How often it has shown that it is alive since its start."""
        return self._last_beat - self._first_beat

    @property
    def is_read(self) -> bool:
        """True once everything that it sent is in the inbox."""
        return not self._reader.is_alive()

    def kill(self) -> None:
        """End the process now."""
        with contextlib.suppress(ValueError, AttributeError):  # it is buried already, or was never started
            self._process.kill()

    def bury(self, deadline: float) -> int:
        """Wait for the end until `deadline` (monotonic seconds), then kill; return the exit code."""
        if self._process.pid is None:  # its start was interrupted
            return 0
        self._process.join(max(0.0, deadline - time.monotonic()))
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        self._reader.join(STOP_SECONDS)
        if self.is_read:
            self._process.close()
            self._receiver.close()
        return code

    def death(self, code: int) -> Death:
        """Describe the end of a process that ended with this exit code."""
        self._last_beat = int(self._heartbeat[0])
        is_external = False
        if self._failure is not None:
            why, text, is_final = self._failure
            return Death(self.name, why, text, is_final, is_external, self.signs_of_life)
        if self._is_hung:
            why = f"showed no sign of life for {self._silent_seconds:.0f} s (heartbeat_seconds) and was killed"
        elif code < 0:
            why = f"was killed by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                why += " (out of memory?)"
            is_external = -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        elif code == SERVER_DIED:
            why, is_external = "ended with the server that had forked it", True
        else:
            why = f"exited with code {code}"
            if not self.signs_of_life:
                why += ' before it began (a script calls Arcadia under `if __name__ == "__main__":`)'
        return Death(self.name, why, "", False, is_external, self.signs_of_life)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _main(
    environment: dict[str, str],
    job: Callable[..., None],
    connection: Connection,
    stop: Tensor,
    heartbeat: Tensor,
    arguments: tuple[object, ...],
) -> None:
    """Main function of every child: threads, errors, the parent's end."""
    fork_server.become_child(environment)
    np.random.seed()  # of its own, for environments that draw from it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as threads.flushed_denormals
    os.set_inheritable(connection.fileno(), False)
    beats = heartbeat.numpy()

    def beat() -> None:
        beats[0] += 1

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)

    beat()
    try:
        job(Context(send, lambda: bool(stop[0]), beat), *arguments)
    except (Exception, SystemExit) as error:  # reported to the parent, which decides
        send(_failure(error))
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # of environments; multiprocessing's own end forgets them before Python 3.13


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, DivergedError | GpuMemoryError):
        return Failure(f"{'training diverged' if isinstance(error, DivergedError) else 'failed'}: {error}", "", True)
    return Failure(f"failed: {summary_of(error)}", traceback.format_exc()[-MAX_TRACEBACK:], False)
