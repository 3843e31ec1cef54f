"""Run directories: made, locked, described by config.json. What one holds is not trusted."""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arcadia
from arcadia.config import TrainConfig
from arcadia.errors import UserError
from arcadia.files import read_json, write_atomically
from arcadia.validation import config_from_dict

TEMPORARY = (  # what a trainer has not written whole
    ".config.json.tmp",
    ".metrics.jsonl.tmp",
    ".wandb_id.tmp",
    "best/.*.safetensors.tmp",
    "checkpoints/.*.safetensors.tmp",
    "videos/.training-*.tmp.mp4",
)


def make_directory(config: TrainConfig) -> Path:
    """Return a directory for a run that was given none: runs/<env>-<recipe>-<seed>-<time>, and a number if need be."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.env.env.replace('/', '-')}-{config.recipe}-{config.runtime.seed}-{stamp}"
    run, number = Path("runs", name), 1
    while True:
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            if not os.path.lexists(run):  # the folder is a link to nowhere, as new_run says
                return run
            number += 1  # it is of a run that was started in the same second
            run = Path("runs", f"{name}-{number}")
        except OSError:  # new_run says why
            return run


@contextlib.contextmanager
def new_run(run: Path, config: TrainConfig) -> Iterator[None]:
    """Create a run directory and its config.json, and lock it.

    Raises:
        UserError: it holds a run already or cannot be written.
    """
    try:
        for folder in ("checkpoints", "best"):
            (run / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir {run} cannot be written ({error.strerror}): give another --run-dir") from None
    with lock_run(run):
        if (run / "config.json").exists():
            raise UserError(f"run_dir {run} already holds a run: `arcadia resume {run}`, or give another --run-dir")
        write_config(run, config)
        yield


def write_config(run: Path, config: TrainConfig) -> None:
    """Write config.json: the settings, and what they run with here."""
    description = {"config": config.to_dict(), "versions": _versions(), "commit": _commit()}
    write_atomically(run / "config.json", [(json.dumps(description, indent=2) + "\n").encode()])


def load_config(run: Path) -> TrainConfig:
    """Read the configuration of a run.

    Raises:
        UserError: `run` is not a run directory or leads out of itself, or its config.json is damaged.
    """
    path = run / "config.json"
    description = _read_description(run)
    try:
        return config_from_dict(description.get("config"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def not_a_run(run: Path) -> UserError:
    """Return what to say where there is no run."""
    why = "it holds no config.json" if run.is_dir() else "there is no such folder"
    inside = sorted(run.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    advice = f"the newest run in it is {inside[-1].parent}" if inside else "give the --run-dir of `arcadia train`"
    return UserError(f"{run} is not a run directory: {why}; {advice}")


def changed_versions(run: Path) -> list[str]:
    """Return what a run was last trained with that is another here, such as "torch 2.12.0 -> 2.13.0"."""
    before = _read_description(run).get("versions")
    before = before if isinstance(before, dict) else {}
    return [f"{name} {before.get(name)} -> {now}" for name, now in _versions().items() if before.get(name) != now]


def _read_description(run: Path) -> dict[str, Any]:
    _check_entries(run)
    path = run / "config.json"
    try:
        description = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise not_a_run(run) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not isinstance(description, dict):
        raise UserError(f"{path} must hold an object, got {type(description).__name__}")
    return description


ENTRIES = {  # what Arcadia itself reads or writes in a run
    *("config.json", "metrics.jsonl", "lock", "wandb_id", "checkpoints", "best", "tensorboard"),
    *("evaluations", "videos", "report"),
}


def _check_entries(run: Path) -> None:
    """Refuse what would be read or written outside of the run, or never end."""
    root = run.resolve()
    for folder, folders, files in os.walk(run):
        names = {*folders, *files}
        if folder == str(run):
            names &= ENTRIES
            folders[:] = names & {*folders}
        for path in (Path(folder, name) for name in names):
            if path.is_symlink():
                try:
                    is_inside = path.resolve().is_relative_to(root)
                except (OSError, RuntimeError):  # a loop
                    is_inside = False
                if not is_inside:
                    raise UserError(f"{path} is a link that leads out of the run: put there what it points to")
            elif path.exists() and not path.is_file() and not path.is_dir():
                raise UserError(f"{path} is neither a file nor a folder: remove it")


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in a run directory. The system drops the lock when its owner dies.

    The file `lock` stays: another process might be about to lock it.

    Raises:
        UserError: another process has it, or the directory cannot be written.
    """
    try:
        file = open(run / "lock", "a+", errors="replace")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"run_dir {run} cannot be written ({error.strerror}): copy the run to where it can") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).strip()
            raise UserError(f"{run} is being trained by process {owner}: end that first, or wait for it") from None
        except OSError as error:
            warnings.warn(f"{run} cannot be locked ({error.strerror}): start no second training of it", stacklevel=2)
        for pattern in TEMPORARY:  # left by a trainer that was killed
            for temporary in run.glob(pattern):
                temporary.unlink(missing_ok=True)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _versions() -> dict[str, str]:
    import torch  # whoever asks has it; to say that there is no run needs none

    return {
        "arcadia": arcadia.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _commit() -> str | None:
    """Return the git commit of the source tree, if it is one: an installed package may lie in somebody else's."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            result = subprocess.run(
                ["git", "-C", str(here.parent), *command], capture_output=True, text=True, timeout=5, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
