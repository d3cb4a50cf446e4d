"""Brings about what docs/troubleshooting.md describes, and says what is said then."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import constants

import mlx_router
from mlx_router import MLXModelManager, Settings
from mlx_router.cli.address import AddressUnusable, bind
from mlx_router.cli.checks import machine
from mlx_router.cli.checks.finding import Patient
from mlx_router.cli.main import main
from mlx_router.domain import ChatPrompt, ImagePart, Message, ModelCard, ModelKind
from mlx_router.engine.scripted import ScriptedOptions
from mlx_router.engine.scripted_text import ScriptedCodec
from mlx_router.errors import RouterError
from mlx_router.runtime.admission import check_sight
from tests.api_support import USER, FakeManager, client_for, settings
from tests.documents import ROOT
from tests.hub_server import hub_in_use
from tests.media_support import data_uri
from tests.server import ServerProcess, free_port
from tests.test_api_media_clients import make_pdf
from tests.test_api_scripted import router
from tests.waiting import until

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
PATIENT = Patient(argparse.Namespace(demo=False), Settings())
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "look"}}


@dataclass
class World:
    """What symptoms are brought about with."""

    server: ServerProcess  # its models are damaged in all the ways
    scripted: ServerProcess
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def ask(self, model: str, **body: Any) -> httpx.Response:
        return ask(self.server, model=model, **body)

    def command(self, *words: str) -> list[str]:
        """What a command that fails says."""
        self.capsys.readouterr()
        assert main(words) > 0
        lines = self.capsys.readouterr().err.splitlines()
        return [line.removeprefix("mlx-router: ") for line in lines]


def ask(server: ServerProcess, **body: Any) -> httpx.Response:
    asked = {"messages": USER, **body}
    return httpx.post(f"{server.url}/chat/completions", json=asked, timeout=60)


def message(response: httpx.Response) -> str:
    assert response.status_code >= 400, response.text
    return str(response.json()["error"]["message"])


# --- it does not start ----------------------------------------------------------------------


def port_in_use(world: World) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AddressUnusable) as caught:
        bind("127.0.0.1", taken.getsockname()[1])
    return [caught.value.message]


def faults_of_the_config(world: World) -> list[str]:
    file = world.folder / "wrong.json"
    file.write_text('{"server": {"prot": 8800, "port": "8801"}}')
    said = world.command("config", "check", str(file))
    file.write_text('{"server": {"port": 8801},}')
    return said + world.command("config", "check", str(file))


def no_server(world: World) -> list[str]:
    return world.command("status", "--url", f"http://127.0.0.1:{free_port()}")


def log_to(folder: Path) -> list[str]:
    """What a process says that logs a line into a folder."""
    code = (
        "import logging, sys, pathlib\n"
        "from mlx_router.telemetry.logging import configure_logging\n"
        "configure_logging(directory=pathlib.Path(sys.argv[1]))\n"
        "logging.getLogger('x').warning('')"
    )
    command = [sys.executable, "-c", code, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [re.sub(r"^.*\[-\] ", "", line) for line in said.splitlines() if not line.endswith("] ")]


def no_log_file(world: World) -> list[str]:
    (world.folder / "file").touch()
    return log_to(world.folder / "file" / "logs")


def disk_full(world: World) -> list[str]:
    (world.folder / "mlx_router.log").symlink_to("/dev/full")
    return log_to(world.folder)


# --- models ---------------------------------------------------------------------------------


def unknown_models(world: World) -> list[str]:
    return [message(world.ask("smal")), message(world.ask("nothing"))]


def unusable_models(world: World) -> list[str]:
    return [message(world.ask(f"org/{name}")) for name in ("half", "cut", "gguf", "old", "new")]


def too_large(world: World) -> list[str]:
    return [message(world.ask("org/huge"))]


def not_downloaded(world: World) -> list[str]:
    said = [message(world.ask("some/model"))]
    patch = world.monkeypatch
    config = {"allow_downloads": True, "state_directory": str(world.folder / "state")}
    with hub_in_use(world.folder, patch) as hub:
        hub.add("tiny/gated", DEMO)
        hub.add("tiny/free", DEMO)
        hub.repos["tiny/gated"].problem = "GatedRepo"
        manager = MLXModelManager(
            Settings.model_validate({"defaults": config}), model_directory=world.folder
        )
        with manager:
            for name in ("tiny/gated", "tiny/free", "tiny/other"):
                if name == "tiny/free":
                    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
                if name == "tiny/other":
                    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
                with pytest.raises(RouterError) as caught:
                    manager.find(name)
                said.append(caught.value.message)
    return said


# --- answers --------------------------------------------------------------------------------


def too_long(world: World) -> list[str]:
    return [message(world.ask("org/short", messages=[{"role": "user", "content": "Hi! " * 200}]))]


def no_tools(world: World) -> list[str]:
    return [message(world.ask("org/small", tools=[TOOL]))]


def blind(world: World) -> list[str]:
    card = ModelCard(
        id="org/blind", path=Path(), kind=ModelKind.TEXT, architecture="qwen3_vl", blind=True
    )
    part = ImagePart("data:image/png;base64,AAAA")
    with pytest.raises(RouterError) as caught:
        check_sight(card, ChatPrompt((Message("user", (part,)),)))
    content = [PICTURE]
    seen = world.ask("org/small", messages=[{"role": "user", "content": content}])
    return [message(seen), caught.value.message]


def many_pages(world: World) -> list[str]:
    part = {"url": data_uri(make_pdf(23), "application/pdf")}
    content = [{"type": "image_url", "image_url": part}]
    question = {"role": "user", "content": content}
    answer = ask(world.scripted, model="scripted-vision", messages=[question])
    notices: list[str] = answer.raise_for_status().json()["notices"]
    return notices


# --- slow, busy, cut off --------------------------------------------------------------------


def slow_blas(world: World) -> list[str]:
    found = {"backend": "cpu", "device": "CPU", "right": True, "gflops": 1.2, "openblas": False}
    done = subprocess.CompletedProcess([], 0, json.dumps({**found, "memory": None}), "")
    world.monkeypatch.setattr(machine, "_output", lambda *_: done)
    (finding,) = machine.mlx(PATIENT)
    return [finding.fix]


async def queue_full(world: World) -> list[str]:
    gate, loading = threading.Event(), threading.Event()
    async with router(ScriptedOptions(loading=loading, load_gate=gate), max_queue=1) as one:
        waiting = asyncio.create_task(one.post(max_tokens=2))
        assert await asyncio.to_thread(loading.wait, 10)
        refused = await one.post()
        gate.set()
        assert (await waiting).status_code == 200
    assert refused.status_code == 429
    return [message(refused)]


async def timeouts(world: World) -> list[str]:
    gate, one_model = threading.Event(), {"load_timeout": 1.5, "cache_size": 1}
    async with router({"scripted": ScriptedOptions(step_gate=gate)}, defaults=one_model) as one:
        refused = [await one.post(timeout=0.05)]
        held = asyncio.create_task(one.post())
        await until(lambda: any(model.active for model in one.manager.status().loaded))
        refused.append(await one.post(model="scripted-2", timeout=0.05))
        gate.set()
        await held
    gate.clear()
    async with router(ScriptedOptions(load_gate=gate), defaults={"load_timeout": 0.1}) as one:
        refused.append(await one.post())
        gate.set()
    assert {response.status_code for response in refused} == {504}
    said = [message(response) for response in refused]
    gate, encode = threading.Event(), ScriptedCodec.encode_chat

    def slowly(*args: Any, **options: Any) -> Any:
        gate.wait(10)
        return encode(*args, **options)

    async with router() as one:
        await one.post(max_tokens=1)
        world.monkeypatch.setattr(ScriptedCodec, "encode_chat", slowly)
        said.append(message(await one.post(timeout=0.05)))
        gate.set()
    return said


async def shut_down(world: World) -> list[str]:
    gate, stepping = threading.Event(), threading.Event()
    options = ScriptedOptions(stepping=stepping, step_gate=gate)
    async with router(options, grace_seconds=0) as one:
        exchange = one.exchange(stream=True)
        assert await asyncio.to_thread(stepping.wait, 10)
        one.manager.begin_shutdown()
        text = await exchange.end()
        gate.set()
    (found,) = re.findall(r'"error": ?(\{.*?\})', text)
    return [str(json.loads(found)["message"])]


# --- from elsewhere, the service ------------------------------------------------------------


async def wrong_keys(world: World) -> list[str]:
    said = []
    async with client_for(FakeManager(settings=settings(api_keys={"one": "sk-right"}))) as client:
        for headers in ({}, {"authorization": "Bearer sk-wrong"}):
            refused = await client.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            said.append(message(refused))
    return said


async def from_afar(world: World) -> list[str]:
    async with client_for(FakeManager(), address="8.8.8.8") as client:
        said = [message(await client.get("/v1/models"))]
    async with client_for(FakeManager(), address="192.168.1.7") as client:
        assert (await client.get("/v1/models")).status_code == 200
        return [*said, message(await client.post("/admin/reload"))]


def other_host(world: World) -> list[str]:
    return [message(httpx.get(f"{world.server.url}/models", headers={"host": "llm.example.com"}))]


def other_origin(world: World) -> list[str]:
    headers = {"origin": "https://app.example.com"}
    return [message(httpx.post(f"{world.server.url}/tokenize", headers=headers))]


def crash_loop(world: World) -> list[str]:
    (world.folder / ".crashes").write_text(f"{int(time.time()) - 60}\n" * 4)
    command = ["bash", str(ROOT / "helper_tools/service/run.sh"), "bash", "-c", "exit 7"]
    done = subprocess.run(command, cwd=world.folder, capture_output=True, text=True)
    assert done.returncode == 0
    return [done.stderr.splitlines()[-1].partition("mlx-router-service: ")[2]]


SYMPTOMS: dict[str, Callable[[World], list[str] | Awaitable[list[str]]]] = {
    "The port is in use": port_in_use,
    "The config has a fault": faults_of_the_config,
    "A command finds no server": no_server,
    "There is no log file": no_log_file,
    "The disk is full": disk_full,
    "The model is not found": unknown_models,
    "The model cannot be used": unusable_models,
    "The model is too large": too_large,
    "A model is not downloaded": not_downloaded,
    "The chat is too long": too_long,
    "Tool calls come as text": no_tools,
    "The model does not see images": blind,
    "Only the first pages of a PDF are read": many_pages,
    "Everything is slow on Linux": slow_blas,
    "Too many wait (429)": queue_full,
    "Timeouts (504)": timeouts,
    "A stream comes in one piece, or ends early": shut_down,
    "401: the key": wrong_keys,
    "403: from another machine": from_afar,
    "403: the host name": other_host,
    "403: a web page (CORS)": other_origin,
    "It does not stay up": crash_loop,
}
