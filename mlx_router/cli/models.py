"""``mlx-router models``: what is on this machine, and why some of it cannot be used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_OK,
    Parser,
    add_general,
    add_model_sources,
    overrides,
)
from mlx_router.domain import ModelCard, ModelState

EPILOG = f"""\
examples:
  mlx-router models
  mlx-router models --model-dir /Volumes/Big/models
  mlx-router models --json

"needs" is what the model takes in memory: weights, and cache for a usual conversation.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router models",
        usage="mlx-router models [options]",
        description="Lists the models of this machine. Reads their headers only, and loads none.",
        epilog=EPILOG,
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    add_model_sources(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the models. Raises ConfigError."""
    from mlx_router.config.loading import load_settings
    from mlx_router.runtime.manager import MLXModelManager

    settings = load_settings(arguments.config, overrides(arguments))
    manager = MLXModelManager(settings, engine=arguments.engine, demo=arguments.demo)
    cards = manager.cards()
    if arguments.json:
        print(as_json(cards))
        return EXIT_OK
    from mlx_router.cli.summary import show_models
    from mlx_router.cli.terminal import Terminal

    show_models(cards, settings, Terminal())
    return EXIT_OK


def as_json(cards: Sequence[ModelCard]) -> str:
    """``{"models": [...]}``: the table's columns and what programs need besides; bytes, tokens."""
    return json.dumps({"models": [_entry(card) for card in cards]}, indent=2, ensure_ascii=False)


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
