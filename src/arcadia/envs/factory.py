"""From an environment id to B environments."""

import contextlib
import ctypes
import dataclasses
import difflib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium

from arcadia.config import EnvConfig
from arcadia.envs.gym import GymVectorEnv
from arcadia.envs.interface import Camera, EnvFactory, EnvSpec, VectorEnv
from arcadia.envs.names import AtariName, parse_atari_name, simplify
from arcadia.errors import UserError, summary_of
from arcadia.published import RANDOM_AND_HUMAN

if TYPE_CHECKING:
    from arcadia.envs.atari import Atari

_LIBRARIES = ("gymnasium", "ale_py", "pybullet_envs_gymnasium")  # in whose entry points every process finds their ids
_EXTRAS = {"box2d": "Box2D", "mujoco": "MuJoCo"}  # named in gymnasium's entry points


def find(name: str) -> AtariName | str:
    """Return the Atari protocol or the gymnasium id that `name` stands for.

    Raises:
        UserError: nothing has that name (the message holds the closest ones), or an extra is missing.
    """
    if not name:
        raise UserError("no environment given: name one, such as pong, ALE/Pong-v5 or CartPole-v1")
    if name in _registered():  # before Atari's games: a module may have given its own environment such a name
        return name
    atari_games: dict[str, str] = {}
    try:
        from arcadia.envs import atari

        atari_games = atari.games()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("ale_py", "cv2"):
            raise
        if _looks_like_atari(name):
            raise UserError(_missing("Atari", "atari")) from None
    parsed = parse_atari_name(name, atari_games)
    if parsed is not None:
        return parsed
    if "Bullet" in name:
        _register_pybullet()
    ids = _registered()
    if name in ids:
        return name
    raise UserError(f"unknown environment {name!r}{_closest(name, ids, atari_games)}")


def _registered() -> set[str]:
    """Return the ids that gymnasium knows, but for ale-py's and those that are vector environments in JAX."""
    return {
        key
        for key, spec in gymnasium.registry.items()
        if not key.startswith(("phys2d", "tabular")) and not str(spec.entry_point).startswith("ale_py")
    }


def _missing(package: str, extra: str) -> str:
    return f'{package} environments need an extra: pip install "arcadia[{extra}]"'


def _register_pybullet() -> None:
    """Let gymnasium know PyBullet's environments.

    Raises:
        UserError: PyBullet is not installed.
    """
    try:
        with _silent(2):
            import pybullet  # noqa: F401 - says when it was built
            import pybullet_envs_gymnasium  # noqa: F401 - registers on import
    except ImportError:
        raise UserError(_missing("PyBullet", "pybullet")) from None


def _make_bullet(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Build a PyBullet environment; its first reset starts the engine."""
    env = gymnasium.make(name, **kwargs)
    with _silent(1):
        env.reset()
    return env


def _make_mujoco(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Build a MuJoCo environment, whose engine prints nothing and writes no MUJOCO_LOG.TXT."""
    with contextlib.suppress(ImportError):  # gymnasium says so
        import mujoco

        mujoco.set_mju_user_warning(_warn_of_mujoco)
    return gymnasium.make(name, **kwargs)


def _warn_of_mujoco(message: str) -> None:
    if "deprecated" not in message:  # that is for those who write gymnasium's models
        warnings.warn(f"MuJoCo: {message}", stacklevel=1)


@contextlib.contextmanager
def _silent(descriptor: int) -> Iterator[None]:
    """Let what a library's C code writes to standard output (1) or standard error (2) disappear."""
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
    flush_c = ctypes.CDLL(None).fflush  # a pipe gets what C's own buffer holds later
    flush_c(None)
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        flush_c(None)
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)


def _looks_like_atari(name: str) -> bool:
    if name in gymnasium.registry:
        return False
    known = {simplify(game): game for game in RANDOM_AND_HUMAN}
    return name.islower() or "/" in name or "skip" in name or parse_atari_name(name, known) is not None


def _closest(name: str, ids: set[str], atari_games: dict[str, str]) -> str:
    if name.startswith("ALE/"):
        by_simple = {game: f"ALE/{rom.title().replace('_', '')}-v5" for game, rom in atari_games.items()}
    else:
        by_simple = {simplify(key): key for key in sorted(ids)} | atari_games
    wanted = simplify(name.removeprefix("ALE/").split("-v")[0])
    wanted = wanted.removesuffix("noframeskip").removesuffix("deterministic")
    keys = difflib.get_close_matches(wanted, by_simple, n=3, cutoff=0.6)
    if not keys:
        return ": try pong, ALE/Pong-v5 or CartPole-v1; one of your own: give make_env, from Python"
    return f"; closest: {', '.join(by_simple[key] for key in keys)}"


