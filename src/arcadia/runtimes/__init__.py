"""Where workers live: `serial` in this process, `hogwild` in processes of their own."""

from arcadia.runtimes.ending import TrainResult
from arcadia.runtimes.session import resume, train

__all__ = ["TrainResult", "resume", "train"]
