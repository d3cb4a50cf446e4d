"""How a command line ends: an error is one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable

from mlx_router.cli.parser import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from mlx_router.errors import ConfigError, RouterError

log = logging.getLogger(__name__)


def ended(program: str, work: Callable[[], int]) -> int:
    """Do the work, and return the exit code: the one that it returns, or that of its error.
    ``program`` begins each line of an error."""
    _open_streams()
    try:
        if sys.stdout is None:
            raise RouterError("stdout is closed; send it to a file, or to /dev/null")
        code = _done(work)
        sys.stdout.flush()
        return code
    except RouterError as error:
        for line in error.message.splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        if isinstance(error, ConfigError):
            return EXIT_USAGE
        return getattr(error, "exit_code", EXIT_FAILURE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `mlx-router models | head`
        _give_up_stdout()
        return EXIT_FAILURE
    except OSError as error:
        log.debug("the error behind the next line", exc_info=True)
        lost = "the output cannot be written: " if _give_up_stdout() else ""
        where = f"{error.filename}: " if error.filename else lost
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILURE


def _done(work: Callable[[], int]) -> int:
    try:
        return work()
    except SystemExit as stop:  # argparse after --help, a signal before serving began
        if stop.code is None:
            return EXIT_OK
        return stop.code if isinstance(stop.code, int) else EXIT_FAILURE


def _open_streams() -> None:
    """What a shell has closed is as good as empty, and a terminal that lacks a letter shows "?"."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _give_up_stdout() -> bool:
    """If it cannot be written, let it lead nowhere, or Python would complain of it once more when
    it ends. Returns whether that was so."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