def make_vector_env(config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
    """Build B environments of `config.env`.

    Args:
        config: id and preprocessing.
        num_envs: B.
        seed: same seed and actions give the same observations.

    Raises:
        UserError: unknown id, unsupported spaces, or a missing extra.
    """
    return _make(config, num_envs, seed)


def make_camera(config: EnvConfig, *, num_envs: int, seed: int) -> Camera:
    """Build environments as `make_vector_env` does that show pictures too. Their observations are others.

    Raises:
        UserError: as `make_vector_env`, or the environment has no pictures to show.
    """
    config = dataclasses.replace(config, color=True, crop="none", frame_stack=1, stagger=False)
    try:
        return _make(config, num_envs, seed, render_mode="rgb_array")
    except TypeError as error:
        raise UserError(f"{config.env} has no pictures to show: {error}") from None


def _make(config: EnvConfig, num_envs: int, seed: int, **kwargs: Any) -> "Atari | GymVectorEnv":
    found = find(config.env)
    if isinstance(found, AtariName):
        from arcadia.envs.atari import Atari

        return Atari(found, config, num_envs=num_envs, seed=seed)
    make = _make_bullet if "Bullet" in found else gymnasium.make
    if ".mujoco" in str(gymnasium.spec(found).entry_point):
        make = _make_mujoco
    limits = [limit for limit in (config.max_episode_steps, gymnasium.spec(found).max_episode_steps) if limit]
    kwargs["max_episode_steps"] = min(limits, default=None)
    try:
        return GymVectorEnv(lambda: make(found, **kwargs), num_envs=num_envs, seed=seed, stagger=config.stagger)
    except (gymnasium.error.Error, ImportError) as error:
        entry_point = str(gymnasium.spec(found).entry_point)
        for extra, package in _EXTRAS.items():
            if isinstance(error, gymnasium.error.DependencyNotInstalled) and f".{extra}" in entry_point:
                raise UserError(_missing(package, extra)) from None
        raise UserError(f"{found} cannot be built: {error}") from None
    except UserError:
        raise
    except Exception as error:  # whatever the environment's own code raises
        if "render_mode" in kwargs and isinstance(error, TypeError):  # make_camera knows why
            raise
        raise UserError(f"{found} cannot be built: {summary_of(error)}") from error


@dataclass(frozen=True)
class _WithRegistration:
    """Builds environments of an id that may be registered in another process only."""

    spec: gymnasium.envs.registration.EnvSpec

    def __call__(self, config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
        gymnasium.registry[self.spec.id] = self.spec
        return make_vector_env(config, num_envs=num_envs, seed=seed)


def with_registration(name: str) -> EnvFactory:
    """Return `make_vector_env`, knowing the gymnasium id `name` as it is registered here, wherever it is called."""
    spec = gymnasium.registry.get(name)
    if spec is None or str(spec.entry_point).startswith(_LIBRARIES):
        return make_vector_env
    return _WithRegistration(spec)


def spec_of(config: EnvConfig, make_env: EnvFactory = make_vector_env) -> EnvSpec:
    """Return the shapes of `config.env`, from one environment that is built and closed.

    Raises:
        UserError: it cannot be built, or `make_env` builds something else.
    """
    env = make_env(config, num_envs=1, seed=0)
    spec = checked_spec(env)
    env.close()
    return spec


def checked_spec(env: VectorEnv) -> EnvSpec:
    """Return the spec of what a caller's `make_env` built.

    Raises:
        UserError: it is no VectorEnv.
    """
    if not isinstance(getattr(env, "spec", None), EnvSpec):
        raise UserError(
            f"make_env must return a VectorEnv, such as arcadia.envs.GymVectorEnv(make, num_envs=num_envs, seed=seed), "
            f"got {type(env).__name__}"
        )
    return env.spec


def game_of(name: str) -> str | None:
    """Return the ROM name of an Atari id, such as "space_invaders"; None for any other name."""
    protocol = _atari(name)
    return None if protocol is None else protocol.game


def repeats_itself(name: str) -> bool:
    """Return whether the same actions always lead to the same game, but for the no-ops at its start.

    True of Atari ids without sticky actions or random frame skip.
    """
    protocol = _atari(name)
    return protocol is not None and protocol.sticky_probability == 0 and isinstance(protocol.frame_skip, int)


def _atari(name: str) -> AtariName | None:
    try:
        found = find(name)
    except UserError:  # an environment of the caller's own
        return None
    return found if isinstance(found, AtariName) else None
