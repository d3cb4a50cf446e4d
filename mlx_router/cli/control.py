"""What ``load-model``, ``unload-model`` and ``pin`` share: a server does something with a model,
and that may take a while."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlx_router.cli.parser import Parser, add_general
from mlx_router.cli.remote import PATIENCE_SECONDS, Remote, add_server
from mlx_router.cli.terminal import duration, gigabytes, print_json, printable
from mlx_router.domain import GIB


def make_model_parser(name: str, description: str, epilog: str) -> Parser:
    """A parser for ``mlx-router NAME MODEL``."""
    parser = Parser(
        prog=f"mlx-router {name}",
        usage=f"mlx-router {name} MODEL [options]",
        description=description,
        epilog=epilog,
    )
    parser.add_argument("model", metavar="MODEL", help="id, alias or short name")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="print the model as JSON, and how long it took"
    )
    add_server(parser)
    add_general(parser)
    return parser


def act(arguments: argparse.Namespace, what: str, body: Mapping[str, Any], waiting: str) -> None:
    """POST /admin/models/WHAT, and one line about what came of it. Raises ConfigError,
    ServerUnreachable and ServerRefused."""
    server = Remote.of(arguments)
    began = time.monotonic()
    with spinner(f"{waiting} {arguments.model}"):
        done = server.act(f"/admin/models/{what}", body, timeout=PATIENCE_SECONDS)
    seconds = time.monotonic() - began
    listed = server.status()["models"]
    model = next((each for each in listed if each["id"] == done["id"]), {**done, "memory_gb": 0.0})
    if arguments.json:
        print_json({**model, "seconds": round(seconds, 3)})
        return
    if what == "pin":
        facts = ["pinned until the server ends" if model["pinned"] else "not pinned"]
        facts.append(model["state"])
    else:
        facts = [f"{model['state']} after {duration(seconds)}"]
    if model["memory_gb"]:
        facts.append(f"{gigabytes(int(model['memory_gb'] * GIB))} of memory")
    print(printable(f"{model['id']}: {', '.join(facts)}"))


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Shows on a terminal's stderr what is waited for, and for how long already."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(printable(what), total=None)
        yield
