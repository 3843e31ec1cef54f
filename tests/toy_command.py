"""`arcadia` with the toy environments registered in gymnasium; workers import this file too.

Usage: python toy_command.py [--largest-file BYTES] COMMAND ...
"""

import resource
import sys

import gymnasium
import toy_envs

from arcadia.cli import main

for name in ("Crash", "Endless", "Late", "Misshapen", "Broken"):
    gymnasium.register(f"{name}-v0", getattr(toy_envs, name), disable_env_checker=True)

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--largest-file":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(arguments[1]), int(arguments[1])))
        arguments = arguments[2:]
    sys.exit(main(arguments))
