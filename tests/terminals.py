"""A command on a terminal, as a person runs it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C = "\x03"
CTRL_D = "\x04"


class Terminal:
    """``mlx-router WORDS`` on a pseudo terminal of its own, in ``folder``. Use it in a ``with``
    block: the process is ended after."""

    def __init__(self, folder: Path, *words: str, columns: int = 80) -> None:
        self.raw = ""
        self._read = 0  # how much of the text was waited for already
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        path = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(
            # It leads a session whose terminal this is: then Ctrl+C reaches it.
            [sys.executable, "-c", _AS_LEADER, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env={**kept, "TERM": "xterm-256color", "PYTHONPATH": path},
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What was written, without what steers the terminal."""
        return _STEERING.sub("", self.raw).replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, seconds: float = 20.0) -> None:
        """Wait until this is written, after what was waited for before."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(text, self._read)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.text!r}"
            assert self._more(left), f"it ended without {text!r}: {self.text!r}"
        self._read = found + len(text)

    def end(self, seconds: float = 20.0) -> int:
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self._more(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"it goes on: {self.text!r}"
        return self.process.wait(seconds)

    def _more(self, seconds: float) -> bool:
        """Read what comes, if it comes in time; False at the end."""
        if not select.select([self._master], [], [], max(0.0, seconds))[0]:
            return True
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux's word for the end
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


_AS_LEADER = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "from mlx_router.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
