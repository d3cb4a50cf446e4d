"""Logs: the console and a rotating file; every line carries the id of its request.

A fault of logging (disk full, folder read-only) never reaches a request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from contextvars import ContextVar, Token
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

from mlx_router.telemetry.recent import recent

LOG_FILE = "mlx_router.log"
FILE_BYTES = 10_000_000
FILES_KEPT = 3  # the one being written to included

#: The id of the request that the current task works for; "-" outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
_NOISY = (
    "asyncio", "filelock", "fontTools", "fsspec", "h11", "httpcore", "httpcore2", "httpx", "httpx2",
    "huggingface_hub", "multipart", "numba", "PIL", "transformers", "urllib3", "uvicorn",
)  # fmt: skip
_SILENCE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class bind_request_id:  # noqa: N801  used like a function
    """From here on, log lines of this task carry ``identity``.

    It is in force at once. As a context manager it ends with the block, else with the task.
    """

    def __init__(self, identity: str) -> None:
        self._token: Token[str] | None = request_id.set(identity)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            with contextlib.suppress(ValueError):  # a generator closed by another task
                request_id.reset(self._token)
            self._token = None


def configure_logging(*, debug: bool = False, directory: Path | None = None) -> None:
    """Log to stderr, to :data:`~mlx_router.telemetry.recent.recent` and, with ``directory``, to
    ``directory/mlx_router.log``.

    Replaces what an earlier call set up. A directory that cannot be written to costs the file,
    not the start: one warning, and the console goes on. Other libraries log warnings and worse.
    ``MLX_ROUTER_CONSOLE=warnings`` leaves all else to the file, if there is one: for a service
    whose console goes to a file that nobody rotates.
    """
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Ours)]:
        root.removeHandler(old)
        old.close()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    console = _ready(ConsoleHandler(), "%H:%M:%S")
    root.addHandler(console)
    root.addHandler(_ready(recent, "%H:%M:%S"))
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        root.addHandler(_ready(FileHandler(directory / LOG_FILE), None))
    except OSError as error:
        logger.warning(
            "no log file: %s cannot be written to (%s); set server.log_dir to a folder that can",
            directory,
            error.strerror,
        )
        return
    if os.environ.get("MLX_ROUTER_CONSOLE") == "warnings":
        console.setLevel(logging.WARNING)


class _Ours(logging.Handler):
    """A handler whose own faults cost log lines and nothing else.

    They are reported on stderr once a minute, with how to help, and without a trace."""

    _silent_until = 0.0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        now = time.monotonic()
        if now < self._silent_until:
            return
        self._silent_until = now + _SILENCE_SECONDS
        with contextlib.suppress(OSError, ValueError):  # stderr gone as well: nobody left to tell
            print(
                f"mlx-router: log lines are lost ({error}); requests are served all the same. "
                "Check the disk of server.log_dir.",
                file=sys.stderr,
            )


class ConsoleHandler(_Ours, logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever sys.stderr is when it is made."""


class FileHandler(_Ours, RotatingFileHandler):
    """10 MB a file, three files. Opens the file at once, so that a bad folder shows at start."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            maxBytes=FILE_BYTES,
            backupCount=FILES_KEPT - 1,
            encoding="utf-8",
            errors="replace",
        )


class _Formatter(logging.Formatter):
    """A message is one line whatever a client put in it; traces keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _add_request_id(record: logging.LogRecord) -> bool:
    """A filter, since only the handler sees records of other libraries. A record may bring the
    id itself (``extra={"request_id": ...}``), as threads outside of the request's task do."""
    if not hasattr(record, "request_id"):
        record.request_id = request_id.get()
    return True


def _ready(handler: logging.Handler, date_format: str | None) -> logging.Handler:
    handler.addFilter(_add_request_id)
    handler.setFormatter(_Formatter(_FORMAT, date_format))
    return handler
