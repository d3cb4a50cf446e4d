"""The commands against a running server do what they say, and say what they did."""

from __future__ import annotations

import http.server
import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router.api.schemas.hub import StatusSnapshot
from mlx_router.cli.main import COMMANDS, main
from mlx_router.cli.terminal import duration
from tests.server import ServerProcess, free_port
from tests.terminals import CTRL_C, Terminal
from tests.waiting import until_sync

ROOT = Path(__file__).parent.parent
KEY = "s3cret"
Run = Callable[..., tuple[int, str, str]]

REMOTE = [
    *(("status",), ("status", "--json"), ("watch", "--count", "1"), ("logs",), ("logs", "-f")),
    *(("load-model", "demo"), ("unload-model", "demo"), ("pin", "demo"), ("shutdown",)),
    *(("reload",), ("chat", "-m", "Hello."), ("models",)),
]
NAMES = [" ".join(words) for words in REMOTE]


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLX_MODEL_DIR", "MLX_ROUTER_CONFIG", "MLX_ROUTER_PORT", "MLX_ROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo, with an API key, a model that needs more memory than there is, and a broken one."""
    folder = tmp_path_factory.mktemp("commands")
    models = folder / "models"
    (models / "broken").mkdir(parents=True)
    (models / "broken" / "config.json").write_text('{"model_type": "llama"}')
    config = {
        "server": {"api_keys": {"me": KEY}},
        "models": {"demo-vision": {"required_memory_gb": 90_000}, "demo": {"aliases": ["tiny"]}},
    }
    with ServerProcess(folder, "--demo", models=models, config=config) as process:
        yield process


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], server: ServerProcess) -> Run:
    """Runs a command against the server, with the server's config."""

    def run_it(*words: str) -> tuple[int, str, str]:
        code = main([*words, *address(server)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_it


def address(server: ServerProcess) -> list[str]:
    return ["--config", str(server.folder / "config.json"), "-p", str(server.port)]


def status(server: ServerProcess) -> dict[str, Any]:
    answer = httpx.get(f"{server.base}/hub/status", headers={"authorization": f"Bearer {KEY}"})
    found: dict[str, Any] = answer.json()
    return found


def model(server: ServerProcess, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in status(server)["models"] if m["id"] == name)
    return found


@contextmanager
def long_answer(server: ServerProcess) -> Iterator[str]:
    """A request that is under way, and its id."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 8000,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "long-answer"}
    url = f"{server.url}/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()  # closed when it is gone
        next(lines)
        yield "long-answer"
    until_sync(lambda: not status(server)["requests"])


# --- status ---------------------------------------------------------------------------------


def test_status_shows_memory_models_and_requests_on_one_screen(
    run: Run, server: ServerProcess
) -> None:
    run("load-model", "demo")
    with long_answer(server) as request:
        code, out, err = run("status")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 24
    assert lines[0].endswith(server.base)
    assert "█ router" in out
    assert "pressure" in out
    (loaded,) = [line.split() for line in lines if line.startswith("demo ") and "ready" in line]
    assert loaded[:2] == ["demo", "ready"]
    (live,) = [line for line in lines if request in line]
    assert live.split()[:2] == ["demo", "decoding"]
    assert "1 request under way" in out
    assert "1 not in memory, 1 cannot be used" in out


def test_status_json_is_what_the_server_answers(run: Run) -> None:
    code, out, _ = run("status", "--json")
    assert code == 0
    StatusSnapshot.model_validate(json.loads(out))


def test_the_screen_fits_80_columns_and_loses_no_name(server: ServerProcess) -> None:
    from rich.console import Console

    from mlx_router.cli.dashboard import all_models, screen

    shown = status(server)
    name = "organisation/a-model-with-a-name-that-is-longer-than-a-line-of-a-terminal-4bit"
    request = {"id": "req_1", "kind": "chat", "model": name, "phase": "waiting", "seconds": 4000.0}
    request |= {"detail": "downloading it 34 % of 4.2 GB", "tokens_per_second": 123.4}
    request |= {"prompt_tokens": 123_456, "max_tokens": 99_999, "completion_tokens": 12_345}
    shown["models"][0] |= {"id": name, "state": "ready", "memory_gb": 123.4, "pinned": True}
    shown["loaded_models"] = [{"id": name, "idle_seconds": 90_000.0}]
    shown["requests"] = [request]
    shown["memory"] |= {"swap_total_gb": 8.0, "swap_percent": 99.0}
    for rows in (None, 4):
        for width in (80, 120):
            console = Console(width=width)
            with console.capture() as capture:
                console.print(screen(shown, "http://192.168.178.100:8800", width, rows))
                console.print(all_models(shown["models"], width))
            out = capture.get()
            assert max(map(len, out.splitlines())) <= width
            assert ("…" in out) == (rows is not None)
            for fact in (
                "1 d 1 h",
                "1 h 6 min",
                "12,345",
                "123,456",
                "downloading it 34 %",
                "99 %",
            ):
                assert fact in out
    assert "req_1" in out  # where there is room


def test_times_are_written_as_people_read_them() -> None:
    shown = [duration(seconds) for seconds in (0.04, 9.94, 12.4, 185, 7_800, 270_000)]
    assert shown == ["0.0 s", "9.9 s", "12 s", "3 min 5 s", "2 h 10 min", "3 d 3 h"]


# --- models ---------------------------------------------------------------------------------


def test_models_shows_those_of_the_server_with_state_memory_and_pin(
    run: Run, server: ServerProcess
) -> None:
    run("load-model", "demo")
    run("pin", "demo")
    code, out, _ = run("models")
    run("pin", "demo", "--off")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"Models of {server.base}"
    (demo,) = [line.split() for line in lines if line.startswith("demo ")]
    assert "ready" in demo
    assert demo[-1] == "yes"
    assert any(line.startswith("demo-vision ") and "unloaded" in line for line in lines)
    assert "Cannot be used:" in lines
    assert any(line.strip().startswith("broken: ") for line in lines)


def test_models_json_of_a_server_has_what_the_disks_has_and_its_state(run: Run) -> None:
    run("load-model", "demo")
    code, out, _ = run("models", "--json")
    assert code == 0
    served = {each["id"]: each for each in json.loads(out)["models"]}
    assert served["demo"]["state"] == "ready"
    assert served["demo"]["memory_bytes"] > 1_000_000
    assert served["demo"]["aliases"] == ["tiny"]
    assert served["broken"]["problem"]
    assert served["demo-vision"]["supports_vision"] is True
    assert served["demo-vision"]["memory_bytes"] == 0


def test_models_looks_at_the_disk_where_told_to_or_nobody_answers(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = ["--config", str(server.folder / "config.json")]
    here = {"server": {"port": server.port, "api_keys": {"me": KEY}}}
    here["defaults"] = {"model_directory": str(server.folder / "models")}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(here))
    assert main(["models"]) == 0
    assert "Models of" in capsys.readouterr().out
    for words in (["--local"], ["--demo"], ["--model-dir", str(server.folder / "models")]):
        assert main(["models", "--json", *words]) == 0
        models = json.loads(capsys.readouterr().out)["models"]
        assert "memory_bytes" not in models[0]
    here["server"]["port"] = free_port()
    file.write_text(json.dumps(here))
    assert main(["models", "--json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)["models"]] == ["broken"]
    assert main(["models", "--demo", "--url", server.base, *config]) == 2
    assert "--url asks a server and --demo the disk" in capsys.readouterr().err


def test_models_of_a_server_that_says_no_are_the_disks_and_it_is_said(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here = {"server": {"port": server.port, "api_keys": {"me": "wrong"}}}
    here["defaults"] = {"model_directory": str(server.folder / "models")}
    (tmp_path / "config.json").write_text(json.dumps(here))
    assert main(["models", "--json"]) == 0
    shown = capsys.readouterr()
    assert [each["id"] for each in json.loads(shown.out)["models"]] == ["broken"]
    assert "Incorrect API key" in shown.err
    assert "the models on the disk" in shown.err


# --- load, unload, pin ----------------------------------------------------------------------


def test_a_model_is_loaded_pinned_and_unloaded(run: Run, server: ServerProcess) -> None:
    code, out, _ = run("load-model", "tiny")  # its alias
    assert code == 0
    assert out.startswith("demo: ready after ")
    assert out.endswith(" of memory\n")
    assert model(server, "demo")["state"] == "ready"
    assert run("pin", "demo")[1].startswith("demo: pinned until the server ends, ready, ")
    assert model(server, "demo")["pinned"] is True
    assert run("pin", "demo", "--off")[1].startswith("demo: not pinned, ready")
    assert model(server, "demo")["pinned"] is False
    code, out, _ = run("unload-model", "demo")
    assert code == 0
    assert out.startswith("demo: unloaded after ")
    assert model(server, "demo")["state"] == "unloaded"


def test_what_was_done_with_a_model_can_be_had_as_json(run: Run) -> None:
    for words, state in (
        (("load-model", "demo"), "ready"),
        (("pin", "demo", "--off"), "ready"),
        (("unload-model", "demo"), "unloaded"),
    ):
        code, out, _ = run(*words, "--json")
        assert code == 0
        done = json.loads(out)
        assert (done["id"], done["state"], done["pinned"]) == ("demo", state, False)
        assert done["seconds"] >= 0
        assert (done["memory_gb"] > 0) == (state == "ready")


@pytest.mark.parametrize("command", ["load-model", "unload-model", "pin", "chat"])
def test_an_unknown_model_is_code_1_and_the_nearest_is_named(command: str, run: Run) -> None:
    message = ["-m", "Hello."] if command == "chat" else []
    code, out, err = run(command, "demmo", *message)
    assert (code, out) == (1, "")
    assert err == (
        "mlx-router: The model 'demmo' does not exist. The nearest are: demo, demo-vision.\n"
    )


def test_a_model_that_cannot_be_loaded_says_why(run: Run) -> None:
    code, out, err = run("load-model", "demo-vision")
    assert (code, out) == (1, "")
    assert err.startswith("mlx-router: The model does not fit: it needs 108000.0 GB ")
    code, out, err = run("load-model", "broken")
    assert (code, out) == (1, "")
    assert err.startswith("mlx-router: The model broken cannot be used: ")


def test_a_terminal_shows_that_a_load_is_waited_for(server: ServerProcess, tmp_path: Path) -> None:
    with Terminal(tmp_path, "load-model", "demo", *address(server)) as terminal:
        terminal.expect("loading demo")
        terminal.expect("demo: ready after ")
        assert terminal.end() == 0


# --- logs -----------------------------------------------------------------------------------


def test_logs_shows_the_latest_lines_by_level_and_request(run: Run, server: ServerProcess) -> None:
    with long_answer(server) as request:
        pass
    until_sync(lambda: "client left" in run("logs")[1])
    code, out, _ = run("logs", "-n", "2")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "client left" in out
    lines = run("logs", "--request", request)[1].splitlines()
    assert lines
    assert all(f"[{request}]" in line for line in lines)
    assert run("logs", "--request", "nobody") == (0, "", "")
    for line in run("logs", "--level", "warning")[1].splitlines():
        assert " INFO " not in line
    lines = run("logs", "-n", "3", "--json")[1].splitlines()
    assert len(lines) == 3
    keys = {"number", "time", "level", "request_id", "text"}
    assert all(set(json.loads(line)) == keys for line in lines)


def test_logs_follows_new_lines_until_it_is_interrupted(server: ServerProcess, run: Run) -> None:
    with command("logs", "-n", "0", "-f", "--json", *address(server)) as following:
        assert following.stdout is not None
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(following.stdout or ()))
        reader.start()
        until_sync(lambda: run("pin", "demo", "--off")[0] == 0 and bool(seen))
        assert any("POST /admin/models/pin 200" in json.loads(line)["text"] for line in seen)
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 0
        reader.join(20)


@pytest.mark.parametrize("lines", ["many", "-1", "1001"])
def test_a_wrong_number_of_lines_is_code_2(lines: str, run: Run) -> None:
    code, _, err = run("logs", f"--lines={lines}")
    assert code == 2
    assert err == f"mlx-router: --lines: {lines!r} is not allowed; use 0 to 1000\n"


# --- watch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [CTRL_C, "q"])
def test_watch_is_live_and_ends_with_code_0(
    end: str, server: ServerProcess, tmp_path: Path, run: Run
) -> None:
    run("load-model", "demo")
    with Terminal(tmp_path, "watch", "--interval", "0.1", *address(server)) as terminal:
        terminal.expect("No request is under way")
        with long_answer(server):
            terminal.expect("request for")
            terminal.expect("decoding")
        terminal.expect("No request is under way")
        terminal.expect("q ends it")
        terminal.type(end)
        assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.raw  # the screen is as it was
    assert "Traceback" not in terminal.text


def test_watch_writes_lines_into_a_pipe(run: Run, server: ServerProcess) -> None:
    run("load-model", "demo")
    with long_answer(server) as request:
        code, out, _ = run("watch", "--interval", "0.1", "--count", "2")
    assert code == 0
    lines = [dict(part.split("=", 1) for part in line.split()[1:]) for line in out.splitlines()]
    assert [next(iter(line)) for line in lines] == ["pressure", "model", "request"] * 2
    assert lines[0]["requests"] == "1"
    assert (lines[1]["model"], lines[1]["state"]) == ("demo", "ready")
    assert (lines[2]["request"], lines[2]["phase"]) == (request, "decoding")
    assert int(lines[5]["completion_tokens"]) >= int(lines[2]["completion_tokens"])
    code, out, _ = run("watch", "--count", "1", "--json")
    assert code == 0
    StatusSnapshot.model_validate(json.loads(out))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--interval", "soon"],
            "--interval: 'soon' is not allowed; use a number from 0.1 to 86400",
        ),
        (["--interval", "0"], "--interval: '0' is not allowed"),
        (["--count", "0"], "--count: '0' is not allowed"),
        (["--count", "few"], "--count: 'few' is not allowed; use a whole number"),
    ],
)
def test_watch_refuses_what_it_cannot_do(words: list[str], message: str, run: Run) -> None:
    code, _, err = run("watch", *words)
    assert code == 2
    assert message in err


# --- shutdown -------------------------------------------------------------------------------


def test_shutdown_asks_while_requests_are_under_way(server: ServerProcess, tmp_path: Path) -> None:
    with (
        long_answer(server),
        Terminal(tmp_path, "shutdown", *address(server)) as terminal,
    ):
        terminal.expect("1 request is under way. Shut down? [y/N] ")
        terminal.type("\n")
        terminal.expect("Nothing was done.")
        assert terminal.end() == 1
    assert status(server)["stopping"] is False


def test_shutdown_ends_the_server_with_code_0_and_logs_go_on_after_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ServerProcess(tmp_path, "--engine", "scripted", models=tmp_path)
    with server:
        following = command("logs", "-n", "1", "-f", *address(server))
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline()
        assert main(["shutdown", *address(server)]) == 0
        assert capsys.readouterr().out == f"{server.base} has shut down.\n"
        assert server.process is not None
        assert server.process.wait(20) == 0
    with following, server:
        assert "Waiting for it." in following.stderr.readline()
        assert main(["load-model", "scripted", *address(server)]) == 0
        while "loaded scripted" not in following.stdout.readline():
            assert following.poll() is None
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 0
        assert main(["shutdown", "--yes", "--no-wait", *address(server)]) == 0
        assert server.process is not None
        assert server.process.wait(20) == 0


# --- no server, another one, the wrong key ---------------------------------------------------


@pytest.mark.parametrize("words", REMOTE, ids=NAMES)
def test_without_a_server_it_is_code_4_and_one_clear_message(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert main([*words, "-p", str(port)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mlx-router: no MLX Router answers at http://127.0.0.1:{port} (")
    assert "is it running there?" in err
    if words[0] == "chat":
        assert "mlx-router chat --local" in err


def test_a_connection_that_is_closed_without_an_answer_is_code_4(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        assert main(["status", "-p", str(listener.getsockname()[1])]) == 4
        thread.join(20)
    assert "is it running there?" in capsys.readouterr().err


@pytest.mark.parametrize("words", REMOTE, ids=NAMES)
def test_a_wrong_key_is_code_1(words: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*words, "--api-key", "wrong")
    assert (code, out) == (1, "")
    assert err.startswith("mlx-router: Incorrect API key provided: send one of server.api_keys")


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """The address of a server that says ``{}`` to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join(20)


@pytest.mark.parametrize("words", REMOTE, ids=NAMES)
def test_a_server_of_another_kind_is_one_clear_line_and_code_1(
    words: tuple[str, ...], stranger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--url", stranger]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"mlx-router: what answers at {stranger} is not MLX Router, or is another version of it. "
        "Name another one with --url or -p.\n"
    )


def test_every_command_has_a_help_with_examples_in_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in {words[0] for words in REMOTE}:
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"mlx-router {name}" in out
        assert "examples:" in out
        assert "exit codes:" in out
        assert max(map(len, out.splitlines())) <= 80


def test_a_help_imports_nothing_heavy() -> None:
    heavy = ("mlx", "mlx_lm", "pydantic", "fastapi", "uvicorn", "rich", "transformers", "numpy")
    script = (
        "import sys; from mlx_router.cli.main import main; "
        f"codes = {{main([name, '--help']) for name in {sorted({w[0] for w in REMOTE})}}}; "
        f"sys.exit(repr(codes) + str([n for n in {heavy} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == "{0}[]"


def test_the_docs_have_every_command_with_its_options() -> None:
    docs = (ROOT / "docs" / "commands.md").read_text()
    for name, module in COMMANDS.items():
        section = re.search(rf"^## [^\n]*\b{name}\b.*?(?=^## |\Z)", docs, re.MULTILINE | re.DOTALL)
        assert section, name
        if name in ("bench", "serve"):  # documented elsewhere, and at length
            continue
        options = importlib.import_module(module).make_parser()._option_string_actions
        own = {flag for flag in options if flag.startswith("--")} - GENERAL
        missing = [flag for flag in own if f"{flag}" not in section.group()]
        assert not missing, f"{name}: {missing}"


# In sections of their own, for all commands.
GENERAL = {"--config", "--debug", "--help", "--url", "--port", "--api-key"}


def command(*words: str) -> subprocess.Popen[str]:
    """``mlx-router WORDS`` as a process of its own, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_router", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
