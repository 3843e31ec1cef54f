"""Checking settings, and reading them back from config.json."""

import dataclasses
import difflib
import os
import reprlib
from math import inf
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from arcadia.config import TrainConfig
from arcadia.errors import UserError


class _Bounds(NamedTuple):
    low: float
    high: float = inf  # infinity itself is never allowed
    open_low: bool = False
    open_high: bool = False

    def allow(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high) and value < inf

    def __str__(self) -> str:
        text = f"{'>' if self.open_low else '>='} {self.low:g}"
        if self.high == inf:
            return f"{text} and finite"
        return f"{text} and {'<' if self.open_high else '<='} {self.high:g}"


_BOUNDS = {
    "num_envs": _Bounds(1, 4096),
    "total_envs": _Bounds(1, 4096),
    "forced_start_max": _Bounds(1, 1000),
    "max_episode_steps": _Bounds(1, 1e8),
    "frame_stack": _Bounds(1, 16),
    "reward_scale": _Bounds(0, open_low=True),
    "noop_max": _Bounds(0, 1000),
    "core_size": _Bounds(1, 4096),
    "initial_std": _Bounds(0, 100, open_low=True),
    "normalization_steps": _Bounds(1, 1e15),
    "gamma": _Bounds(0, 1),
    "gae_lambda": _Bounds(0, 1),
    "value_coefficient": _Bounds(0),
    "entropy_coefficient": _Bounds(0),
    "entropy_horizon": _Bounds(0, 1, open_low=True),
    "max_grad_norm": _Bounds(0, open_low=True),
    "num_epochs": _Bounds(1, 1000),
    "num_minibatches": _Bounds(1, 4096),
    "clip_range": _Bounds(0, 1, open_low=True),
    "lr": _Bounds(0, 1e6, open_low=True),
    "epsilon": _Bounds(0, open_low=True),
    "beta1": _Bounds(0, 1, open_high=True),
    "beta2": _Bounds(0, 1, open_high=True),
    "alpha": _Bounds(0, 1),
    "num_workers": _Bounds(1, 1024),
    "total_steps": _Bounds(1, 1e15),
    "total_minutes": _Bounds(0, 1e9, open_low=True),
    "total_episodes": _Bounds(1, 1e15),
    "seed": _Bounds(0, 2**63 - 1),
    "checkpoint_seconds": _Bounds(0, 1e9, open_low=True),
    "eval_episodes": _Bounds(0, 1000),
    "eval_cpu_share": _Bounds(0, 1, open_low=True),
    "eval_updates": _Bounds(1, 1e15),
    "video_updates": _Bounds(1, 1e15),
    "max_restarts": _Bounds(0, 1e9),
    "heartbeat_seconds": _Bounds(0, 1e9, open_low=True),
}


MAX_LAYERS = 16
MAX_ROLLOUT = 2**20  # rows


