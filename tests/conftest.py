"""Shared by all tests: small real models, made once a session, and real servers."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlx_router.config.prefix_cache import PrefixCacheSettings
from mlx_router.config.settings import DefaultSettings
from tests.embedding_models import make_embedding_model
from tests.engine_support import Driver
from tests.models import ARCHITECTURES, make_model
from tests.server import ServerProcess

if TYPE_CHECKING:
    from tests.vision_support import Sight


_ALONE = "TEST_ALONE"  # not MLX_ROUTER_…: those are taken from the environment of each test

# Else each process that a test starts would compile what it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Files that take longest come first: else one worker ends alone with one of them.
_LONGEST = (
    *("test_benchmarks", "test_vision_engine", "test_soak", "test_downloads"),
    *("test_vision_reuse", "test_vision_model", "test_vision_requests", "test_vision_start"),
    *("test_vision_correctness", "test_vision_serial", "test_vision_models_fixture"),
)


def pytest_configure() -> None:
    """Under ``nohup`` a hang-up is ignored, and whoever is started would inherit that. A handler is
    not inherited."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _spare_what_is_there() -> None:
    """Thousands of tests and all that was imported are not looked through whenever a model is
    closed; a server does the same."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test marked ``alone`` runs in a pytest of its own: in a worker that has run a thousand
    others, their leftovers are freed and their threads end while it measures."""
    if pyfuncitem.get_closest_marker("alone") is None or _ALONE in os.environ:
        return None
    env = {key: value for key, value in os.environ.items() if "XDIST" not in key} | {_ALONE: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", pyfuncitem.nodeid]
    done = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return True


@pytest.fixture(scope="session", autouse=True)
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what this user's own router remembers."""
    folder, given = tmp_path_factory.mktemp("state"), DefaultSettings.state_folder
    default = DefaultSettings().state_directory
    prompts, given_prompts = tmp_path_factory.mktemp("prompts"), PrefixCacheSettings.folder
    default_prompts = PrefixCacheSettings().directory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PrefixCacheSettings,
            "folder",
            lambda self: prompts if self.directory == default_prompts else given_prompts(self),
        )
        patch.setattr(
            DefaultSettings,
            "state_folder",
            lambda self: folder if self.state_directory == default else given(self),
        )
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a small random-weight model of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ARCHITECTURES:
        make_model(kind, folder / "tiny" / kind)
    return folder


@pytest.fixture(scope="session")
def embedding_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with small embedding models and a text model."""
    folder = tmp_path_factory.mktemp("embedding_models")
    make_embedding_model("bert", folder / "tiny" / "bert")
    make_embedding_model("xlm-roberta", folder / "tiny" / "xlm-roberta", pooling="cls")
    make_embedding_model("qwen3", folder / "tiny" / "qwen3-embedding")
    make_model("llama", folder / "tiny" / "llama")
    return folder


@pytest.fixture(scope="session")
def tiny_server(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A real server process with the models of ``tiny_models``."""
    with ServerProcess(tmp_path_factory.mktemp("server"), models=tiny_models) as server:
        yield server


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server process with the scripted engine, which needs no weights."""
    folder = tmp_path_factory.mktemp("scripted")
    with ServerProcess(folder, "--engine", "scripted", models=folder) as server:
        yield server


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server process started with --demo and an empty model directory."""
    folder = tmp_path_factory.mktemp("demo")
    with ServerProcess(folder, "--demo", models=folder) as server:
        yield server


@pytest.fixture
def drive() -> Iterator[Callable[[Path], Driver]]:
    """Puts the model of a folder on an engine thread, until the test ends."""
    drivers: list[Driver] = []

    def start(folder: Path) -> Driver:
        drivers.append(Driver(folder))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()


# What the following need takes seconds to import: it is imported when a test asks for it.


@pytest.fixture(scope="session")
def vision_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random-weight model of an architecture that sees."""
    from tests.vision_models import make_vision_model

    home = tmp_path_factory.mktemp("vision")

    def folder(kind: str) -> Path:
        if not (home / kind).exists():
            make_vision_model(kind, home / kind)
        return home / kind

    return folder


@pytest.fixture(scope="module")
def vision_sights(vision_folders: Callable[[str], Path]) -> Iterator[Callable[[str], Sight]]:
    """Models that see, one of each architecture for a file; each time without kept prompts."""
    from tests.vision_support import BALL, BOX, Sight, user

    loaded: dict[str, Sight] = {}

    def get(kind: str) -> Sight:
        if kind not in loaded:
            loaded[kind] = Sight(vision_folders(kind))
            loaded[kind].run(loaded[kind].job(user(BOX, BALL, "warm")))
        loaded[kind].reset()
        return loaded[kind]

    yield get
    for sight in loaded.values():
        sight.close()


@pytest.fixture
def vision_sight_of(vision_folders: Callable[[str], Path]) -> Iterator[Callable[..., Sight]]:
    """Models that see, with options of their own."""
    from tests.vision_support import Sight

    loaded: list[Sight] = []

    def load(kind: str, **options: Any) -> Sight:
        loaded.append(Sight(vision_folders(kind), **options))
        return loaded[-1]

    yield load
    for sight in loaded:
        sight.close()
