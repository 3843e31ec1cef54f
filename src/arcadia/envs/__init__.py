"""Environments behind one interface. Only this package imports gymnasium and ale_py."""

from arcadia.envs.factory import find, game_of, make_camera, make_vector_env, repeats_itself, spec_of
from arcadia.envs.gym import GymVectorEnv
from arcadia.envs.interface import Camera, EnvFactory, EnvSpec, NativeEnv, TorsoFactory, VectorEnv

__all__ = [
    "Camera",
    "EnvFactory",
    "EnvSpec",
    "GymVectorEnv",
    "NativeEnv",
    "TorsoFactory",
    "VectorEnv",
    "find",
    "game_of",
    "make_camera",
    "make_vector_env",
    "repeats_itself",
    "spec_of",
]
