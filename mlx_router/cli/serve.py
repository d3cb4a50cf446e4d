"""``mlx-router`` and ``mlx-router serve``: settings, logs, manager, app and server put together."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mlx_router.cli.address import bind, urls
from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_FAILURE,
    Parser,
    add_general,
    add_model_sources,
    overrides,
)
from mlx_router.domain import Pressure
from mlx_router.errors import RouterError
from mlx_router.version import __version__

if TYPE_CHECKING:
    from mlx_router.config.settings import Settings

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Serves every MLX model on this machine behind one OpenAI-compatible port.

commands:
  serve         serve (the same as no command)
  models        list the models, of the server or on the disk
  config        check, show, document or import the config
  pull          download a model from the Hugging Face Hub
  bench         measure how fast models are on this machine
  doctor        check this machine and the config; says how to fix what is wrong
  completion    let bash, zsh or fish complete commands and models

with a running server:
  status        memory, models and requests at a glance; watch: the same, live
  logs          its latest log lines; -f: and new ones
  load-model    bring a model into memory
  unload-model  free a model's memory
  pin           keep a model in memory
  reload        read the config again
  shutdown      end it
  chat          chat with a model in the terminal, or ask one question

Each has a --help with examples.
"""

EPILOG = f"""\
examples:
  mlx-router --demo                   see it work, with nothing to download
  mlx-router                          serve the models of ~/models on port 8800
  mlx-router --model-dir /Volumes/Big/models -p 8801
  mlx-router --model Qwen3-4B-4bit    load this model at start
  mlx-router models                   what is there, and what each model needs
  mlx-router config check my.json     find the faults of a config file

Point any OpenAI client at http://127.0.0.1:8800/v1. The API is described at
http://127.0.0.1:8800/docs.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router",
        usage="mlx-router [options]\n       mlx-router COMMAND [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    address = parser.add_argument_group("address")
    address.add_argument("--ip", help="address to listen on (default: 0.0.0.0, all of them)")
    address.add_argument("-p", "--port", metavar="PORT", help="port (default: 8800; 0: a free one)")
    add_model_sources(parser)
    limits = parser.add_argument_group("answers")
    limits.add_argument("--model", metavar="NAME", help="default model, loaded at start")
    limits.add_argument("--max-tokens", metavar="N", help="tokens per answer (default: 4096)")
    limits.add_argument("--timeout", metavar="S", help="seconds per answer (default: 120)")
    add_general(parser)
    parser.add_argument(
        "-v",
        "--version",
        action="version",
        version=f"mlx-router {__version__}",
        help="show the version and exit",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises ConfigError and AddressUnusable; returns the exit code."""
    _stop_quietly_on_signals()
    from mlx_router.config.loading import find_config, load_settings
    from mlx_router.telemetry.logging import configure_logging

    configure_logging(debug=bool(arguments.debug))
    config = find_config(arguments.config, os.environ)

    def read_settings() -> Settings:
        return load_settings(config, overrides(arguments))

    settings = read_settings()
    configure_logging(debug=settings.server.debug, directory=settings.server.log_directory())
    with bind(settings.server.ip, settings.server.port) as listener:
        try:
            return _serve(settings, read_settings, listener, config, arguments)
        except RouterError:
            raise
        except Exception:
            logger.exception("cannot start, and this is a fault of mlx-router; please report it")
            return EXIT_FAILURE


def _serve(
    settings: Settings,
    read_settings: Callable[[], Settings],
    listener: socket.socket,
    config: Path | None,
    arguments: argparse.Namespace,
) -> int:
    from mlx_router.api.app import create_app
    from mlx_router.cli.serving import serve_app
    from mlx_router.cli.summary import Memory, Start, show_ready, show_summary
    from mlx_router.cli.terminal import Terminal
    from mlx_router.runtime.manager import MLXModelManager

    terminal = Terminal()
    addresses = urls(listener)
    manager = MLXModelManager(
        settings, engine=arguments.engine, demo=arguments.demo, source=read_settings
    )
    settings = manager.settings  # --demo has added its model
    app = create_app(manager, settings, end=lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = manager.status()
    start = Start(
        settings,
        addresses,
        memory=Memory(
            total=status.memory.total,
            available=status.memory.available,
            pressure_below=int(status.policy.limit(Pressure.MODERATE)),
        ),
        config=config,
        engine=arguments.engine,
    )
    show_summary(start, manager.cards(), terminal)

    def on_ready() -> None:
        show_ready(addresses, terminal)
        gc.freeze()  # what a server consists of stays; streams would wait for each look at it
        if arguments.engine != "scripted":
            threading.Thread(target=_prepare_process, name="prepare", daemon=True).start()

    return serve_app(
        app,
        manager,
        listener,
        grace_seconds=settings.server.grace_seconds,
        on_ready=on_ready,
    )


def _prepare_process() -> None:
    try:
        from mlx_router.engine.device import prepare_process

        prepare_process()
    except Exception:  # the first load will fail of it, and answer with an error
        logger.exception("what models need could not be imported")


def _stop_quietly_on_signals() -> None:
    """Until the server has its own handlers, a signal ends the process without a trace."""

    def stop(*_: object) -> NoReturn:
        sys.exit(0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
