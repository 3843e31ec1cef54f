"""The package's own rules: imports form layers, and what only some modules may touch."""

import ast
from pathlib import Path

import pytest

import arcadia

ROOT = Path(arcadia.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 320

# A module or package may import those of earlier layers only; within a package, imports must not form a cycle.
LAYERS = (
    ("arcadia",),
    ("distributions", "errors", "stop_signals", "threads"),
    ("devices", "fork_server"),
    ("types", "stopwatch", "child"),
    ("processes",),
    ("config", "files", "published"),
    ("validation",),
    ("envs",),
    ("models", "returns", "optimizers", "schedules", "recipes", "terminal", "run_directory"),
    ("rollout", "loss", "metrics"),
    ("gradients", "parameters"),
    ("worker", "checkpoint"),
    ("player",),
    ("games",),
    ("evaluation", "video"),
    ("films",),
    ("runtimes", "report", "speed"),
    ("bench", "api", "preload"),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def _module(file: Path) -> str:
    """Return a dotted name: arcadia/envs/gym.py is arcadia.envs.gym, arcadia/envs/__init__.py is arcadia.envs."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(file): file for file in FILES}


def _imports(file: Path) -> set[str]:
    """Return the dotted names of all imported modules, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            base = node.module or ""
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            # `from arcadia.envs import atari` imports a module, `from arcadia.envs import EnvSpec` a name
            names |= {name for name in submodules if name in MODULES} or {base}
            names |= {name for name in submodules if name in ("torch.multiprocessing", "torch.load")}
    return names


IMPORTS = {module: _imports(file) for module, file in MODULES.items()}
IMPORTS["arcadia"] -= {"arcadia.api"}  # whose names the package hands on, when they are first used


def _part(module: str) -> str:
    """Return the first name under arcadia: arcadia.envs.gym belongs to envs."""
    return module.split(".")[1] if "." in module else module


def _importers(*packages: str) -> set[str]:
    """Return the modules that import one of these packages or something in them."""
    return {
        module
        for module, names in IMPORTS.items()
        if any(name == package or name.startswith(f"{package}.") for name in names for package in packages)
    }


def _within(part: str) -> set[str]:
    """Return the modules of one part of the package."""
    return {module for module in MODULES if _part(module) == part}


def test_the_rules_see_the_whole_package() -> None:
    assert len(FILES) > 30
    assert {_part(module) for module in MODULES} <= set(LAYER_OF), "give the new module a layer"
    assert "arcadia.envs.atari" in IMPORTS["arcadia.envs.factory"]  # an import inside a function
    assert _importers("torch") >= {"arcadia.loss", "arcadia.returns"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_earlier_layers_only(module: str) -> None:
    for name in IMPORTS[module]:
        if name.split(".")[0] != "arcadia" or _part(name) == _part(module):
            continue
        assert LAYER_OF[_part(name)] < LAYER_OF[_part(module)], f"{module} must not import {name}"


def test_imports_within_packages_form_no_cycle() -> None:
    unseen = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}
    while unseen:
        free = {module for module, names in unseen.items() if not names & unseen.keys()}
        assert free, f"these modules import each other: {sorted(unseen)}"
        unseen = {module: names for module, names in unseen.items() if module not in free}


def test_only_envs_imports_environments() -> None:
    importers = _importers("gymnasium", "ale_py", "cv2", "pybullet", "pybullet_envs_gymnasium")
    assert importers
    assert importers <= _within("envs")


def test_ale_py_is_imported_in_one_module() -> None:
    assert _importers("ale_py") == {"arcadia.envs.emulator"}


def test_only_the_cluster_runtime_imports_ray() -> None:
    assert _importers("ray") <= {"arcadia.runtimes.ray"}


def test_processes_are_started_in_one_module_and_where_speed_is_measured() -> None:
    assert _importers("multiprocessing", "torch.multiprocessing") == {
        "arcadia.child",
        "arcadia.fork_server",
        "arcadia.processes",
        "arcadia.stop_signals",
        "arcadia.speed",
    }


def test_threads_only_read_from_processes() -> None:
    assert _importers("threading", "concurrent") == {"arcadia.child", "arcadia.cli"}, "the latter for their errors"


def test_nothing_pickles() -> None:
    assert not _importers("pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "torch.load")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_loads_or_saves_through_pickle(module: str) -> None:
    unsafe = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("importlib", "import_module")}
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in unsafe, f"{module}, line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "__import__"), f"{module}, line {node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES
