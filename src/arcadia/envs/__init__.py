"""Environments behind one interface. Only this package imports gymnasium and ale_py."""

from arcadia.envs.factory import (
    checked_spec,
    find,
    game_of,
    make_camera,
    make_vector_env,
    repeats_itself,
    spec_of,
    with_registration,
)
from arcadia.envs.gym import GymVectorEnv
from arcadia.envs.interface import Camera, EmulatedEnv, EnvFactory, EnvSpec, TorsoFactory, VectorEnv

__all__ = [
    "Camera",
    "EmulatedEnv",
    "EnvFactory",
    "EnvSpec",
    "GymVectorEnv",
    "TorsoFactory",
    "VectorEnv",
    "checked_spec",
    "find",
    "game_of",
    "make_camera",
    "make_vector_env",
    "repeats_itself",
    "spec_of",
    "with_registration",
]
