"""What a disk may hold or do while it is looked at: never an exception, never a hang."""

from __future__ import annotations

import errno
import faulthandler
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_router.catalog import Catalog, ModelOverride
from mlx_router.catalog.discovery import MAX_FOLDERS
from mlx_router.catalog.folder import MAX_FILES, ModelFolder, Problem
from mlx_router.catalog.stores import lm_studio_folders
from mlx_router.catalog.weights import inspect_weights
from tests.catalog_support import LLAMA, MLX_LM_ONLY, hf_model, ids, make_catalog, write_model

_HANG_SECONDS = 30.0


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A look that waits for ever fails the test, and does not stop the run."""
    faulthandler.dump_traceback_later(4 * _HANG_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def test_pipes_sockets_and_devices_are_never_opened(tmp_path: Path) -> None:
    write_model(tmp_path / "good")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        folder = write_model(tmp_path / f"pipe-{name.partition('.')[0]}")
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(write_model(tmp_path / "socket"))  # a socket's path must be short
        try:
            listener.bind("extra.safetensors")
        finally:
            os.chdir(here)
    (write_model(tmp_path / "device") / "vocab.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "a-pipe")
    hf_model(tmp_path, "org/cached")
    main = tmp_path / "models--org--cached" / "refs" / "main"
    main.unlink()
    os.mkfifo(main)
    catalog = make_catalog(tmp_path)
    usable = {card.id for card in catalog.cards() if card.usable}
    assert {"good", "socket", "org/cached", "pipe-tokenizer_config"} <= usable
    assert not usable & {"pipe-model", "pipe-tokenizer"}


def test_names_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    strange = [os.fsdecode(b"\xff\xfe.safetensors"), "two\nlines.safetensors", "\x1b[2J.gguf"]
    folder = write_model(tmp_path / "model")
    for name in strange:
        (folder / name).write_bytes(b"")
        write_model(tmp_path / name)
        hf_model(tmp_path, f"org/{name}")
        (tmp_path / "only" / name).mkdir(parents=True)
    (folder / "model.safetensors").unlink()
    catalog = make_catalog(tmp_path)
    assert ids(catalog) == ["model"]
    texts = [*catalog.notes, *(str(card.problem) for card in catalog.cards())]
    assert catalog.cards()[0].problem == "model.safetensors is missing"
    assert all(text.isprintable() and text.encode() for text in texts)


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    write_model(tmp_path / "org" / "model")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "org" / "up").symlink_to(tmp_path)
    (tmp_path / "org" / "model" / "config").symlink_to(tmp_path / "org")
    (tmp_path / "org" / "model" / "tokenizer_config.json").symlink_to("tokenizer_config.json")
    (tmp_path / "link0").symlink_to(tmp_path / "org")
    for i in range(60):
        (tmp_path / f"link{i + 1}").symlink_to(tmp_path / f"link{i}")
    catalog = make_catalog(tmp_path, tmp_path / "self", tmp_path / "here" / "here")
    assert {"org/model", "link0/model"} <= set(ids(catalog))
    assert "model directory self: Too many levels of symbolic links" in catalog.notes


def test_folders_that_come_and_go_during_a_look_do_no_harm(tmp_path: Path) -> None:
    steady = write_model(tmp_path / "steady" / "model")
    template = write_model(tmp_path / ".template")
    catalog = Catalog([tmp_path], libraries=MLX_LM_ONLY)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for name in ("one", "org/two", "models--org--three/snapshots/abc"):
                shutil.copytree(template, tmp_path / name)
            for name in ("one", "org", "models--org--three"):
                shutil.rmtree(tmp_path / name)

    thread = threading.Thread(target=churn)
    thread.start()
    seen = set[str]()
    deadline = time.monotonic() + _HANG_SECONDS
    try:
        looks = 0
        while (looks < 200 or len(seen) < 4) and time.monotonic() < deadline:
            catalog.refresh()
            looks += 1
            seen.update(ids(catalog))
            assert catalog.resolve("steady/model").path == steady
    finally:
        stop.set()
        thread.join()
    assert seen == {"one", "org/three", "org/two", "steady/model"}
    catalog.refresh()
    assert ids(catalog) == ["steady/model"]


def test_a_folder_with_countless_files_is_no_model(tmp_path: Path) -> None:
    write_model(tmp_path / "good")
    crowd = write_model(tmp_path / "crowd")
    for i in range(MAX_FILES + 1):
        os.symlink("README.md", f"{crowd}/{i}")
    catalog = make_catalog(tmp_path, crowd, overrides={"at-path": ModelOverride(path=crowd)})
    assert "good" in ids(catalog)
    assert "crowd" not in ids(catalog)
    assert f"crowd has more than {MAX_FILES:,} files; it is ignored" in catalog.notes
    shutil.rmtree(crowd)


def test_of_a_directory_with_countless_folders_the_first_are_looked_at(tmp_path: Path) -> None:
    write_model(tmp_path / "0-first")
    for i in range(MAX_FOLDERS + 10):
        (tmp_path / f"{i + 10:06d}").mkdir()
    catalog = make_catalog(tmp_path)
    assert ids(catalog) == ["0-first"]
    assert any("more than 10,000 folders" in note for note in catalog.notes)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without the rights of the superuser, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    # The tests' own temporary folder is closed to others.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name).resolve()
        root.chmod(0o755)
        write_model(root / "good")
        file = write_model(root / "file") / "config.json"
        folders = [write_model(root / "closed"), root / "org", root / "elsewhere"]
        write_model(root / "org" / "inner")
        write_model(root / "elsewhere" / "model")
        for path in (file, *folders):
            path.chmod(0)
        with _as_nobody():
            catalog = make_catalog(root, root / "elsewhere")
            assert ids(catalog) == ["file", "good"]
            problem = catalog.resolve("file").problem
            assert problem == "config.json cannot be read (Permission denied)"
            assert set(catalog.notes) == {
                "closed: may not be read; it is ignored",
                "elsewhere: may not be read; it is ignored",
                "model directory elsewhere: Permission denied",
                "org: may not be read; it is ignored",
            }
        for path in (file, *folders):
            path.chmod(0o755)
        with _as_nobody():
            catalog.refresh()
            assert {"closed", "org/inner"} <= set(ids(catalog))


def test_a_pipe_that_takes_the_place_of_weights_is_not_waited_for(tmp_path: Path) -> None:
    folder = ModelFolder.scan(write_model(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    with pytest.raises(Problem, match="not a regular file"):
        inspect_weights(folder, LLAMA, any_name=False)


_calls = {name: getattr(os, name) for name in ("scandir", "stat", "open")}


@contextmanager
def _failing(
    monkeypatch: pytest.MonkeyPatch, place: Path, code: int, *names: str
) -> Iterator[None]:
    """A part of the disk for which calls fail, as on a volume that does not answer."""

    def broken(name: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and Path(path).is_relative_to(place):
                raise OSError(code, os.strerror(code))
            return _calls[name](path, *arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in names:
            patched.setattr(os, name, broken(name))
        yield


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG])
def test_a_configured_path_that_cannot_be_asked_about_does_not_stop_a_refresh(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "models" / "good")
    dead = tmp_path / "dead"
    with _failing(monkeypatch, dead, code, "scandir", "stat"):
        catalog = make_catalog(
            tmp_path / "models", overrides={"far": ModelOverride(path=dead / "model")}
        )
        assert lm_studio_folders(dead) == [dead / ".lmstudio" / "models"]
    assert ids(catalog) == ["good"]
    assert any(note.startswith("far:") for note in catalog.notes)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize(
    "place", ["disk", "disk/org", "disk/plain", "disk/models--org--cached", "disk/org/one"]
)
def test_models_that_cannot_be_looked_at_for_a_moment_stay_known(
    place: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "disk" / "org" / "one")
    write_model(tmp_path / "disk" / "plain")
    hf_model(tmp_path / "disk", "org/cached")
    write_model(tmp_path / "sound" / "other")
    now = 0.0
    catalog = Catalog(
        [tmp_path / "disk", tmp_path / "sound"], libraries=MLX_LM_ONLY, clock=lambda: now
    )
    catalog.refresh()
    known = catalog.cards()
    assert len(known) == 4
    with _failing(monkeypatch, tmp_path / place, code, "scandir"):
        now += 60
        catalog.refresh()
        assert catalog.cards() == known
        assert any(os.strerror(code) in note for note in catalog.notes)
        write_model(tmp_path / "sound" / "another")
        shutil.rmtree(tmp_path / "sound" / "other")
        catalog.refresh()
        expected = {card.id for card in known} - {"other"} | {"another"}
        assert set(ids(catalog)) == expected, "what can be read is kept up to date"
    shutil.rmtree(tmp_path / "disk")
    catalog.refresh()
    assert ids(catalog) == ["another"], "the next look is a full one"
    assert all(os.strerror(code) not in note for note in catalog.notes)


def test_models_that_could_not_be_read_at_first_are_found_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model")
    catalog = Catalog([tmp_path], libraries=MLX_LM_ONLY, clock=lambda: 0.0)
    for call in ("scandir", "open"):
        with _failing(monkeypatch, tmp_path, errno.EMFILE, call):
            catalog.refresh()
            assert ids(catalog) == []
    catalog.refresh()
    assert catalog.resolve("model").usable
    write_model(tmp_path / "model", {**LLAMA, "vocab_size": 999})
    with _failing(monkeypatch, tmp_path, errno.EMFILE, "open"):
        catalog.refresh()
        assert catalog.resolve("model").usable, "what was known stays"


def test_a_volume_that_is_gone_takes_its_models_along(tmp_path: Path) -> None:
    write_model(tmp_path / "disk" / "model")
    catalog = make_catalog(tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    catalog.refresh()
    assert ids(catalog) == []
