"""Computed prompts on disk: the files, and all that can happen to them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_router.engine.prefix import disk as disk_module
from mlx_router.engine.prefix.blocks import Entry, parse
from mlx_router.engine.prefix.cache import text_key
from mlx_router.engine.prefix.files import Folder
from tests.prefix_disk_support import (
    IDS,
    PLENTY,
    files,
    held,
    in_order,
    keep,
    longest,
    opened,
    read,
    rows_cache,
    settled,
)
from tests.waiting import until_sync


def with_right_checksum(folder: Path, old: Path, change: Callable[[bytes], bytes]) -> Path:
    """The file with another content, and a name that fits it."""
    entry, data = parse(old.name), change(old.read_bytes())
    assert entry is not None
    old.unlink()
    written = Folder(folder, PLENTY).write(entry, lambda file: (file.write(data), None)[1], 0)
    return folder / written.file


# --- damage -----------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_is_found_and_the_file_removed(tmp_path: Path) -> None:
    keep(tmp_path, IDS[:300], rows_cache(IDS[:300]))
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    for place in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with opened(tmp_path) as disk:
            assert longest(disk, IDS) == 256
            assert read(disk, IDS, 256) is None, place
            assert longest(disk, IDS) == 0
        assert not file.exists()
        file.write_bytes(whole)
        file.chmod(0o600)
    with opened(tmp_path) as disk:
        assert held(read(disk, IDS, 256)) == IDS[:256]


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_file_is_removed_and_what_comes_before_it_stays(
    left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    third = in_order(tmp_path)[2]
    third.write_bytes(third.read_bytes()[:left])
    with opened(tmp_path) as disk:
        assert read(disk, IDS, 1024) is None
        assert longest(disk, IDS) == 512
        assert held(read(disk, IDS, 512)) == IDS[:512]
        assert not third.exists()
        assert "damaged and removed" in caplog.text
        disk.write("", text_key(IDS), rows_cache(IDS), {})  # and is written again
        settled(disk, IDS, 1024)
        assert held(read(disk, IDS, 1024)) == IDS[:1024]


def test_a_file_that_is_gone_costs_no_more_than_itself(tmp_path: Path) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    with opened(tmp_path) as disk:
        assert longest(disk, IDS) == 1024
        in_order(tmp_path)[1].unlink()
        assert read(disk, IDS, 1024) is None
        assert held(read(disk, IDS, longest(disk, IDS))) == IDS[:256]


LAYOUT = b'\\"class\\": \\"KVCache\\"'


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"no safetensors at all",
        lambda data: b"",
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b"KVCache", b"Popen12"),
        lambda data: data.replace(LAYOUT, LAYOUT.replace(b"class", b"shape")),
        lambda data: data.replace(b"rows.0", b"rows.7"),
        lambda data: data.replace(b'\\"rows\\": 2', b'\\"rows\\": 9'),
        lambda data: data.replace(b"digest", b"digits"),
        lambda data: data.replace(b"[1,1,256,16]", b"[1,1,128,32]"),
        lambda data: data.replace(b"[1,1,256,16]", b"[1,256,1,16]"),
        lambda data: data.replace(b"F32", b"I32", 1),
    ],
)
def test_a_foreign_file_under_a_right_name_is_removed(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Its checksum is right: somebody else wrote it, or another version of this."""
    keep(tmp_path, IDS, rows_cache(IDS))
    before = in_order(tmp_path)[1].read_bytes()
    assert change(before) != before
    file = with_right_checksum(tmp_path, in_order(tmp_path)[1], change)
    with opened(tmp_path) as disk:
        assert longest(disk, IDS) == 1024
        assert read(disk, IDS, 1024) is None
        assert not file.exists()
        assert longest(disk, IDS) < 1024


def test_a_block_under_the_name_of_another_is_removed(tmp_path: Path) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    first, second = in_order(tmp_path)[:2]
    second.write_bytes(first.read_bytes())
    one, two = parse(first.name), parse(second.name)
    assert one is not None
    assert two is not None
    forged = Entry(two.parent, two.tokens, two.digest, two.kind, one.check)
    second.rename(tmp_path / forged.file)
    with opened(tmp_path) as disk:
        assert read(disk, IDS, 1024) is None
        assert longest(disk, IDS) == 256


def test_files_of_others_stay_and_files_of_other_versions_go(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    mine = Entry("a" * 40, 256, "b" * 40, "block", 1)
    other = tmp_path / Entry("a" * 40, 256, "b" * 40, "block", 1, version=99).file
    strange = [tmp_path / name for name in ("notes.txt", "model.safetensors", mine.file + ".bak")]
    for file in (other, *strange):
        file.write_text("x")
        file.chmod(0o600)
    keep(tmp_path, IDS, rows_cache(IDS), max_bytes=1)
    assert not other.exists()
    assert all(file.exists() for file in strange)


def test_links_and_what_is_no_file_are_left_alone(tmp_path: Path) -> None:
    folder, secret = tmp_path / "disk", tmp_path / "secret"
    keep(folder, IDS, rows_cache(IDS))
    first, second, third, _ = in_order(folder)
    secret.write_bytes(first.read_bytes())
    secret.chmod(0o600)
    first.unlink()
    first.symlink_to(secret)
    second.unlink()
    second.mkdir()
    third.unlink()
    os.mkfifo(third, 0o600)
    with opened(folder) as disk:
        assert longest(disk, IDS) == 0
    # The same while it is open: they take the place of files that are known.
    for file in (first, third):
        file.unlink()
    second.rmdir()
    keep(folder, IDS, rows_cache(IDS))
    with opened(folder) as disk:
        assert longest(disk, IDS) == 1024
        first.unlink()
        first.symlink_to(secret)
        assert read(disk, IDS, 256) is None
    assert secret.exists()


# --- permissions ------------------------------------------------------------------------------


def test_folder_and_files_are_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "disk"
    before = os.umask(0)
    try:
        keep(folder, IDS, rows_cache(IDS))
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(folder)} == {0o600}


