"""mlx-router pull: a model from a stand-in of the Hugging Face Hub, over real HTTP."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import mlx_router
from mlx_router.cli.main import main
from mlx_router.downloads import job
from tests.hub_server import COMMIT, TOKEN, Gate, HubServer, hub_in_use
from tests.waiting import until_sync

MODEL = "mlx-community/Qwen3-Tiny-4bit"
WEIGHTS = "model.safetensors"
HALF = 2_000_000  # bytes; the weights have a little less than twice as many
Pull = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def source() -> Path:
    """The model that ships with the package, as if it were on the Hub."""
    return Path(mlx_router.__file__).parent / "demo" / "model"


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that has MODEL, for this process and for those that it starts."""
    with hub_in_use(tmp_path, monkeypatch) as server:
        server.add(MODEL, source)
        yield server


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model directory that the environment names; it does not exist yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.delenv("MLX_ROUTER_CONFIG", raising=False)
    return tmp_path / "models"


@pytest.fixture
def pull(hub: HubServer, models: Path, capsys: pytest.CaptureFixture[str]) -> Pull:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["pull", *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def same_files(one: Path, other: Path) -> bool:
    files = sorted(file.name for file in one.iterdir())
    return files == sorted(file.name for file in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def test_a_model_is_pulled_into_the_model_directory_and_once(
    pull: Pull, hub: HubServer, models: Path, source: Path
) -> None:
    code, out, _ = pull(MODEL)
    assert code == 0
    assert out == f"{MODEL} is here: {models / MODEL} (4 MB)\n"
    assert same_files(models / MODEL, source)
    assert not (models / ".downloads" / MODEL.replace("/", "--")).exists()
    asked = len(hub.seen)
    code, out, _ = pull(MODEL)
    assert (code, out) == (0, f"{MODEL} is here already: {models / MODEL}\n")
    assert len(hub.seen) == asked


def test_another_directory_and_a_revision_can_be_named(
    pull: Pull, hub: HubServer, models: Path, tmp_path: Path
) -> None:
    hub.repos[MODEL].tags = ("main", "v1")
    code, _, _ = pull(MODEL, "--revision", "v1", "--model-dir", str(tmp_path / "elsewhere"))
    assert code == 0
    assert (tmp_path / "elsewhere" / MODEL / WEIGHTS).exists()
    assert not models.exists()
    assert hub.seen[0].path == f"/api/models/{MODEL}/revision/v1"
    code, _, err = pull(MODEL, "--revision", "v2")
    assert code == 1
    assert f"{MODEL} has no such revision on the Hugging Face Hub: name a branch, a tag" in err


def test_a_dry_run_lists_files_and_sizes_and_writes_nothing(
    pull: Pull, hub: HubServer, models: Path
) -> None:
    code, out, _ = pull(MODEL, "--dry-run")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["file", "size", "here", "already"]
    assert [WEIGHTS, "4", "MB", "-"] in lines
    assert ["config.json", "487", "B", "-"] in lines
    assert out.endswith(f"would be fetched into {models / MODEL}\n")
    assert not models.exists()
    assert len(hub.seen) == 1


def test_after_a_cut_it_goes_on_where_it_stopped(
    pull: Pull, hub: HubServer, models: Path, source: Path
) -> None:
    hub.cuts[WEIGHTS] = [HALF]
    hub.repos[MODEL].problem = None
    code, _, _ = pull(MODEL)
    assert code == 0
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, HALF]
    assert same_files(models / MODEL, source)


def start(*words: str, terminal: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_router", "pull", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_leaves_what_the_next_pull_goes_on_with(
    pull: Pull, hub: HubServer, models: Path, source: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    process = start(MODEL)
    assert gate.reached.wait(60)
    partial = models / ".downloads" / MODEL.replace("/", "--") / COMMIT / f"{WEIGHTS}.incomplete"
    until_sync(lambda: partial.exists() and partial.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    gate.opened.set()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1].endswith(" here; the same command goes on from there.")
    assert "Traceback" not in err
    there = partial.stat().st_size
    assert not (models / MODEL).exists()
    hub.gates.clear()
    code, out, _ = pull(MODEL, "--dry-run")
    assert code == 0
    (weights,) = [line for line in out.splitlines() if line.startswith(WEIGHTS)]
    assert not weights.endswith("-")  # some of it is here
    code, _, _ = pull(MODEL)
    assert code == 0
    assert [seen.offset for seen in hub.reads(WEIGHTS)][-1] == there
    assert same_files(models / MODEL, source)


def test_a_terminal_sees_a_bar_with_bytes_and_speed(hub: HubServer, models: Path) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    mine, its = pty.openpty()
    process = start(MODEL, terminal=its)
    os.close(its)
    assert gate.reached.wait(60)
    shown = ""
    while MODEL not in shown:
        shown += read_some(mine)
    gate.opened.set()
    while process.poll() is None or select.select([mine], [], [], 0)[0]:
        if not (more := read_some(mine)):
            break
        shown += more
    os.close(mine)
    assert process.wait(30) == 0
    assert "MB" in shown
    assert "/s" in shown


def read_some(terminal: int) -> str:
    """What a terminal shows next; empty at its end."""
    ready, _, _ = select.select([terminal], [], [], 20)
    assert ready
    try:
        return os.read(terminal, 65_536).decode(errors="replace")
    except OSError:  # nobody writes to it any more
        return ""


def test_a_name_that_is_almost_right_gets_the_nearest(pull: Pull, source: Path) -> None:
    code, _, err = pull("mlx-community/Qwen3-Tiny-8bit")
    assert code == 1
    assert "The Hugging Face Hub has no model mlx-community/Qwen3-Tiny-8bit" in err
    assert f"the nearest are: {MODEL}" in err
    assert "hf auth login" in err
    code, _, err = pull("Qwen3-Tiny-4bit")
    assert code == 2
    assert "'Qwen3-Tiny-4bit' is no model of the Hugging Face Hub: they are called ORG/NAME" in err
    assert f"; the nearest are: {MODEL}" in err
    code, _, err = pull("nothing/like-it")
    assert code == 1
    assert "nearest" not in err


def test_a_gated_model_says_how_to_log_in_and_comes_with_a_token(
    pull: Pull, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[MODEL].problem = "GatedRepo"
    code, out, err = pull(MODEL)
    assert (code, out) == (1, "")
    assert "accept its licence on its page there, then log in with `hf auth login`" in err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull(MODEL)[0] == 0
    assert (models / MODEL / WEIGHTS).exists()


def test_a_full_disk_is_told_of_before_anything_is_fetched(
    pull: Pull, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = job.KEEP_FREE_BYTES + 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * free, free, free))
    for words in ([MODEL], [MODEL, "--dry-run"]):
        code, _, err = pull(*words)
        assert code == 1
        assert "it needs 3.6 MB and there is room for 0.1 MB" in err
    assert not hub.reads(WEIGHTS)


def test_an_unusable_folder_in_the_way_is_named(pull: Pull, models: Path, source: Path) -> None:
    (models / MODEL).mkdir(parents=True)
    (models / MODEL / "config.json").write_text("{}")
    code, _, err = pull(MODEL)
    assert code == 1
    assert f"{models / MODEL} is there, and cannot be used: " in err
    assert "Remove the folder, then pull again." in err


def test_a_folder_with_missing_or_truncated_files_is_completed(
    pull: Pull, models: Path, source: Path
) -> None:
    shutil.copytree(source, models / MODEL)
    os.truncate(models / MODEL / WEIGHTS, HALF)
    code, out, _ = pull(MODEL, "--dry-run")
    assert code == 0
    assert out.endswith(f"would be fetched into {models / MODEL}\n")
    code, out, _ = pull(MODEL)
    assert (code, out) == (0, f"{MODEL} is here: {models / MODEL} (4 MB)\n")
    assert same_files(models / MODEL, source)
    assert sorted(os.listdir(models)) == [MODEL.split("/")[0]]


def test_a_linked_model_is_left_alone_and_said_to_be_linked(
    pull: Pull, hub: HubServer, models: Path, source: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(source, elsewhere)
    (models / MODEL).parent.mkdir(parents=True)
    (models / MODEL).symlink_to(elsewhere)
    assert pull(MODEL)[:2] == (0, f"{MODEL} is here already, linked: {models / MODEL}\n")
    (elsewhere / WEIGHTS).unlink()
    code, _, err = pull(MODEL)
    assert code == 1
    assert "It is a link, or made of links, to another program's files, and is left alone" in err
    assert (models / MODEL).is_symlink()
    assert not hub.seen


def test_of_a_model_that_is_not_supported_nothing_is_fetched(
    pull: Pull, hub: HubServer, models: Path, source: Path
) -> None:
    shutil.copytree(source, models / MODEL)
    config = (source / "config.json").read_text().replace('"qwen3"', '"not_yet_known"')
    (models / MODEL / "config.json").write_text(config)
    code, _, err = pull(MODEL)
    assert code == 1
    assert "which the installed mlx-lm does not support. There is nothing to fetch" in err
    assert "pull again" not in err
    assert not hub.seen


def test_a_revision_is_not_said_to_be_here_because_some_copy_is(
    pull: Pull, hub: HubServer, models: Path, source: Path
) -> None:
    shutil.copytree(source, models / MODEL)
    code, out, err = pull(MODEL, "--revision", "v1")
    assert (code, out) == (1, "")
    assert "nothing says of which revision it is. To get v1, remove that folder" in err
    assert "--model-dir" in err
    assert not hub.seen


def test_a_hub_that_cannot_be_reached_is_one_line(
    pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = pull(MODEL)
    assert code == 1
    assert "the Hugging Face Hub cannot be reached" in err
    assert "Traceback" not in err
