"""``mlx-router models``: what a running server has, else what is on this machine, and why some of
it cannot be used."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_OK,
    Parser,
    add_general,
    add_model_sources,
    overrides,
)
from mlx_router.cli.remote import Remote, ServerRefused, ServerUnreachable, add_server
from mlx_router.domain import GIB, ModelCard, ModelState
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from mlx_router.cli.terminal import Terminal

EPILOG = f"""\
examples:
  mlx-router models             those of the running server, else the disk's
  mlx-router models --local     those on the disk, whatever runs
  mlx-router models --model-dir /Volumes/Big/models
  mlx-router models -p 8801 --json

"needs" is what the model takes in memory: weights, and cache for a usual
conversation. "memory" is what one that is loaded takes now.

{EXIT_CODES}"""

_ASK_SECONDS = 5.0  # where nobody has said that there is a server


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router models",
        usage="mlx-router models [options]",
        description="Lists the models: of the server, if one answers at the config's address,\n"
        "with what is in memory; else of this machine. Loads none.",
        epilog=EPILOG,
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    output.add_argument("--local", action="store_true", help="look at the disk, ask no server")
    add_server(parser)
    add_model_sources(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the models. Raises ConfigError, and where a server was named ServerUnreachable and
    ServerRefused."""
    from mlx_router.cli.terminal import Terminal

    terminal = Terminal()
    if not _show_servers(arguments, terminal):
        _show_local(arguments, terminal)
    return EXIT_OK


def _show_servers(arguments: argparse.Namespace, terminal: Terminal) -> bool:
    """Whether there is a server to ask. One that was not named and says no is told of."""
    named = [flag for flag in ("url", "port", "api_key") if getattr(arguments, flag) is not None]
    local = [flag for flag in ("local", "demo", "model_dir") if getattr(arguments, flag)]
    if arguments.engine != "mlx":
        local.append("engine")
    if named and local:
        flags = [f"--{flag.replace('_', '-')}" for flag in (named[0], local[0])]
        raise ConfigError(f"{flags[0]} asks a server and {flags[1]} the disk: leave one out")
    if local:
        return False
    server = Remote.of(arguments)
    try:
        status = server.status(timeout=None if named else _ASK_SECONDS)
    except ServerUnreachable:
        if named:
            raise
        return False
    except ServerRefused as error:
        if named:
            raise
        print(f"mlx-router: {error.message}", file=sys.stderr)
        print("mlx-router: these are the models on the disk", file=sys.stderr)
        return False
    if arguments.json:
        print(as_json([_served(model) for model in status["models"]]))
        return True
    from mlx_router.cli.dashboard import all_models

    terminal.line(f"Models of {server.base}", style="bold")
    terminal.show(all_models(status["models"], terminal.width))
    unusable = [model for model in status["models"] if model.get("problem")]
    if unusable:
        terminal.line()
        terminal.line("Cannot be used:", style="yellow")
    for model in unusable:
        terminal.item(model["id"], model["problem"])
    if not status["models"]:
        terminal.line("It has none. See what it would find: mlx-router models --local")
    return True


def _show_local(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from mlx_router.cli.summary import show_models
    from mlx_router.config.loading import load_settings
    from mlx_router.runtime.manager import MLXModelManager

    settings = load_settings(arguments.config, overrides(arguments))
    manager = MLXModelManager(settings, engine=arguments.engine, demo=arguments.demo)
    cards = manager.cards()
    if arguments.json:
        print(as_json([_entry(card) for card in cards]))
    else:
        show_models(cards, settings, terminal)


def as_json(models: Sequence[dict[str, Any]]) -> str:
    """``{"models": [...]}``: the table's columns and what programs need besides; bytes, tokens."""
    return json.dumps({"models": models}, indent=2, ensure_ascii=False)


def _served(model: dict[str, Any]) -> dict[str, Any]:
    """As :func:`_entry`, of a server's model, with what it tells besides; where its files are, it
    does not."""
    can = model["capabilities"]
    return {
        "id": model["id"],
        "kind": model["kind"],
        "state": model["state"],
        "problem": model.get("problem"),
        "quantization": model["quantization"],
        "context_length": model["context_window"],
        "size_bytes": model["size_bytes"],
        "required_bytes": int(model["memory_requirements"]["required_gb"] * GIB),
        "supports_tools": can["tools"],
        "supports_vision": can["vision"],
        "supports_reasoning": can["reasoning"],
        "memory_bytes": int(model["memory_gb"] * GIB),
        "pinned": model["pinned"],
        "aliases": model["aliases"],
        "active_requests": model["active_requests"],
        "waiting_requests": model["waiting_requests"],
        "last_used": model["last_used"],
    }


def _entry(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "kind": card.kind.value,
        "state": (ModelState.UNLOADED if card.usable else ModelState.UNUSABLE).value,
        "problem": card.problem,
        "architecture": card.architecture,
        "parameters": card.parameters,
        "quantization": card.quantization,
        "context_length": card.context_length,
        "size_bytes": card.size_bytes,
        "required_bytes": card.required_bytes,
        "supports_tools": card.supports_tools,
        "supports_vision": card.supports_vision,
        "supports_reasoning": card.supports_reasoning,
        "path": str(card.path),
    }
