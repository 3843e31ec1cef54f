"""Files of a run: written whole or not at all, read within limits."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**20
RETRY_SECONDS = 1.0


def write_atomically(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file, part by part, through a temporary name, synced to disk before it gets its own."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # of file systems that sync no folder
            raise
    finally:
        os.close(directory)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, larger than MAX_JSON_BYTES or nested too deeply.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
    return parse_json(data)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class LineWriter:
    """Appends lines to a file. What cannot be written, as on a full disk, is kept and tried again; no line is torn.

    Args:
        warn: called with one line of text when writing fails, and when it works again.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._name, self._warn = path.name, warn
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._size = self._file.tell()  # of whole lines
        self._waiting: list[bytes] = []
        self._next_try: float | None = None  # monotonic seconds; None while all is well

    def write(self, line: str) -> None:
        """Append a line."""
        self._waiting.append(line.encode() + b"\n")
        if self._next_try is None or time.monotonic() >= self._next_try:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._waiting)
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            if self._next_try is None:
                self._warn(f"{self._name} cannot be written ({error.strerror}): its lines are kept until it can")
            self._next_try = time.monotonic() + RETRY_SECONDS
            return
        self._size += len(data)
        self._waiting.clear()
        if self._next_try is not None:
            self._warn(f"{self._name} is written again")
            self._next_try = None

    def sync(self) -> None:
        """See to it that what is written survives a loss of power."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Try once more to write what is left, and close."""
        if self._waiting:
            self._flush()
        if self._waiting:
            self._warn(f"{self._name} lacks its last {len(self._waiting)} lines")
        self._file.close()
