"""``mlx-router completion bash|zsh|fish``: a script that completes commands, options and names.

The scripts are made by shtab from the very parsers that the commands use.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general

if TYPE_CHECKING:
    from mlx_router.config.settings import Settings

SHELLS = ("bash", "zsh", "fish")
NAMES_COMMAND = "mlx-router completion models 2>/dev/null"
ZSH_FUNCTION = "_mlx_router_models"
ZSH_MODELS = f"""\
{ZSH_FUNCTION}() {{
  local -a models=(${{(f)"$({NAMES_COMMAND})"}})
  compadd -a models
}}"""

EPILOG = f"""\
examples:
  eval "$(mlx-router completion bash)"         in this shell; in ~/.bashrc: in every one
  mlx-router completion zsh > ~/.zfunc/_mlx-router
  mlx-router completion fish > ~/.config/fish/completions/mlx-router.fish

zsh reads ~/.zfunc if ~/.zshrc has: fpath+=~/.zfunc; autoload -Uz compinit; compinit
The script is of this version: make it again after an update.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router completion",
        usage="mlx-router completion {bash,zsh,fish,models} [options]",
        description="Prints a script that lets a shell complete commands, options and models.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to print")
    what.add_argument(
        "shell",
        choices=(*SHELLS, "models"),
        help="the script for this shell; models: the names that the scripts offer, one a line",
    )
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or the names; for these, raises ConfigError if the config has faults."""
    if arguments.shell == "models":
        from mlx_router.config.loading import load_settings

        for name in model_names(load_settings(arguments.config)):
            print(name)
        return EXIT_OK
    sys.stdout.write(script(arguments.shell) + "\n")
    return EXIT_OK


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    import shtab

    text: str = shtab.complete(whole_parser(), shell=shell)
    if shell != "zsh":
        return text
    # shtab puts a command for zsh in such a way that it runs when the script is loaded.
    first, _, rest = text.replace(f"($({NAMES_COMMAND}))", ZSH_FUNCTION).partition("\n")
    return f"{first}\n\n{ZSH_MODELS}\n{rest}"


def whole_parser() -> Parser:
    """One parser with all commands below it, which otherwise are made when they are called."""
    from mlx_router.cli.main import COMMANDS

    serve = importlib.import_module(COMMANDS["serve"]).make_parser()
    whole = Parser(prog="mlx-router", parents=[serve])
    commands = whole.add_subparsers(dest="command")
    _mark(whole)
    for name, module in COMMANDS.items():
        own: Parser = importlib.import_module(module).make_parser()
        description = (own.description or "").split(".")[0].splitlines()[0]
        _mark(commands.add_parser(name, parents=[own], help=description, description=description))
    return whole


def model_names(settings: Settings) -> list[str]:
    """Ids and aliases of models, by the names of folders alone: no file of a model is read."""
    names = found_models(settings)
    for name, entry in settings.models.items():
        names.update((name, *entry.aliases))
    return sorted(name for name in names if name.isprintable() and " " not in name)


def found_models(settings: Settings) -> set[str]:
    """Ids of the models in the folders of the settings."""
    from mlx_router.catalog.discovery import discover
    from mlx_router.catalog.stores import hugging_face_cache, lm_studio_folders

    folders = settings.defaults.model_directories()
    if settings.defaults.hf_cache:
        folders.append(hugging_face_cache(os.environ, Path.home()))
    if settings.defaults.lmstudio:
        folders += lm_studio_folders(Path.home())
    return {location.id for location in discover(folders).locations}


def _mark(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are models, files and folders; how they are called tells it."""
    import shtab

    for action in parser._actions:
        complete: Any = None
        if action.dest in ("model", "models") or action.metavar == "MODEL":
            complete = shtab.cmd(NAMES_COMMAND)
        elif action.metavar == "DIR":
            complete = shtab.DIRECTORY
        elif action.metavar == "FILE":
            complete = shtab.FILE
        if complete is not None and action.nargs != 0:
            action.complete = complete  # type: ignore[attr-defined]
