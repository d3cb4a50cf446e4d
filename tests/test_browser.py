"""The pages in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server import ServerProcess

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=15000",
]


def page(url: str, profile: Path) -> str:
    """The page's HTML after its scripts have run."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian package chromium)")
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_shows_without_the_internet(
    path: str, demo_server: ServerProcess, tmp_path: Path
) -> None:
    shown = page(f"{demo_server.base}{path}", tmp_path)
    assert "MLX Router" in shown
    assert "/v1/chat/completions" in shown


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_documentation_page_asks_this_server_only(path: str, demo_server: ServerProcess) -> None:
    html = httpx.get(f"{demo_server.base}{path}").text
    for quote in ('src="', 'href="'):
        for target in html.split(quote)[1:]:
            address = target.split('"')[0]
            assert address.startswith("/"), address
            assert httpx.get(f"{demo_server.base}{address}").status_code == 200
