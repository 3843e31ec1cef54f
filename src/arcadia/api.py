"""Arcadia from Python: what the command line does, and an agent to play with."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcadia.config import EVALUATION_SEED, EnvConfig, TrainConfig
from arcadia.envs import EnvFactory, TorsoFactory, VectorEnv, checked_spec, find, make_vector_env, with_registration
from arcadia.errors import UserError
from arcadia.evaluation import evaluate_run, load_run_snapshot
from arcadia.models import FlatParameters, build_model, torso_dtype
from arcadia.parameters import Snapshot
from arcadia.player import load_snapshot
from arcadia.processes import can_import_main, check_importable, end_where_imported
from arcadia.recipes import default_recipe
from arcadia.recipes import recipe as find_recipe
from arcadia.run_directory import load_config
from arcadia.runtimes import TrainResult
from arcadia.runtimes import resume as resume_training
from arcadia.runtimes import train as run_training
from arcadia.types import Actions, Observations
from arcadia.validation import with_settings


def train(
    env: str,
    *,
    recipe: str | None = None,
    make_env: EnvFactory = make_vector_env,
    make_torso: TorsoFactory | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a new agent, as `arcadia train` does; the result names the run directory.

    Workers import the script that calls this: it does so under `if __name__ == "__main__":`. Ctrl-C ends training, not
    the script: the result's reason is then "signal".

    Args:
        env: id of the environment, or any name where `make_env` is given.
        recipe: default: our tuned one for the environment.
        make_env: builds environments of your own; a function of a module, for workers import it by name. `env` is then
            a name that no other environment has.
        make_torso: builds a torso of your own instead of the setting `torso`: a class, or a function of a module, that
            takes the shape of an observation and returns a module, [N, *shape] -> [N, size]. Its parameters and inputs
            are of the run's `dtype`: float32 unless that is given. Whoever loads the run gives it again.
        settings: by their names on the command line: seed=2, lr=3e-4, num_steps=20, total_minutes=5, run_dir="runs/x".

    Raises:
        UserError: a setting, the environment or the torso is unusable.
        ProcessError, DivergedError: training failed; a checkpoint has been written.
    """
    end_where_imported()
    if not isinstance(env, str):
        raise UserError(f"env must be the name of an environment, got {env!r}")
    if make_env is not make_vector_env:
        _check_name(env)
        recipe = recipe or "control"
    recipe = recipe or default_recipe(env)
    if make_torso is not None:
        settings["torso"] = "custom"
    config = with_settings(find_recipe(recipe).config, settings | {"env": env})
    return run_training(config, make_env=_for_workers(config, make_env, make_torso))


def resume(
    run: str | Path, *, make_env: EnvFactory = make_vector_env, make_torso: TorsoFactory | None = None, **settings: Any
) -> TrainResult:
    """Continue a run from its newest checkpoint, as `arcadia resume` does.

    Args:
        make_env, make_torso: as the run was trained with.
        settings: those that `arcadia resume` can change, such as total_steps or num_workers.

    Raises:
        UserError: the run, its checkpoint or a setting is unusable.
        ProcessError, DivergedError: as in `train`.
    """
    end_where_imported()
    known = {name for name in inspect.signature(resume_training).parameters if name not in ("run", "make_env")}
    if unknown := settings.keys() - known:
        raise UserError(f"resume cannot change {min(unknown)}; it can change {', '.join(sorted(known))}")
    make_env = _for_workers(load_config(Path(run)), make_env, make_torso)
    return resume_training(Path(run), make_env=make_env, **settings)


def _for_workers(config: TrainConfig, make_env: EnvFactory, make_torso: TorsoFactory | None) -> EnvFactory:
    """Return what builds environments in workers too.

    Raises:
        UserError: workers could not import it.
    """
    if config.runtime.runtime == "hogwild":
        check_importable(make_env=make_env, make_torso=make_torso)
        if make_env is make_vector_env:
            registered = with_registration(config.env.env)
            try:
                check_importable(env=registered)
                make_env = registered
            except UserError:  # workers know what the main module registers as they import it
                if not can_import_main():
                    raise
    return _with_torso(make_env, make_torso)


def _check_name(env: str) -> None:
    """Raise UserError where an environment of the caller's own could be taken for another."""
    try:
        find(env)
    except UserError:
        return
    raise UserError(f"env {env!r} is an environment that Arcadia knows: give yours another name")


