"""``mlx-router config check|show|schema``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general

EPILOG = f"""\
examples:
  mlx-router config check               check the file that would be used
  mlx-router config check my.json       check this one
  mlx-router config show > full.json    every setting, with its value now
  mlx-router config schema > config.schema.json

Put "$schema": "./config.schema.json" into a config file, and editors complete it.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router config",
        usage="mlx-router config {check,show,schema} [FILE] [options]",
        description="Checks and shows the config.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "action",
        choices=("check", "show", "schema"),
        help="check: find all faults; show: print the settings in force (file and environment), "
        "keys masked; schema: print the JSON Schema",
    )
    what.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="the same as --config FILE"
    )
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError if the config has faults."""
    from mlx_router.config.loading import find_config, load_settings
    from mlx_router.config.reference import as_json, json_schema

    if arguments.action == "schema":
        sys.stdout.write(as_json(json_schema()))
        return EXIT_OK
    path = find_config(arguments.file or arguments.config, os.environ)
    settings = load_settings(path)
    if arguments.action == "check":
        if path is None:
            print("No config file: there is no ./config.json, and the defaults are in force.")
        else:
            count = len(settings.models)
            print(f"{path}: fine ({count} model {'entry' if count == 1 else 'entries'})")
        return EXIT_OK
    values = settings.model_dump(mode="json")
    values["server"]["api_keys"] = dict.fromkeys(settings.server.api_keys, "***")
    print(json.dumps(values, indent=2, ensure_ascii=False))
    return EXIT_OK
