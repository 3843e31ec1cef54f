"""Checkpoints (safetensors with JSON inside) and run directories. Nothing is pickled."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import arcadia
from arcadia.config import TrainConfig
from arcadia.parameters import ENV_STEPS, SharedState
from arcadia.types import UserError
from arcadia.validation import config_from_dict

CHECKPOINTS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run continues from, except games in flight."""

    parameters: Tensor  # [P] float32
    optimizer_state: dict[str, Tensor]  # name -> [C, P] or [C] float32
    statistics: Tensor  # [W, K] float64
    counters: Tensor  # [W, 4] int64
    progress: dict[str, Any]  # JSON: elapsed seconds, recent scores, restarts; of best/ its score

    @property
    def env_steps(self) -> int:
        """Decisions of all workers."""
        return int(self.counters[:, ENV_STEPS].sum())


def take_checkpoint(state: SharedState, progress: dict[str, Any]) -> Checkpoint:
    """Copy the shared state. With workers running it may mix concurrent updates, as Hogwild does."""
    return Checkpoint(
        parameters=state.parameters.clone(),
        optimizer_state={name: tensor.clone() for name, tensor in state.optimizer_state.items()},
        statistics=state.statistics.clone(),
        counters=state.counters.clone(),
        progress=progress,
    )


def restore(state: SharedState, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into freshly created shared state, for the same or another number of workers.

    Raises:
        UserError: the checkpoint is of another model or optimizer.
    """
    if checkpoint.parameters.shape != state.parameters.shape:
        raise UserError(
            f"the checkpoint holds {len(checkpoint.parameters)} parameters, the model in config.json "
            f"has {len(state.parameters)}: use the checkpoint's own config.json"
        )
    if (
        _widths(checkpoint.optimizer_state) != _widths(state.optimizer_state)
        or checkpoint.statistics.shape[1] != state.statistics.shape[1]
    ):
        raise UserError(
            "the checkpoint is of another optimizer or normalisation than config.json: "
            "use the checkpoint's own config.json"
        )
    state.parameters.copy_(checkpoint.parameters)
    for name, tensor in state.optimizer_state.items():
        saved = checkpoint.optimizer_state[name]
        for row in range(len(tensor)):
            tensor[row] = saved[row % len(saved)]
    for target, source in (
        (state.statistics, checkpoint.statistics),
        (state.counters, checkpoint.counters),
    ):
        if len(target) == len(source):
            target.copy_(source)
        else:
            target[0] = source.sum(0)  # only the sum over workers has a meaning


def _widths(optimizer_state: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes without the first dimension, which is the number of copies."""
    return {name: tensor.shape[1:] for name, tensor in optimizer_state.items()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` is either absent, the old one or complete."""
    tensors = {
        "parameters": checkpoint.parameters,
        "statistics": checkpoint.statistics,
        "counters": checkpoint.counters,
    } | {f"optimizer.{name}": tensor for name, tensor in checkpoint.optimizer_state.items()}
    progress = json.dumps(checkpoint.progress)
    metadata = {"progress": progress, "sha256": _digest(tensors, progress), "arcadia": arcadia.__version__}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """Return a checksum of everything that a checkpoint holds."""
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: the file is missing, torn or not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if _digest(tensors, metadata["progress"]) != metadata["sha256"]:
            raise ValueError("its checksum differs")
        progress = json.loads(metadata["progress"])
        checkpoint = Checkpoint(
            parameters=tensors.pop("parameters"),
            statistics=tensors.pop("statistics"),
            counters=tensors.pop("counters"),
            optimizer_state={name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()},
            progress=progress,
        )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from None
    if not (
        isinstance(progress, dict)
        and checkpoint.parameters.dtype == torch.float32
        and checkpoint.parameters.dim() == 1
        and checkpoint.statistics.dtype == torch.float64
        and checkpoint.statistics.dim() == 2
        and checkpoint.counters.dtype == torch.int64
        and checkpoint.counters.dim() == 2
        and checkpoint.counters.shape[1] == 4
        and all(tensor.dim() >= 1 and len(tensor) > 0 for tensor in checkpoint.optimizer_state.values())
    ):
        raise UserError(f"{path} is not laid out as a checkpoint")
    return checkpoint


def load_newest(run: Path) -> tuple[Path, Checkpoint] | None:
    """Read a run's newest checkpoint or, with a warning, the newest that is readable; None before the first.

    Raises:
        UserError: none of them is readable.
    """
    paths = _checkpoints(run)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path)
        except UserError as error:
            if path == paths[0]:
                raise UserError(f"{error}, and there is none before it: delete it to begin anew") from None
            warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
    return None


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in a run directory. The system drops the lock when its owner dies.

    Raises:
        UserError: another process has it, or the directory cannot be written.
    """
    path = run / "lock"
    try:
        file = open(path, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"run_dir {run} cannot be written ({error.strerror}): copy the run to where it can") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            raise UserError(f"{run} is being trained by process {owner}: end that first, or wait for it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file through a temporary name, synced to disk before it gets its own."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def save_periodic(run: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to a run, keeping the newest few."""
    save_checkpoint(run / "checkpoints" / f"{checkpoint.env_steps:012d}.safetensors", checkpoint)
    for old in _checkpoints(run)[:-CHECKPOINTS_KEPT]:
        old.unlink()


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("[0-9]*.safetensors"))


def newest_checkpoint(run: Path) -> Path | None:
    """Return the path of a run's newest checkpoint, or None before the first."""
    checkpoints = _checkpoints(run)
    return checkpoints[-1] if checkpoints else None


def best_checkpoint(run: Path) -> Path:
    """Return the path where a run keeps the parameters of its best evaluation."""
    return run / "best" / "checkpoint.safetensors"


def create_run(run: Path, config: TrainConfig) -> None:
    """Create a run directory and its config.json.

    Raises:
        UserError: it exists already or cannot be written.
    """
    description = {
        "config": config.to_dict(),
        "versions": {
            "arcadia": arcadia.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        "commit": _commit(),
    }
    try:
        if (run / "config.json").exists():
            raise UserError(f"run_dir {run} already holds a run: `arcadia resume {run}`, or give another --run-dir")
        for folder in ("checkpoints", "best"):
            (run / folder).mkdir(parents=True, exist_ok=True)
        write_config(run, description)
    except OSError as error:
        raise UserError(f"run_dir {run} cannot be written ({error.strerror}): give another --run-dir") from None


def write_config(run: Path, description: dict[str, Any]) -> None:
    """Write config.json."""
    write_atomically(run / "config.json", (json.dumps(description, indent=2) + "\n").encode())


def load_config(run: Path) -> TrainConfig:
    """Read the configuration of a run.

    Raises:
        UserError: `run` is not a run directory, or its config.json is damaged.
    """
    path = run / "config.json"
    try:
        description = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run directory: it holds no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    try:
        return config_from_dict(description.get("config") if isinstance(description, dict) else None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _commit() -> str | None:
    """Return the git commit of the source tree, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
