"""Arcadia: asynchronous advantage actor-critic, from a laptop to a cluster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arcadia.api import Agent, evaluate, load, resume, train

__version__ = "0.1.0"
__all__ = ["Agent", "evaluate", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'arcadia' has no attribute {name!r}")
    from arcadia import api  # slow to import

    return getattr(api, name)