@dataclass(frozen=True)
class _WithTorso:
    """Builds environments whose models have a torso of the caller's; workers get it by name."""

    make_env: EnvFactory
    make_torso: TorsoFactory

    def __call__(self, config: EnvConfig, *, num_envs: int, seed: int) -> VectorEnv:
        env = self.make_env(config, num_envs=num_envs, seed=seed)
        env.spec = checked_spec(env)._replace(make_torso=self.make_torso)
        return env


def _with_torso(make_env: EnvFactory, make_torso: TorsoFactory | None) -> EnvFactory:
    return make_env if make_torso is None else _WithTorso(make_env, make_torso)


def evaluate(
    run: str | Path,
    *,
    episodes: int = 100,
    greedy: bool = False,
    best: bool = False,
    num_envs: int = 64,
    seed: int = EVALUATION_SEED,
    env: str | None = None,
    noop_max: int | None = None,
    on_progress: Callable[[int], None] = lambda finished: None,
    make_env: EnvFactory = make_vector_env,
    make_torso: TorsoFactory | None = None,
) -> dict[str, Any]:
    """Play whole games with a run's newest or best parameters; return mean, interval, scores and so on.

    Atari games are spread over processes, which import the script that calls this: it does so under
    `if __name__ == "__main__":`.

    Args:
        env: another id of the run's game, for its protocol, such as sticky actions.
        noop_max: an Atari game starts with fewer than this many random no-ops.
        make_env, make_torso: as the run was trained with.

    Raises:
        UserError: the run or its checkpoint is unusable, an argument is out of range, or a game does not end.
        ProcessError: the environment raised something, or a process died.
        DivergedError: the policy or a score is not finite.
    """
    end_where_imported()
    return evaluate_run(
        Path(run),
        episodes=episodes,
        greedy=greedy,
        best=best,
        num_envs=num_envs,
        seed=seed,
        env=env,
        noop_max=noop_max,
        on_progress=on_progress,
        make_env=_with_torso(make_env, make_torso),
    ).result


def load(
    run: str | Path,
    *,
    best: bool = False,
    seed: int = 0,
    make_env: EnvFactory = make_vector_env,
    make_torso: TorsoFactory | None = None,
) -> "Agent":
    """Return the agent of a run, with its newest or best parameters.

    Raises:
        UserError: the run or its checkpoint is unusable.
    """
    config = load_config(Path(run))
    snapshot = load_run_snapshot(Path(run), best=best)[1]
    return Agent(config, snapshot, seed=seed, make_env=_with_torso(make_env, make_torso))


class Agent:
    """A trained policy that acts on one observation at a time.

    Attributes:
        observation_shape: of what `act` takes; of Atari a stack of frames, made as the run's configuration says.
    """

    def __init__(self, config: TrainConfig, snapshot: Snapshot, *, seed: int, make_env: EnvFactory) -> None:
        self._env = make_env(config.env, num_envs=1, seed=seed)  # for its shapes and its own numbering of actions
        self.observation_shape = self._env.spec.observation_shape
        self._model = build_model(config.model, self._env.spec, seed=0, dtype=torso_dtype(config.model))
        load_snapshot(snapshot, self._model, FlatParameters(self._model))
        self._inputs = torch.empty(1, 1, *self._model.input_shape, dtype=self._model.dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far: the next observation is a new one's first."""
        self._state = self._model.initial_state(1)

    @torch.no_grad()
    def act(self, observation: Observations, *, greedy: bool = False) -> Actions:
        """Return an action as the environment's own `step` takes it: [] int64 or, if continuous, [D].

        Args:
            observation: [*observation_shape], raw; images may have their channels last.
            greedy: the most probable action instead of a sampled one.

        Raises:
            UserError: the observation has another shape, or is not finite.
        """
        given = observation = np.asarray(observation)
        if given.ndim == 3 and given.shape != self.observation_shape:
            observation = np.moveaxis(given, -1, 0)
        if observation.shape != self.observation_shape:
            raise UserError(f"observation must have shape {self.observation_shape}, got {given.shape}")
        if not np.isfinite(observation).all():
            raise UserError(f"observation must be finite, got {observation.tolist()}")
        self._model.normalizer.apply(observation[None], self._inputs[0])
        output = self._model(self._inputs, torch.zeros(1, 1, dtype=torch.bool), self._state)
        self._state = output.state
        action = output.policy.mode() if greedy else output.policy.sample(self._generator)  # [1, 1] or [1, 1, D]
        native: Actions = self._env.native_action(action[0].numpy())[0]
        return native
