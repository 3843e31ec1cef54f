"""Policy and value networks."""

from arcadia.models.flat import FlatParameters
from arcadia.models.interface import ActorCritic, build_model, torso_dtype
from arcadia.models.normalize import ObservationNormalizer

__all__ = ["ActorCritic", "FlatParameters", "ObservationNormalizer", "build_model", "torso_dtype"]
