"""helper_tools/mlx_downloader.py, against a stand-in of the Hugging Face Hub over real HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

import mlx_router
from mlx_router.cli.copies import put_in_place
from mlx_router.cli.terminal import Terminal
from mlx_router.domain import ModelCard
from mlx_router.downloads import hub as hub_client
from tests.helper_support import HELPERS, Tool, helper_module
from tests.hub_server import COMMIT, Gate, HubServer, hub_in_use
from tests.models import add_remote_code, copy_model, make_model, truncate_shard
from tests.waiting import until_sync

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
MODEL = "tiny/qwen3"
SUGGESTED = "mlx-community/Qwen3-0.6B-4bit"  # number 1 of the list
WEIGHTS = "model.safetensors"
HALF = 1_500_000  # bytes, of about twice as many
STAGED = ".downloads/tiny--qwen3"

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_model(DEMO, tmp_path_factory.mktemp("hub") / "qwen3")


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that has MODEL, for this process and those that it starts."""
    with hub_in_use(tmp_path, monkeypatch) as server:
        server.add(MODEL, source)
        yield server


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model directory, as MLX_MODEL_DIR says; it does not exist yet."""
    folder = tmp_path / "models"
    monkeypatch.setenv("MLX_MODEL_DIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


@pytest.fixture
def tool(models: Path, capfd: pytest.CaptureFixture[str]) -> Tool:
    return Tool("mlx_downloader", capfd)


def state(tool: Tool, model: str = MODEL) -> str:
    word: str = tool("status", model, "--json").json["state"]
    return word


def ctrl_d(_: str) -> str:
    raise EOFError


def seen(models: Path) -> list[str]:
    """What a user sees in the model directory."""
    return sorted(file.name for file in models.iterdir() if not file.name.startswith("."))


# --- downloading ----------------------------------------------------------------------------


def test_a_model_is_downloaded_and_loaded_once_to_see_that_it_works(
    hub: HubServer, tool: Tool, models: Path, source: Path
) -> None:
    assert state(tool) == "not_downloaded"
    said = tool(MODEL)
    assert said.code == 0, said
    assert f"downloaded {MODEL}" in said.out
    assert "verified: loaded in" in said.out
    for file in source.iterdir():
        assert (models / MODEL / file.name).read_bytes() == file.read_bytes()
    assert state(tool) == "complete"
    asked = len(hub.seen)
    assert "is here already" in tool("download", "qwen3").out
    assert len(hub.seen) == asked


def test_a_model_that_does_not_load_is_a_failure(
    hub: HubServer, tool: Tool, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files vanish before the process that loads it looks at them."""
    module = helper_module("mlx_downloader")
    load = module.load_in_process

    def load_what_is_gone(card: ModelCard, folders: Sequence[Path]) -> object:
        shutil.rmtree(card.path)
        return load(card, folders)

    monkeypatch.setattr(module, "load_in_process", load_what_is_gone)
    said = tool.fails(1, MODEL)
    assert "was downloaded, but does not load" in said
    assert "does not exist" in said
    assert f"Download it: mlx_downloader.py {MODEL}" in said


