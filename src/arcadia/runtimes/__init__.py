"""Where workers live: `serial` in this process, `hogwild` in processes of their own."""

from arcadia.runtimes.session import resume, train
from arcadia.runtimes.supervise import TrainResult

__all__ = ["TrainResult", "resume", "train"]
