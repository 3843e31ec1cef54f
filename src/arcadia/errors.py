"""What goes wrong, by who can mend it."""

import traceback
from pathlib import Path


class UserError(ValueError):
    """Bad input from the user. The message is one line that names the value and the fix."""


class GpuMemoryError(UserError):
    """A GPU has too little memory."""


class DivergedError(RuntimeError):
    """Training cannot go on: NaN or infinity. The message is one line that says where and what to change."""


class ProcessError(RuntimeError):
    """A worker, the evaluator or a player died. The message names it and holds its traceback or signal."""


def summary_of(error: BaseException) -> str:
    """Describe an exception and where it was raised in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