def test_a_process_that_was_killed_while_it_loaded_is_told(
    hub: HubServer, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    assert "most likely memory ran out" in tool.fails(1, MODEL)


def test_without_verification_nothing_is_loaded(
    hub: HubServer, tool: Tool, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert tool(MODEL, "--download-only").code == 0
    assert tool(MODEL, "--force-redownload", "--no-verify").code == 0
    assert state(tool) == "complete"


def test_a_download_stopped_by_ctrl_c_goes_on_where_it_was(
    hub: HubServer, tool: Tool, models: Path, source: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    command = [sys.executable, str(HELPERS / "mlx_downloader.py"), MODEL, "--no-verify"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert gate.reached.wait(30)
        partial = models / STAGED / COMMIT / f"{WEIGHTS}.incomplete"
        until_sync(lambda: partial.stat().st_size > HALF // 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    here = partial.stat().st_size
    assert process.returncode == 130
    assert "stopped" in err
    assert f"downloading {MODEL}" in err  # progress
    assert "Traceback" not in err
    assert out == ""
    assert state(tool) == "incomplete"
    assert seen(models) == []
    gate.opened.set()
    assert tool(MODEL, "--no-verify").code == 0
    assert [each.offset for each in hub.reads(WEIGHTS)] == [0, here]
    assert (models / MODEL / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_cut_connection_is_gone_on_with(hub: HubServer, tool: Tool) -> None:
    hub.cuts[WEIGHTS] = [HALF]
    assert tool(MODEL, "--no-verify").code == 0
    assert [each.offset for each in hub.reads(WEIGHTS)] == [0, HALF]


def test_what_comes_with_another_hash_is_fetched_again_and_then_refused(
    hub: HubServer, tool: Tool, models: Path
) -> None:
    hub.damage[WEIGHTS] = 2
    assert "not what it should be" in tool.fails(1, MODEL, "--no-verify")
    assert len(hub.reads(WEIGHTS)) == 2
    assert seen(models) == []
    assert state(tool) == "incomplete"
    assert tool(MODEL, "--no-verify").code == 0


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    hub: HubServer, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 1000))
    assert "Make room" in tool.fails(1, MODEL)
    assert hub.reads(WEIGHTS) == []


@pytest.mark.parametrize("code", [401, 403])
def test_a_model_that_the_hub_does_not_give_out_says_how_to_log_in(
    hub: HubServer, tool: Tool, code: int
) -> None:
    hub.status = code
    said = tool.fails(1, MODEL)
    assert "hf auth login" in said
    assert f"huggingface.co/{MODEL}" in said


def test_a_gated_model_says_how_to_log_in(hub: HubServer, tool: Tool) -> None:
    hub.repos[MODEL].problem = "GatedRepo"
    said = tool.fails(1, MODEL)
    assert "is gated" in said
    assert "accept its licence" in said
    assert "hf auth login" in said


def test_a_model_that_the_hub_does_not_have_is_one_clear_error(
    hub: HubServer, tool: Tool, models: Path
) -> None:
    said = tool.fails(1, "tiny/none")
    assert not models.exists()
    assert "has no model tiny/none" in said
    assert "the nearest are: tiny/qwen3" in tool.fails(1, "tiny/qwen")
    assert "hf auth login" in said


def test_a_model_with_code_of_its_own_is_fetched_only_if_trusted_and_never_run(
    hub: HubServer, tool: Tool, models: Path, source: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    own = copy_model(source, tmp_path / "own")
    add_remote_code(own, canary)
    hub.add("tiny/own", own)
    assert "--trust-remote-code" in tool.fails(1, "tiny/own")
    assert not (models / "tiny/own").exists()
    said = tool("tiny/own", "--trust-remote-code")
    assert said.code == 0
    assert "not verified" in said.out
    assert list((models / "tiny/own").glob("*.py"))
    assert not canary.exists()


def test_a_new_download_takes_the_old_one_s_place_only_when_it_is_complete(
    hub: HubServer, tool: Tool, models: Path
) -> None:
    assert tool(MODEL, "--no-verify").code == 0
    before = (models / MODEL).stat().st_ino
    hub.damage[WEIGHTS] = 2
    tool.fails(1, MODEL, "--force-redownload", "--no-verify")
    assert state(tool) == "complete"
    assert (models / MODEL).stat().st_ino == before
    assert tool(MODEL, "--force-redownload", "--no-verify").code == 0
    assert (models / MODEL).stat().st_ino != before
    assert state(tool) == "complete"
    assert seen(models) == ["tiny"]
    assert seen(models / "tiny") == ["qwen3"]
    assert not (models / ".redownload").exists()


def test_what_another_program_left_unfinished_is_replaced(
    hub: HubServer, tool: Tool, models: Path, source: Path
) -> None:
    truncate_shard(copy_model(source, models / MODEL))
    assert state(tool) == "incomplete"
    assert tool(MODEL, "--no-verify").code == 0
    assert (models / MODEL / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_model_that_is_a_link_is_not_downloaded_through_it(
    hub: HubServer, tool: Tool, models: Path, source: Path, tmp_path: Path
) -> None:
    elsewhere = copy_model(source, tmp_path / "elsewhere")
    (models / "tiny").mkdir(parents=True)
    (models / MODEL).symlink_to(elsewhere)
    assert "as a link" in tool.fails(1, MODEL, "--force-redownload")
    assert (elsewhere / WEIGHTS).exists()


def test_a_dry_run_says_what_would_come_and_writes_nothing(
    hub: HubServer, tool: Tool, models: Path, source: Path
) -> None:
    hub.add(SUGGESTED, source)
    said = tool("1", "--dry-run")
    assert said.code == 0
    assert f"would download {SUGGESTED}: 6 files" in said.out
    assert hub.reads(WEIGHTS) == []
    assert not models.exists()


# --- what there is --------------------------------------------------------------------------


def test_the_list_numbers_suggestions_and_what_is_here(
    tool: Tool, models: Path, source: Path
) -> None:
    copy_model(source, models / MODEL)
    copy_model(source, models / SUGGESTED)
    listed = tool("list", "--json").json["models"]
    assert [entry["number"] for entry in listed] == list(range(1, len(listed) + 1))
    by_id = {entry["id"]: entry for entry in listed}
    assert by_id[SUGGESTED]["suggested"]
    assert by_id[SUGGESTED]["state"] == "complete"
    assert not by_id[MODEL]["suggested"]
    assert by_id[MODEL]["state"] == "complete"
    others = [e for e in listed if e["id"] not in (SUGGESTED, MODEL)]
    assert {entry["state"] for entry in others} == {"not_downloaded"}
    number = by_id[MODEL]["number"]
    assert tool("status", str(number), "--json").json["id"] == MODEL
    table = tool("list").out
    assert "Sizes with ~ are approximate" in table
    assert "~2.3 GB" in table


def test_a_state_is_one_of_four(tool: Tool, models: Path, source: Path) -> None:
    assert state(tool) == "not_downloaded"
    folder = copy_model(source, models / MODEL)
    assert state(tool) == "complete"
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"qwen3"', '"unheard_of"'))
    assert state(tool) == "error"
    (folder / "config.json").write_text(config)
    (folder / WEIGHTS).unlink()
    assert state(tool) == "incomplete"
    shutil.rmtree(folder)
    staging = models / STAGED / ("0" * 40)
    staging.mkdir(parents=True)
    (staging / "config.json").write_text("{}")
    assert state(tool) == "incomplete"
    assert "0 complete of 1" in tool("status").out


def test_only_what_is_missing_or_damaged_is_to_be_downloaded_again(
    tool: Tool, models: Path, source: Path
) -> None:
    config = copy_model(source, models / MODEL) / "config.json"
    text = config.read_text()
    for broken, again in (
        (text.replace('"qwen3"', '"unheard_of"'), False),
        (text.replace("{", '{"auto_map": {"AutoModel": "x.y"},', 1), False),
        (text[:-9], True),
    ):
        config.write_text(broken)
        shown = tool("status", MODEL).out + tool("status").out + tool.fails(1, MODEL)
        assert shown.count("--force-redownload") == 3 * again
        assert shown.count("update mlx-lm") == 3 * ("unheard_of" in broken)
    config.write_text(text)
    truncate_shard(config.parent)
    assert f"Go on: mlx_downloader.py {MODEL}" in tool("status", MODEL).out

    elsewhere = models / "elsewhere"
    config.parent.rename(elsewhere)
    config.parent.symlink_to(elsewhere)
    told = tool("status", MODEL).out
    config.parent.unlink()
    config.parent.mkdir()
    for file in elsewhere.iterdir():
        (config.parent / file.name).symlink_to(file)
    for shown in (told, tool("status", MODEL).out):
        assert f"left alone: put it right where it lies, in {elsewhere}" in shown
        assert "mlx_downloader.py" not in shown


@pytest.mark.parametrize(("width", "gone"), [(80, "machine"), (120, "good for")])
def test_the_list_leaves_out_columns_before_names_fold(
    tool: Tool, width: int, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = helper_module("_listing")
    monkeypatch.setattr(listing, "Terminal", partial(Terminal, width=width))
    table = tool("list").out.split("\n\n")[0]
    names = [each.id for each in listing.SUGGESTIONS]
    assert max(map(len, table.splitlines())) <= width
    assert [name for name in names if name not in table and len(name) + 31 <= width] == []
    assert gone not in table


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ((), "Name a model"),
        (("lsit",), "did you mean list"),
        (("Qwen3-8B-4bits",), "did you mean qwen3-8b-4bit"),
        (("99",), "there is no number 99"),
        (("9" * 5000,), "neither a command nor a model"),
        (("remove",), "which model?"),
        (("list", "twice"), "one word too many"),
        (("org/../name",), "can be no model"),
        (("--froce-redownload", MODEL), "--force-redownload"),
    ],
)
def test_wrong_use_is_one_clear_line(tool: Tool, words: tuple[str, ...], hint: str) -> None:
    said = tool.fails(2, *words)
    assert hint in said
    assert len(said.splitlines()) == 1


# --- tidying up -----------------------------------------------------------------------------


def test_cleaning_deletes_what_is_unfinished_and_nothing_else(
    tool: Tool, models: Path, source: Path
) -> None:
    folder = copy_model(source, models / MODEL)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.incomplete").write_bytes(bytes(5000))
    staging = models / STAGED / ("0" * 40)
    staging.mkdir(parents=True)
    (staging / "config.json").write_text("{}")
    other = copy_model(source, models / "tiny/other")
    said = tool("clean", MODEL, "--dry-run")
    assert "would delete" in said.out
    assert staging.exists()
    said = tool("clean", MODEL)
    assert said.code == 0
    assert not (models / ".downloads").exists()
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        file.name for file in source.iterdir() if file.name != WEIGHTS
    )
    assert "what is finished stays" in said.out
    (other / "x.safetensors.part").write_bytes(bytes(10))
    assert "tiny/other" in tool("clean-all").out
    assert "nothing to clean" in tool("clean-all").out
    assert sorted(f.name for f in other.iterdir()) == sorted(f.name for f in source.iterdir())


def test_what_is_being_downloaded_is_not_cleaned(tool: Tool, models: Path) -> None:
    staging = models / STAGED / ("0" * 40)
    staging.mkdir(parents=True)
    with hub_client.utils().WeakFileLock(models / f"{STAGED}.lock"):
        assert "by another process" in tool.fails(1, "clean", MODEL)
        assert "by another process" in tool.fails(1, "remove", MODEL, "--yes")
    assert staging.exists()


def test_removing_asks_first(
    tool: Tool, models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_model(source, models / MODEL)
    assert "--yes" in tool.fails(2, "remove", MODEL)
    assert "would remove" in tool("remove", MODEL, "--dry-run").out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert tool("remove", MODEL).code == 1
    monkeypatch.setattr("builtins.input", ctrl_d)
    assert tool("remove", MODEL).code == 1
    assert folder.exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert tool("remove", MODEL).code == 0
    assert seen(models) == []
    assert "nothing to remove" in tool.fails(1, "remove", MODEL)


def test_of_a_link_only_the_link_is_removed(
    tool: Tool, models: Path, source: Path, tmp_path: Path
) -> None:
    elsewhere = copy_model(source, tmp_path / "elsewhere")
    (models / "tiny").mkdir(parents=True)
    (models / MODEL).symlink_to(elsewhere)
    assert tool("remove", MODEL, "--yes").code == 0
    assert not (models / MODEL).is_symlink()
    assert (elsewhere / WEIGHTS).exists()


def test_a_model_of_a_hugging_face_cache_is_not_removed(tool: Tool, models: Path) -> None:
    make_model("qwen3", models, layout="hf_cache", repo_id="tiny/cached")
    shutil.rmtree(models / ".making", ignore_errors=True)
    assert "hf cache" in tool.fails(1, "remove", "tiny/cached", "--yes")
    assert state(tool, "tiny/cached") == "complete"


def test_the_tools_explain_themselves_at_once() -> None:
    code = (
        "import sys, mlx_downloader, mlx_lmstudio_linker\n"
        "import mlx_model_parameter_discovery_tool as discovery\n"
        "for tool in (mlx_downloader, mlx_lmstudio_linker, discovery):\n"
        "    assert tool.main(['--help']) == 0\n"
        "slow = {'pydantic', 'rich', 'huggingface_hub', 'mlx_lm', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(', '.join(slow) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(HELPERS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") == 3
    assert done.stdout.count("exit codes:") == 3
    assert done.stdout.count("--dry-run") >= 3


def test_a_model_is_replaced_as_a_whole(tmp_path: Path) -> None:
    new, target = tmp_path / "new", tmp_path / "org" / "model"
    for folder in (new, target):
        folder.mkdir(parents=True)
        (folder / folder.name).write_text("")
    put_in_place(new, target)
    assert [file.name for file in target.iterdir()] == ["new"]
    assert [folder.name for folder in target.parent.iterdir()] == ["model"]
