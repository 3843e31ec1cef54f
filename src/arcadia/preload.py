"""Imported by the fork server alone: what child processes need."""

import contextlib

from arcadia.fork_server import end_with_parent

end_with_parent()  # before the imports that take long

import torch._dynamo  # noqa: E402, F401 - PyTorch's optimizers import it as they are built

import arcadia.runtimes.hogwild  # noqa: E402

with contextlib.suppress(ImportError):  # an extra
    import arcadia.envs.atari  # noqa: F401
