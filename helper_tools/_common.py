"""What the tools of this folder share: how they begin and end, where models are, and loading one
in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from mlx_router.cli.ending import ended
    from mlx_router.cli.parser import EXIT_INTERRUPTED, Parser
    from mlx_router.errors import InsufficientMemory, RouterError
except ModuleNotFoundError as missing:
    sys.exit(
        f"{missing}: run this in the clone of MLX Router, as "
        f"`uv run python helper_tools/{Path(sys.argv[0]).name}`."
    )

if TYPE_CHECKING:
    from mlx_router.catalog.catalog import Catalog
    from mlx_router.domain import ModelCard

EXIT_CODES = """\
exit codes:
  0    done
  1    failure; the message says what failed and what to do
  2    wrong use
  130  stopped by Ctrl+C
"""

MODEL_DIR_HELP = "folder with models (default: $MLX_MODEL_DIR, else ~/models)"


def run(
    make_parser: Callable[[], Parser],
    command: Callable[[argparse.Namespace], int],
    words: Sequence[str] | None,
) -> int:
    """Run a tool's command line (``words`` None: this process's) and return its exit code. A user's
    mistake is one line on stderr."""
    parser = make_parser()

    def work() -> int:
        try:
            return command(parser.parse(sys.argv[1:] if words is None else words))
        except KeyboardInterrupt:
            print(f"{parser.prog}: stopped", file=sys.stderr)
            return EXIT_INTERRUPTED

    return ended(parser.prog, work)


def general(parser: Parser, *, model_dir: bool = True) -> None:
    """Add the options that every tool has."""
    group = parser.add_argument_group("general")
    if model_dir:
        group.add_argument("--model-dir", metavar="DIR", type=Path, help=MODEL_DIR_HELP)
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done, change nothing"
    )
    group.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")


def model_folders(given: Path | None) -> list[Path]:
    """The model directories, absolute; the first one is where models are put. They may not exist.

    ``given`` comes before MLX_MODEL_DIR (one or several, divided as in PATH), and ~/models is last.
    """
    from mlx_router.config.files import expanded

    named = os.environ.get("MLX_MODEL_DIR", "").split(os.pathsep)
    folders = [Path(os.path.expandvars(name)) for name in named if name]
    chosen = [given] if given is not None else folders or [Path("~/models")]
    return [Path(os.path.abspath(expanded(folder))) for folder in chosen]


def catalog_of(folders: Sequence[Path]) -> Catalog:
    """The models in these folders, read now. Links may point into them, and into the folders of
    LM Studio and of the Hugging Face cache."""
    from mlx_router.catalog.catalog import Catalog
    from mlx_router.catalog.stores import hugging_face_cache, lm_studio_folders

    home = Path.home()
    roots = [hugging_face_cache(os.environ, home), *lm_studio_folders(home)]
    here = [folder for folder in folders if folder.is_dir()]
    catalog = Catalog(here, link_roots=[*folders, *roots])
    catalog.refresh()
    return catalog


def file_name(model_id: str) -> str:
    """A model's id as a part of a file's name: ``org_model-4bit``."""
    return re.sub(r"[^\w.-]+", "_", model_id)


def load_in_process(
    card: ModelCard, folders: Sequence[Path], plan: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Load a model in a process of its own, whose memory is gone afterwards, and say what came of
    it: ``load_seconds``, ``weights_bytes``, ``cache_bytes``, ``required_bytes``, ``peak_bytes``,
    and ``benchmark`` if there is a ``plan`` (see ``_load.py``).

    Raises InsufficientMemory if the model does not fit now, and RouterError if it does not load.
    """
    order = {
        "model": card.id,
        "path": str(card.path),
        "folders": [str(folder) for folder in folders],
        "plan": plan,
    }
    done = subprocess.run(  # noqa: S603  our own file
        [sys.executable, str(Path(__file__).with_name("_load.py"))],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl+C is ours to act on: it ends the child, silently
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RouterError(_ending(card.id, done.returncode)) from None
    if (error := told.get("error")) is None:
        return told
    kind = InsufficientMemory if told.get("memory") else RouterError
    raise kind(error)


def _ending(name: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            f"{name}: the process that loaded it was killed; most likely memory ran out. Close "
            "other programs, or take a smaller model."
        )
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"{name}: the process that loaded it ended {how}; see what it said above."
