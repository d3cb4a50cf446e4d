"""A real browser for tests: Debian's Chromium, headless, driven by Playwright.

Playwright's own browsers are downloads; the system's takes their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

CHROMIUM = "/usr/bin/chromium"
PATIENCE_MS = 20_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what went wrong on it: errors of scripts, errors and warnings of the console
    (what the content security policy forbids is one), and requests to other origins.
    ``excused``: words of console messages that a test brings about."""

    page: Page
    origin: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.requests.append(request.url)
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.problems.append(f"request to {request.url}")

    def unexcused(self) -> list[str]:
        return [text for text in self.problems if not any(word in text for word in self.excused)]


@contextmanager
def watched(browser: Browser, origin: str, path: str = "", **context: Any) -> Iterator[Watched]:
    """The page at ``path`` ("": a blank one), in a fresh context (no storage, no cookies) with
    these options. Fails at the end if anything went wrong that was not excused."""
    # Without smooth scrolling, which clicks would have to wait for.
    fresh = browser.new_context(**{"reduced_motion": "reduce", **context})
    try:
        seen = Watched(fresh.new_page(), origin)
        if path:
            seen.page.goto(f"{origin}{path}")
        yield seen
        assert not seen.unexcused(), seen.unexcused()
    finally:
        fresh.close()