def validate(config: TrainConfig) -> None:
    """Check every value and the combinations that cannot work.

    Raises:
        UserError: names the field, its value and what would be accepted.
    """
    for section in (config.env, config.model, config.loss, config.optimizer, config.runtime):
        for name, value in vars(section).items():
            if name in _BOUNDS and value is not None and not _BOUNDS[name].allow(value):
                raise UserError(f"{name} must be {_BOUNDS[name]}, got {_shown(value)}")
    env, loss, runtime = config.env, config.loss, config.runtime
    for name, values, bounds in (
        ("hidden_sizes", config.model.hidden_sizes, _Bounds(1, 4096)),
        ("num_steps", runtime.num_steps, _Bounds(1, 100_000)),
        ("gpu_ids", runtime.gpu_ids, _Bounds(0, 1023)),
        ("frame_size", env.frame_size, _Bounds(1, 1000)),
        ("crop_rows", env.crop_rows, _Bounds(0, 1000)),
        ("forced_actions", env.forced_actions, _Bounds(0, 17)),
    ):
        for value in values:
            if not bounds.allow(value):
                raise UserError(f"{name} must be {bounds} each, got {_shown(value)}")
    if len(config.model.hidden_sizes) > MAX_LAYERS:
        raise UserError(f"hidden_sizes must be at most {MAX_LAYERS} layers, got {len(config.model.hidden_sizes)}")
    rows = max(runtime.num_steps, default=0) * config.envs_per_worker
    if rows > MAX_ROLLOUT:
        raise UserError(f"num_steps x num_envs must be at most {MAX_ROLLOUT:,}, got {rows:,}: lower one of them")
    for name, text in (("recipe", config.recipe), ("env", env.env)):
        if not text.isprintable():
            raise UserError(f"{name} must be a name, got {_shown(text)}")
    if not runtime.num_steps:
        raise UserError("num_steps is empty: give one or more, such as --num-steps 20")
    if env.crop_rows[0] >= min(env.crop_rows[1], 210):
        raise UserError(f"crop_rows must rise and start below 210, got {env.crop_rows[0]} {env.crop_rows[1]}")
    for name, number in (("stop_score", runtime.stop_score), ("reward_floor", env.reward_floor)):
        if number is not None and not abs(number) < 1e15:
            raise UserError(f"{name} must lie between -1e15 and 1e15, got {_shown(number)}")
    if runtime.video_updates is not None and not runtime.eval_episodes:
        raise UserError("video_updates needs the evaluator, which makes the videos: give eval_episodes of 1 or more")
    if loss.num_epochs * loss.num_minibatches > 1 and loss.clip_range is None:
        raise UserError(
            f"num_epochs {loss.num_epochs} with num_minibatches {loss.num_minibatches} reuses data: "
            "give a clip_range, such as --clip-range 0.2"
        )


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """Return `config` with settings by the names they have on the command line, such as lr or num_steps.

    Raises:
        UserError: names an unknown setting (and the closest one), or a value that is unusable.
    """
    if "total_envs" in settings:
        settings = {"num_envs": None} | settings  # in place of the recipe's
    data = config.to_dict()
    sections = [section for section in data.values() if isinstance(section, dict)]
    for name, value in settings.items():
        section = next((section for section in sections if name in section), None)
        if section is None:
            known = [key for section in sections for key in section]
            closest = difflib.get_close_matches(name, known, n=1) or ["see `arcadia train --help`"]
            raise UserError(f"unknown setting {name!r}; closest: {closest[0]}")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, np.generic):
            value = value.item()
        section[name] = (value,) if isinstance(section[name], tuple) and isinstance(value, int) else value
    return config_from_dict(data)


def config_from_dict(data: Any) -> TrainConfig:
    """Rebuild a TrainConfig from `to_dict()`, checking names and types (for config.json).

    Raises:
        UserError: names an unknown, missing or mistyped field.
    """
    config = _from_dict(TrainConfig, data, "config")
    assert isinstance(config, TrainConfig)
    validate(config)
    return config


def _from_dict(cls: type, data: Any, where: str) -> object:
    if not isinstance(data, dict):
        raise UserError(f"{where} must be an object, got {type(data).__name__}")
    hints = get_type_hints(cls)
    for name in data:
        if name not in hints:
            raise UserError(f"{where} has an unknown field {_shown(name)}")
    # A run that is older than a setting was made with its default.
    has_default = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    values = {}
    for name, hint in hints.items():
        if name in data:
            values[name] = _convert(hint, data[name], f"{where}.{name}")
        elif name not in has_default or dataclasses.is_dataclass(hint):
            raise UserError(f"{where} lacks the field {name!r}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _from_dict(hint, value, where)
    if get_origin(hint) is tuple:
        length = None if Ellipsis in get_args(hint) else len(get_args(hint))
        is_sequence = isinstance(value, (list, tuple)) and len(value) == (length or len(value))
        if is_sequence and all(type(item) is int for item in value):
            return tuple(value)
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{where} must be one of {', '.join(get_args(hint))}, got {_shown(value)}")
    else:
        allowed = get_args(hint) or (hint,)
        if type(value) in allowed or (float in allowed and type(value) is int and abs(value) < 2**53):
            return value
    raise UserError(f"{where} must be {_kind(hint)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _kind(hint: Any) -> str:
    """Return a type as people write it: int, float or none, a list of int."""
    if get_origin(hint) is tuple:
        return f"a list of {get_args(hint)[0].__name__}"
    return " or ".join("none" if kind is type(None) else kind.__name__ for kind in get_args(hint) or (hint,))
