"""A stand-in for the Hugging Face Hub: the part of its HTTP API that a download needs.

It answers as the real one does: a listing with sizes and hashes, files behind ``resolve``, large
ones by a redirect to another host, byte ranges, and its codes for gated and missing repositories.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import constants

from mlx_router.downloads import transfer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_letmein"
WAIT_SECONDS = 60.0


@dataclass
class Repo:
    """``sizes`` are declared in place of the true ones; ``problem`` is an error code of the Hub
    that reading a file gives to a client without the token. Without ``hashes`` none is listed."""

    files: dict[str, bytes]
    sizes: dict[str, int] = field(default_factory=dict)
    problem: str | None = None
    commit: str = COMMIT
    hashes: bool = True
    tags: tuple[str, ...] = ("main",)


@dataclass(frozen=True)
class Seen:
    """A request: ``offset`` is where its range begins, ``token`` whether it had one."""

    path: str
    host: str
    offset: int
    token: bool


class Gate:
    """Holds a file back after so many bytes, until it is opened."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.reached = threading.Event()
        self.opened = threading.Event()


class HubServer:
    """``address`` is for HF_ENDPOINT. ``gates`` by file name; ``cuts`` are the bytes after which
    the connection breaks, ``ends`` those after which an answer without a length ends as if it were
    whole, ``extra`` is sent after a file's content, ``damage`` says how often a file comes with
    wrong content; ``status`` is answered to everything, and ``listing`` in place of every listing;
    without ``ranges`` a file is always sent whole."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.gates: dict[str, Gate] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ends: dict[str, list[int]] = {}
        self.extra: dict[str, bytes] = {}
        self.damage: dict[str, int] = {}
        self.status: int | None = None
        self.listing: bytes | None = None
        self.ranges = True
        self.address = ""

    def add(self, name: str, folder: Path) -> Repo:
        """A repository with the files of a model folder."""
        files = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        self.repos[name] = Repo(files)
        return self.repos[name]

    def reads(self, file: str) -> list[Seen]:
        """The requests for a file's content, without those that were sent on."""
        verb = "/content/" if _is_large(file) else "/resolve/"
        return [s for s in self.seen if verb in s.path and s.path.endswith(f"/{file}")]

    @contextmanager
    def serving(self) -> Iterator[HubServer]:
        hub = self

        class Handler(_Handler):
            owner = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            for gate in self.gates.values():
                gate.opened.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test reads ``seen``."""

    def do_GET(self) -> None:
        hub, path = self.owner, self.path.split("?")[0]
        if path == "/api/agent-harnesses":  # asked by huggingface_hub for itself
            self._empty(404)
            return
        if path == "/api/models":
            self._search()
            return
        begin = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        hub.seen.append(Seen(path, self.headers["Host"], int(begin), token))
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models" if is_api else "").strip("/").split("/", 4)
        name = "/".join(parts[:2])
        repo = hub.repos.get(name)
        if hub.status is not None:
            self._empty(hub.status)
        elif repo is None:
            self._empty(401, "RepoNotFound")
        elif is_api and parts[2:3] == ["revision"] and parts[3] not in (repo.commit, *repo.tags):
            self._empty(404, "RevisionNotFound")
        elif is_api:
            self._body(200, hub.listing if hub.listing is not None else _listing(name, repo))
        else:
            self._file(repo, name, *parts[2:], token=token, offset=int(begin))

    def _search(self) -> None:
        """The repositories with a part of a name, as the Hub finds them."""
        asked = parse_qs(urlsplit(self.path).query).get("search", [""])[0].casefold()
        names = [name for name in self.owner.repos if asked in name.casefold()]
        self._body(200, json.dumps([{"_id": name, "id": name} for name in names]).encode())

    def _file(
        self, repo: Repo, name: str, verb: str, commit: str, file: str, *, token: bool, offset: int
    ) -> None:
        if commit != repo.commit or file not in repo.files:
            self._empty(404, "EntryNotFound")
        elif verb == "resolve" and repo.problem and not token:
            self._empty(403, repo.problem)
        elif verb == "resolve" and _is_large(file):
            elsewhere = self.owner.address.replace("127.0.0.1", "localhost")
            self._empty(302, Location=f"{elsewhere}/{name}/content/{commit}/{file}")
        else:
            self._content(file, repo.files[file], offset)

    def _content(self, file: str, content: bytes, offset: int) -> None:
        hub = self.owner
        if hub.damage.get(file, 0) > 0:
            hub.damage[file] -= 1
            content = bytes(len(content))
        if not hub.ranges:
            offset = 0
        rest = content[offset:] + hub.extra.get(file, b"")
        self.send_response(206 if offset else 200)
        if ends := hub.ends.get(file):
            rest = rest[: ends.pop(0)]
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if offset:
            size = len(content)
            self.send_header("Content-Range", f"bytes {offset}-{size - 1}/{size}")
        self.end_headers()
        if cuts := hub.cuts.get(file):
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
            return
        gate = hub.gates.get(file)
        if gate is not None and offset < gate.after:
            self.wfile.write(rest[: gate.after - offset])
            self.wfile.flush()
            gate.reached.set()
            gate.opened.wait(WAIT_SECONDS)
            rest = rest[gate.after - offset :]
        try:
            self.wfile.write(rest)
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def _body(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _empty(self, status: int, code: str | None = None, **headers: str) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _listing(name: str, repo: Repo) -> bytes:
    siblings = []
    for file, content in repo.files.items():
        size = repo.sizes.get(file, len(content))
        entry: dict[str, Any] = {"rfilename": file, "size": size}
        if repo.hashes:
            entry["blobId"] = _git_sha1(content)
        if repo.hashes and _is_large(file):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
        siblings.append(entry)
    body = {"id": name, "sha": repo.commit, "siblings": siblings, "tags": []}
    return json.dumps(body).encode()


def _is_large(file: str) -> bool:
    """Whether the Hub would keep it with Git LFS."""
    return file.endswith((".safetensors", ".bin", ".gguf", "tokenizer.json"))


def _git_sha1(content: bytes) -> str:
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process, and those that it starts, take for the real one. What its library
    keeps for itself goes to ``folder``."""
    server = HubServer()
    with server.serving():
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(folder / "huggingface"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(transfer, "_FIRST_PAUSE", 0.01)
        yield server
