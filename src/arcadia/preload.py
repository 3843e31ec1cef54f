"""Imported by the fork server alone: what child processes need."""

import contextlib
import sys

sys.path[:] = filter(None, sys.path)  # without the working directory, whose modules are not meant

from arcadia.fork_server import end_with_parent  # noqa: E402

end_with_parent()  # before the imports that take long

import arcadia.runtimes.hogwild  # noqa: E402

with contextlib.suppress(Exception):  # an extra, perhaps broken: who needs it is told
    import arcadia.envs.atari  # noqa: F401
