"""Environments behind one interface. Only this package imports gymnasium and ale_py."""

from arcadia.envs.factory import make_vector_env, spec_of
from arcadia.envs.interface import EnvFactory, EnvSpec, VectorEnv

__all__ = ["EnvFactory", "EnvSpec", "VectorEnv", "make_vector_env", "spec_of"]
