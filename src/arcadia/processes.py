"""All child processes of a run."""

import multiprocessing
import queue
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch import Tensor

from arcadia.child import AWAKE_SECONDS, STOP_SECONDS, Child, End, Inbox
from arcadia.errors import UserError

MAX_WAITING = 100  # messages; then the pipes fill and the children wait


class Children:
    """All children of a run.

    Args:
        stop: [1] bool shared, asks them to end.
        heartbeats: [n] int64 shared, where each counts its signs of life.
        heartbeat_seconds: a child that has shown no sign of life for so long counts as hung.
        is_over: whether a child that ends with exit code 0 is right to.
    """

    def __init__(self, stop: Tensor, heartbeats: Tensor, heartbeat_seconds: float, is_over: Callable[[], bool]) -> None:
        self._stop, self._heartbeats = stop, heartbeats
        self._heartbeat_seconds, self._is_over = heartbeat_seconds, is_over
        self._inbox: Inbox = queue.Queue(MAX_WAITING)
        self._children: dict[str, Child] = {}
        self._last_look = time.monotonic()

    def start(self, index: int, name: str, job: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Start a child, or start one that died again; `index` is its place in `heartbeats`."""
        heartbeat = self._heartbeats[index : index + 1]
        self._children[name] = Child(name, job, arguments, self._stop, heartbeat, self._inbox)
        self._children[name].start()

    def receive(self, timeout: float) -> Iterator[Any]:
        """Wait at most `timeout` seconds for a message, and yield those that are there; a child's death is a Death."""
        now = time.monotonic()
        elapsed, self._last_look = min(now - self._last_look, AWAKE_SECONDS), now
        for child in self._children.values():
            child.watch(elapsed, self._heartbeat_seconds)
        try:
            yield from self._open(*self._inbox.get(timeout=timeout))
            for _ in range(self._inbox.qsize()):
                yield from self._open(*self._inbox.get_nowait())
        except queue.Empty:
            return

    def _open(self, child: Child, message: Any) -> Iterator[Any]:
        if not isinstance(message, End):
            yield message
            return
        del self._children[child.name]
        code = child.bury(time.monotonic() + STOP_SECONDS)
        if code != 0 or not self._is_over():
            yield child.death(code)

    def end(self) -> Iterator[Any]:
        """End all children; yield what they still had to say. Interrupted, kill them."""
        self._stop[0] = True
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while not all(child.is_read for child in self._children.values()) or not self._inbox.empty():
                if time.monotonic() > deadline:
                    self.kill()
                if time.monotonic() > deadline + STOP_SECONDS:
                    break
                try:
                    _, message = self._inbox.get(timeout=0.05)
                except queue.Empty:
                    continue
                if not isinstance(message, End):
                    yield message
            for child in self._children.values():
                child.bury(deadline)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End all children now."""
        for child in self._children.values():
            child.kill()


def can_import_main() -> bool:
    """Return whether children can import the main module, as multiprocessing itself tells: a notebook's they cannot."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or hasattr(main, "__file__")


def check_importable(**factories: object) -> None:
    """Raise UserError where a child could not import a factory by its name."""
    for name, factory in factories.items():
        try:
            pickled = bytes(ForkingPickler.dumps(factory))
        except Exception:
            raise UserError(f"{name} must be a function of a module, not a lambda or a local one") from None
        if not can_import_main() and b"__main__" in pickled:  # the name of its module
            raise UserError(f"{name}: workers cannot import from a notebook or a prompt: put it in a .py file")


def end_where_imported() -> None:
    """End a child that only imports the script it was started by, which calls Arcadia without a guard.

    Its parent then says what the script lacks.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself tells
        sys.exit(1)
