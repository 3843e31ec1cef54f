"""The command line: arcadia train | resume | eval | play | report | recipes | bench."""

import contextlib
import os
import sys
import threading
import warnings
from types import FrameType

from arcadia.stop_signals import stop_signals_handled

USAGE = """usage: arcadia COMMAND ...

Asynchronous advantage actor-critic.

commands:
  train ENV      train an agent: arcadia train pong
  resume RUN     continue a run from its newest checkpoint
  eval RUN       play whole games with a trained agent and print the scores
  play RUN       watch a trained agent: a video or a window
  report RUN...  write a page with curves, scores and videos of one or more runs
  recipes        list the named settings; `arcadia recipes NAME` shows one
  bench ENV      measure training speed against the environments' own

`arcadia COMMAND --help` lists every option with its default and unit.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with stop_signals_handled(_end):
        return _run(arguments)


def _end(number: int, frame: FrameType | None) -> None:
    _say("interrupted")
    raise SystemExit(128 + number)


def _run(arguments: list[str]) -> int:
    if os.environ.get("NO_COLOR"):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"  # tyro reads it as it is imported
    import arcadia
    from arcadia.cli import bench, play, recipes, report, train
    from arcadia.errors import DivergedError, ProcessError, UserError
    from arcadia.terminal import one_line, uncoloured

    commands = {
        "train": train.train,
        "resume": train.resume,
        "eval": play.evaluate,
        "play": play.play,
        "report": report.report,
        "recipes": recipes.recipes,
        "bench": bench.bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"arcadia {arcadia.__version__}")
        return 0
    command = commands.get(arguments[0])
    if command is None:
        return _fail(f"unknown command {arguments[0]!r}: choose from {', '.join(commands)}")
    warnings.showwarning = lambda message, *_: _say(  # gymnasium's are coloured
        f"arcadia: warning: {one_line(uncoloured(str(message)))}"
    )
    threading.excepthook = _thread_failed
    try:
        return command(arguments[1:])
    except UserError as error:
        return _fail(one_line(str(error)))
    except (DivergedError, ProcessError) as error:
        return _fail("\n".join(map(one_line, str(error).rstrip().splitlines())), 1)
    except OSError as error:  # such as a full disk
        if isinstance(error, BrokenPipeError):  # stdout was a pipe that closed, as with `| head`
            sys.stderr.close()
            return 141
        return _fail(one_line(f"{error.filename or 'input or output'}: {error.strerror or error}"), 1)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a thread that could not write its file: whoever uses the thread is told, and says so."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _fail(message: str, code: int = 2) -> int:
    _say(f"arcadia: error: {message}")
    return code


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        print(message, file=sys.stderr)
