#!/usr/bin/env python3
"""Makes the pictures of the documentation: of the status page, of /docs and of the terminal."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import EXIT_CODES, run

from mlx_router.cli.parser import EXIT_OK, Parser
from mlx_router.errors import RouterError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = "make_screenshots.py"
PICTURES = ("hub-light.png", "hub-dark.png", "hub-phone.png", "docs.png", "terminal.svg")
START_SECONDS = 120
COLUMNS, ROWS = 96, 40
QUESTIONS = ("What is in this picture?", "And which colour is it?")

EPILOG = f"""\
It starts a server of its own with the demo models, lets it work for a while, and
takes pictures with the system's Chromium (--browser FILE: another one). It needs
the development dependencies (uv sync). Nothing is downloaded.

examples:
  uv run python helper_tools/make_screenshots.py
  uv run python helper_tools/make_screenshots.py --output /tmp/pictures --seconds 5

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(prog=PROGRAM, usage=f"{PROGRAM} [options]", description=__doc__, epilog=EPILOG)
    group = parser.add_argument_group("options")
    group.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "docs" / "images",
        help="where the pictures go (default: docs/images of this clone)",
    )
    group.add_argument(
        "--seconds", metavar="S", type=int, default=70, help="work before the first picture"
    )
    group.add_argument("--browser", metavar="FILE", help="Chromium or Chrome to use")
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be made, make nothing"
    )
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


def command(options: argparse.Namespace) -> int:
    browser = find_browser(options.browser)
    if options.dry_run:
        for name in PICTURES:
            print(f"would write {options.output / name}")
        return EXIT_OK
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise RouterError("playwright is not installed; it comes with: uv sync") from None
    options.output.mkdir(parents=True, exist_ok=True)
    say("starting a server with the demo models")
    with serving() as (address, terminal), sync_playwright() as playwright:
        write(options.output / "terminal.svg", terminal_picture(terminal).encode())
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        write(options.output / "docs.png", docs_picture(chromium, address))
        with traffic(address):
            for name, picture in hub_pictures(chromium, address, options.seconds):
                write(options.output / name, picture)
        chromium.close()
    return EXIT_OK


def say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    print(f"{file} ({len(content) / 1000:.0f} kB)", flush=True)


def find_browser(given: str | None) -> str:
    names = [given] if given else ["chromium", "chromium-browser", "google-chrome"]
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    for name in [*names, *([] if given else [mac])]:
        if found := shutil.which(name):
            return found
    raise RouterError(
        f"No browser found ({', '.join(names)}). Install Chromium or Chrome, or name one with "
        "--browser FILE."
    )


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """A server in a folder of its own: its address, and what it writes on a terminal."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        (home / "models").mkdir(parents=True)
        environment = {**os.environ, "HOME": str(home), "TERM": "xterm-256color"}
        environment |= {"COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        words = [sys.executable, "-m", "mlx_router", "--demo", "--ip", "127.0.0.1", "-p", "0"]
        ours, theirs = pty.openpty()
        with open(Path(folder) / "log.txt", "wb") as log:
            server = subprocess.Popen(  # noqa: S603  our own program
                words, cwd=home, env=environment, stdout=theirs, stderr=log
            )
        os.close(theirs)
        try:
            shown = read_until_ready(ours, Path(folder) / "log.txt")
            found = re.search(r"http://127\.0\.0\.1:\d+", shown)
            assert found is not None, "the summary has the address"
            yield found.group(), shown
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
            os.close(ours)


def read_until_ready(terminal: int, log: Path) -> str:
    shown = b""
    deadline = time.monotonic() + START_SECONDS
    while not re.search(rb"Ready: [^\n]*\n", shown) and time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the server's end: it has closed its side
            break
    text = shown.decode(errors="replace").replace("\r\n", "\n")
    if "Ready:" not in text:
        raise RouterError(f"The server did not start:\n{text}{log.read_text()}")
    return text


def terminal_picture(text: str) -> str:
    """What was written on a terminal, as an SVG that loads no font from elsewhere."""
    from rich.console import Console
    from rich.text import Text

    prompt = Text.assemble(("$ ", "dim"), "uv run mlx-router --demo\n")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(prompt + Text.from_ansi(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8800", text)))
    picture = console.export_svg(title="MLX Router")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def docs_picture(browser: Browser, address: str) -> bytes:
    say("/docs")
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto(f"{address}/docs")
    page.locator(".opblock").first.wait_for()
    picture = page.screenshot()
    page.close()
    return picture


def hub_pictures(browser: Browser, address: str, seconds: int) -> Iterator[tuple[str, bytes]]:
    say(f"/hub/, after {seconds} s of work")
    page = browser.new_page(viewport={"width": 1440, "height": 1060})
    page.goto(f"{address}/hub/")
    chat(page)
    for left in range(seconds, 0, -1):
        print(f"\r{left:3d} s ", end="", file=sys.stderr, flush=True)
        page.wait_for_timeout(1000)
    print("\r", end="", file=sys.stderr)
    page.locator("#chat-title").click()  # takes the focus off the message
    yield "hub-light.png", page.screenshot()
    page.emulate_media(color_scheme="dark")
    yield "hub-dark.png", page.screenshot()
    page.close()
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True
    ).new_page()
    phone.goto(f"{address}/hub/")
    phone.locator("#requests-rows > *").first.wait_for()
    phone.wait_for_timeout(3000)
    yield "hub-phone.png", phone.screenshot()
    phone.context.close()


def chat(page: Page) -> None:
    """About a picture, with the model that sees."""
    page.locator("#chat-model").select_option("demo-vision")
    page.locator(".settings summary").click()
    page.get_by_label("Temperature").fill("0")
    page.locator(".settings summary").click()
    file: Any = {"name": "shape.png", "mimeType": "image/png", "buffer": drawing()}
    page.locator("#files").set_input_files([file])
    page.locator("#attachments li").wait_for()
    for number, question in enumerate(QUESTIONS):
        page.locator("#message").fill(question)
        page.locator("#message").press("Enter")
        page.locator(".turn-note", has_text="tokens/s").nth(number).wait_for(timeout=60_000)
        page.locator("#send").wait_for()


def drawing() -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((34, 34, 190, 190), fill="blue")
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@contextmanager
def traffic(address: str) -> Iterator[None]:
    """Two clients that ask, one after the other, for as long as the block runs."""
    over = threading.Event()
    questions = ("Tell me a story.", "What is MLX Router?", "How do I add a model?")

    def ask(name: str, most: int) -> None:
        turn = 0
        while not over.is_set():
            body = {
                "model": "demo",
                "messages": [{"role": "user", "content": questions[turn % len(questions)]}],
                "max_tokens": most,
                "temperature": 1,
                "logit_bias": {"0": -100, "1": -100, "2": -100},  # without an end of its own
            }
            headers = {"content-type": "application/json", "x-request-id": f"{name}-{turn:04d}"}
            request = urllib.request.Request(  # noqa: S310  our own server
                f"{address}/v1/chat/completions", json.dumps(body).encode(), headers
            )
            try:
                urllib.request.urlopen(request, timeout=120).close()  # noqa: S310
            except OSError:
                return  # the server ends
            turn += 1

    clients = [("agent", 2000), ("webui", 400)]
    for client in clients:
        threading.Thread(target=ask, args=client, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def main(words: Sequence[str] | None = None) -> int:
    return run(make_parser, command, words)


if __name__ == "__main__":
    sys.exit(main())