def test_a_file_that_others_could_write_is_not_read(tmp_path: Path) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    with opened(tmp_path) as disk:
        assert longest(disk, IDS) == 1024
        in_order(tmp_path)[3].chmod(0o620)
        assert read(disk, IDS, 1024) is None
    in_order(tmp_path)[1].chmod(0o604)
    with opened(tmp_path) as disk:
        assert longest(disk, IDS) == 256


def test_an_open_folder_is_closed_but_not_one_with_other_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    folder.chmod(0o755)
    keep(folder, IDS, rows_cache(IDS))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(files(folder)) == 4
    other = tmp_path / "documents"
    other.mkdir()
    other.chmod(0o755)
    (other / "letter.txt").write_text("Dear")
    keep(other, IDS, rows_cache(IDS))
    assert stat.S_IMODE(other.stat().st_mode) == 0o755
    assert [file.name for file in other.iterdir()] == ["letter.txt"]
    assert "give prefix_cache.directory a folder of its own" in caplog.text


# --- a disk that fails ------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.replace", "mlx.core.save_safetensors"])
def test_a_full_disk_pauses_writing_and_is_said_once(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    keep(tmp_path, IDS, rows_cache(IDS))
    other = IDS[::-1]
    with opened(tmp_path) as disk:
        monkeypatch.setattr(disk_module, "_PAUSE", 0.0)
        monkeypatch.setattr(where, no_space)
        for _ in range(3):
            disk.write("", text_key(other), rows_cache(other), {})
        # A read shows that the thread is alive; those writes fail before the disk is closed.
        assert held(read(disk, IDS, 1024)) == IDS[:1024]
    (record,) = [record for record in caplog.records if "not written" in record.message]
    assert "No space left on device" in record.message
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.undo()
    keep(tmp_path, other, rows_cache(other))
    assert len(files(tmp_path)) == 8


def test_while_writing_pauses_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.replace", no_space)
    with opened(tmp_path) as disk:
        disk.write("", text_key(IDS), rows_cache(IDS), {})
        until_sync(lambda: "not written" in caplog.text)
        monkeypatch.undo()
        disk.write("", text_key(IDS), rows_cache(IDS), {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with opened(tmp_path / "file" / "disk") as disk:
        disk.write("", text_key(IDS), rows_cache(IDS), {})
        assert longest(disk, IDS) == 0
        assert read(disk, IDS, 256) is None
    assert caplog.text.count("not written") == 1


CHILD = """
import sys, time
from pathlib import Path
from mlx_router.engine.prefix.cache import text_key
from tests.prefix_disk_support import *
folder, first = Path(sys.argv[1]), int(sys.argv[2])
ids = list(range(first, first + 2000))
"""


def child(code: str, *given: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *map(str, given)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


def test_a_limit_of_the_system_is_survived(tmp_path: Path) -> None:
    """As a full disk is: the file ends in its middle, and is not there."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
keep(folder, ids, rows_cache(ids))
print(len(list(folder.iterdir())))
"""
    process = child(code, tmp_path / "disk", 0)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert out.splitlines()[-1] == "0"
    assert "File too large" in out


def test_a_process_that_is_killed_while_it_writes_leaves_no_harm(tmp_path: Path) -> None:
    code = """
print("ready", flush=True)
with opened(folder) as disk:
    number = 0
    while True:
        number += 1
        ids = [number, *range(200_000)]
        disk.write("", text_key(ids), rows_cache(ids), {})
        settled(disk, ids, 4000)
"""
    process = child(code, tmp_path, 0)
    try:
        until_sync(lambda: len(files(tmp_path)) > 20, 60)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = 0
    with opened(tmp_path) as disk:
        for number in range(1, 4):
            ids = [number, *range(200_000)]
            tokens = longest(disk, ids)
            if tokens:
                assert held(read(disk, ids, tokens)) == ids[:tokens]
                found += tokens
    assert found > 20 * 256


def test_what_a_killed_process_left_behind_is_removed_in_time(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    old, new = tmp_path / "writing-1", tmp_path / "writing-2"
    old.write_text("")
    new.write_text("")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    keep(tmp_path, IDS, rows_cache(IDS))
    assert not old.exists()
    assert new.exists()


def test_two_processes_share_a_folder_and_its_budget(tmp_path: Path) -> None:
    code = """
for number in range(12):
    own = [first, number, *ids]
    with opened(folder, max_bytes=1_000_000) as disk:
        for wanted in (ids, own):
            disk.write("", text_key(wanted), rows_cache(wanted), {})
            until_sync(lambda: longest(disk, wanted) > 0)
            tokens = longest(disk, wanted)
            found = read(disk, wanted, tokens)
            assert found is None or held(found) == wanted[:tokens]
"""
    processes = [child(code, tmp_path, first) for first in (0, 5000)]
    for process in processes:
        out, _ = process.communicate(timeout=150)
        assert process.returncode == 0, out
        assert "Traceback" not in out
    assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 1_000_000
    keep(tmp_path, [1, *IDS], rows_cache([1, *IDS]), max_bytes=1_000_000)
    assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1_000_000
