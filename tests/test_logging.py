"""What the logs promise: a request's id in every line, and never a fault for a request."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_router.telemetry import logging as telemetry
from mlx_router.telemetry.logging import bind_request_id, configure_logging, request_id

log = logging.getLogger("mlx_router.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_every_line_of_a_request_carries_its_id(tmp_path: Path) -> None:
    configure_logging(directory=tmp_path)

    async def request(identity: str) -> None:
        bind_request_id(identity)
        await asyncio.sleep(0)
        log.info("begins")
        await asyncio.to_thread(log.info, "on a CPU thread")
        logging.getLogger("some.library").warning("from a library")

    async def both() -> None:
        await asyncio.gather(request("req-1"), request("req-2"))

    asyncio.run(both())
    log.info("outside")
    lines = (tmp_path / "mlx_router.log").read_text().splitlines()
    assert len(lines) == 7
    assert sum("[req-1]" in line for line in lines) == 3
    assert sum("[req-2]" in line for line in lines) == 3
    assert lines[-1].endswith("INFO    mlx_router.test [-] outside")


def test_a_bound_id_ends_with_its_block_and_a_record_may_bring_its_own(tmp_path: Path) -> None:
    configure_logging(directory=tmp_path)
    with bind_request_id("req-1"):
        assert request_id.get() == "req-1"
    assert request_id.get() == "-"
    thread = threading.Thread(target=lambda: log.info("x", extra={"request_id": "req-9"}))
    thread.start()
    thread.join()
    assert "[req-9] x" in (tmp_path / "mlx_router.log").read_text()


def test_the_file_rotates_at_10_mb_and_three_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (telemetry.FILE_BYTES, telemetry.FILES_KEPT) == (10_000_000, 3)
    monkeypatch.setattr(telemetry, "FILE_BYTES", 1000)
    configure_logging(directory=tmp_path / "new" / "folder")
    for _ in range(100):
        log.info("x" * 100)
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["mlx_router.log", "mlx_router.log.1", "mlx_router.log.2"]


def test_a_folder_that_cannot_be_written_costs_the_file_and_not_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    configure_logging(directory=tmp_path / "file" / "logs")
    log.info("still here")
    shown = capsys.readouterr().err
    assert "no log file" in shown
    assert "set server.log_dir" in shown
    assert "still here" in shown


def test_a_full_disk_is_told_once_and_never_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging(directory=tmp_path)

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(telemetry.FileHandler, "shouldRollover", full)
    for number in range(5):
        log.info("line %d", number)
    shown = capsys.readouterr().err
    assert shown.count("log lines are lost ([Errno 28] No space left on device)") == 1
    assert "line 4" in shown
    assert "Traceback" not in shown


def test_a_client_cannot_forge_a_line(tmp_path: Path) -> None:
    configure_logging(directory=tmp_path)
    log.info("model %s not found", "x\n2030-01-01 00:00:00 INFO    forged\x1b[2J")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("a fault")
    lines = (tmp_path / "mlx_router.log").read_text().splitlines()
    assert "x\\n2030-01-01 00:00:00 INFO    forged\\x1b[2J not found" in lines[0]
    assert lines[1].endswith("a fault")
    assert lines[2] == "Traceback (most recent call last):"


def test_debug_shows_more_of_ours_and_no_more_of_the_noisy_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(debug=False)
    log.debug("hidden")
    configure_logging(debug=True)
    log.debug("shown")
    for name in ("httpx", "transformers.tokenization", "uvicorn.error"):
        logging.getLogger(name).info("noise of %s", name)
    shown = capsys.readouterr().err
    assert shown.count("shown") == 1
    assert "hidden" not in shown
    assert "noise" not in shown
