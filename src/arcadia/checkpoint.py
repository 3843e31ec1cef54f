"""Checkpoints: safetensors with JSON inside. Nothing is pickled, and nothing that a file says is trusted."""

import contextlib
import ctypes
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import arcadia
from arcadia.errors import UserError
from arcadia.files import parse_json, write_atomically
from arcadia.metrics import MAX_FIGURE
from arcadia.parameters import ENV_STEPS, SharedState, Snapshot

CHECKPOINTS_KEPT = 3
MAX_BYTES = 2**32  # of a checkpoint; none is read that is larger
MAX_PROGRESS_BYTES = 2**16
MAX_COUNT = 2**53
_COUNTS = ("restarts", "skipped_updates")


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
    write_atomically(path, [safetensors.torch.save(tensors, metadata)])
    _give_memory_back()


def _give_memory_back() -> None:
    """Return what the copies took to the system, which glibc does now and then, so that memory seems to grow."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


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
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes are more than any checkpoint has")
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            _check_layout({name: file.get_slice(name) for name in names})
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata()
        text = metadata["progress"]
        if len(text) > MAX_PROGRESS_BYTES or _digest(tensors, text) != metadata["sha256"]:
            raise ValueError("its checksum differs")
        progress = parse_json(text)
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
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:200]})") from None
    counters = checkpoint.counters
    if not (_is_progress(progress) and bool(((counters >= 0) & (counters < MAX_COUNT)).all())):
        raise UserError(f"{path} is not laid out as a checkpoint")
    return checkpoint


def _check_layout(tensors: dict[str, Any]) -> None:
    """Raise ValueError if the header of a file is not that of a checkpoint; nothing of the tensors is read."""
    layout = {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in tensors.items()}
    match layout.pop("parameters"), layout.pop("statistics"), layout.pop("counters"):
        case ("F32", (size,)), ("F64", (_, _)), ("I64", (_, 4)):
            for name, (dtype, shape) in layout.items():
                is_state = name.startswith("optimizer.") and dtype == "F32" and shape[1:] in ((), (size,))
                if not is_state or not shape or not shape[0]:
                    raise ValueError(f"its {name[:50]} is not the optimizer state of one")
        case _:
            raise ValueError("its tensors are not those of one")


def _is_progress(progress: Any) -> bool:
    """Return whether what is known of the progress has the types that it was written with."""
    if not isinstance(progress, dict):
        return False
    returns, record = progress.get("recent_returns", []), progress.get("episode_record", [])
    return (
        _is_number(seconds := progress.get("seconds", 0))
        and 0 <= seconds < MAX_COUNT
        and (progress.get("best_evaluation") is None or _is_number(progress["best_evaluation"]))
        and all(type(count := progress.get(name, 0)) is int and 0 <= count < MAX_COUNT for name in _COUNTS)
        and isinstance(returns, list)
        and all(map(_is_number, returns))
        and isinstance(record, list)
        and len(record) in (0, 2)
        and all(value is None or _is_number(value) for value in record)
    )


def _is_number(value: Any) -> bool:
    """Return whether a value is a score or a time, of which a mean is finite; json reads integers of any size."""
    return isinstance(value, int | float) and abs(value) < MAX_FIGURE


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


def save_best(run: Path, snapshot: Snapshot, score: float) -> None:
    """Keep parameters of an evaluation whose mean score was the best so far.

    Raises:
        OSError: the file cannot be written.
    """
    checkpoint = Checkpoint(
        parameters=torch.from_numpy(snapshot.parameters),
        optimizer_state={},
        statistics=torch.from_numpy(snapshot.statistics)[None],
        counters=torch.tensor([[snapshot.env_steps, snapshot.frames, snapshot.updates, 0]]),
        progress={"best_evaluation": score},
    )
    save_checkpoint(best_checkpoint(run), checkpoint)
