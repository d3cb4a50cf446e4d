"""``mlx-router config check|show|schema|import``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mlx_router.cli.config_import import add_import, refuse_import_options, run_import
from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general

EPILOG = f"""\
examples:
  mlx-router config check               check the file that would be used
  mlx-router config check my.json       check this one
  mlx-router config show > full.json    every setting, with its value now; as a
                                        config it needs its API keys (***) again
  mlx-router config schema > config.schema.json
  mlx-router config import hub.yaml     make config.json of another tool's file

Put "$schema": "./config.schema.json" into a config file, and editors complete it.
What import reads, and what becomes of it: docs/importing.md.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router config",
        usage="mlx-router config {check,show,schema,import} [FILE] [options]",
        description="Checks and shows the config, or makes one of another tool's file.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "action",
        choices=("check", "show", "schema", "import"),
        help="check: find all faults; show: print the settings in force (file and environment), "
        "API keys masked as ***; schema: print the JSON Schema; import: read a models.yaml, "
        "hub.yaml or config.yaml of mlx-openai-server or its orchestrators",
    )
    what.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="the same as --config FILE; for import: the file to import",
    )
    add_import(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError if the config has faults."""
    if arguments.action == "import":
        return run_import(arguments)
    refuse_import_options(arguments)
    from mlx_router.config.fields import MASK
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
    values["server"]["api_keys"] = dict.fromkeys(settings.server.api_keys, MASK)
    print(json.dumps(values, indent=2, ensure_ascii=False))
    return EXIT_OK
