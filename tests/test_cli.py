"""What the command line promises: it teaches, answers at once, and has exit codes that mean it."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router.cli import remote
from mlx_router.cli.address import AddressUnusable, bind, urls
from mlx_router.cli.main import main
from mlx_router.cli.summary import HEADERS, Memory, Start, show_models, show_ready, show_summary
from mlx_router.cli.terminal import Terminal, gigabytes, tokens
from mlx_router.config import DefaultSettings, ServerSettings, Settings
from mlx_router.domain import GIB, ModelCard, ModelKind
from mlx_router.version import __version__

CHECKOUT = Path(__file__).resolve().parents[1]
CARDS = [
    ModelCard(
        id="mlx-community/Qwen3-Coder-30B-A3B-Instruct-with-a-very-long-name-4bit",
        path=Path("/models/coder"),
        kind=ModelKind.TEXT,
        architecture="qwen3_moe",
        size_bytes=17_200_000_000,
        quantization="4-bit",
        context_length=262_144,
        required_bytes=19_000_000_000,
        supports_tools=True,
    ),
    ModelCard(
        id="org/broken",
        path=Path("/models/broken"),
        kind=ModelKind.TEXT,
        architecture="llama",
        problem="model-00002-of-00003.safetensors is missing; download the model again, "
        "for it cannot be loaded without this file",
    ),
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLX_MODEL_DIR", "MLX_ROUTER_CONFIG", "MLX_ROUTER_PORT", "MLX_ROUTER_IP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*words: str) -> tuple[int, str, str]:
        code = main(words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_it


@pytest.fixture
def manager_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a manager in place that knows CARDS, and records how it is made."""
    calls: list[dict[str, Any]] = []

    class Manager:
        def __init__(self, settings: Settings, **options: Any) -> None:
            calls.append({"settings": settings, **options})

        def cards(self) -> list[ModelCard]:
            return CARDS

    module = types.ModuleType("mlx_router.runtime.manager")
    module.MLXModelManager = Manager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx_router.runtime.manager", module)
    return calls


# --- help, version, wrong use ---------------------------------------------------------------


def test_version_and_help_import_nothing_heavy_and_answer_at_once() -> None:
    heavy = ("mlx", "mlx_lm", "pydantic", "fastapi", "uvicorn", "rich", "transformers", "numpy")
    script = (
        "import sys; from mlx_router.cli.main import main; "
        "codes = [main(['--version']), main(['--help']), main(['models', '--help'])]; "
        f"sys.exit(repr(codes) + str([n for n in {heavy} if n in sys.modules]))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[0, 0, 0][]"
    assert done.stdout.startswith(f"mlx-router {__version__}\n")
    assert time.monotonic() - began < 2  # 0.2 s where nothing else runs


@pytest.mark.parametrize("words", [["main.py"], ["-m", "mlx_router"]])
def test_main_py_and_the_package_do_the_same(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words, "-v"], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert (done.returncode, done.stdout) == (0, f"mlx-router {__version__}\n")


def test_help_teaches_with_examples_commands_and_exit_codes(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for text in ("mlx-router --demo", "models ", "config ", "exit codes:", "--max-tokens", "/v1"):
        assert text in out
    assert max(len(line) for line in out.splitlines()) <= 80
    for command in ("models", "config", "serve"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "examples:" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modles"], "unknown command 'modles'; did you mean models?"),
        (["--prot", "8801"], "unknown option '--prot'; did you mean --port?"),
        (["--demo", "--prot=8801"], "unknown option '--prot=8801'; did you mean --port?"),
        (["models", "--jsn"], "unknown option '--jsn'; did you mean --json?"),
        (["models", "extra"], "unknown argument 'extra'"),
        (["config", "chek"], "invalid choice: 'chek'"),
        (["config"], "are required: action"),
        (["--port"], "expected one argument"),
        (["--engine", "torch"], "invalid choice: 'torch'"),
        (["-p", "99999"], "command line: server.port: 99999 is not allowed; use a whole number"),
        (["-p", "many"], 'command line: server.port: "many" is not allowed'),
        (["--timeout", "nan"], "command line: defaults.timeout: NaN is not allowed"),
        (["--max-tokens", "0"], "command line: defaults.max_tokens: 0 is not allowed"),
        (["--config", "no.json"], "no.json: there is no such file; check --config"),
    ],
)
def test_wrong_use_is_one_clear_line_and_code_2(words: list[str], message: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("mlx-router: ")
    assert message in err
    assert err.count("\n") == 1


# --- config ---------------------------------------------------------------------------------


def test_config_check_finds_all_faults(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text('{"server": {"prot": 1, "port": "x"}}')
    code, out, err = run("config", "check", str(path))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert "did you mean port?" in err
    path.write_text('{"models": {"a/b": {}}}')
    assert run("config", "check", str(path)) == (0, f"{path}: fine (1 model entry)\n", "")
    assert run("--config", str(path), "config", "check")[1] == f"{path}: fine (1 model entry)\n"
    code, out, _ = run("config", "check")
    assert code == 0
    assert "defaults are in force" in out


def test_config_show_prints_what_is_in_force_with_keys_masked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"server": {"api_keys": {"me": "s3cret"}, "port": 1}}')
    monkeypatch.setenv("MLX_ROUTER_PORT", "4444")
    code, out, _ = run("config", "show")
    assert code == 0
    assert "s3cret" not in out
    shown = json.loads(out)
    assert shown["server"]["port"] == 4444
    assert shown["server"]["api_keys"] == {"me": "***"}
    assert shown["defaults"]["cache_size"] == 2


def test_config_schema_prints_the_published_schema(run: Run) -> None:
    code, out, _ = run("config", "schema")
    assert code == 0
    published = CHECKOUT / "mlx_router" / "config" / "config.schema.json"
    assert out == published.read_text()


# --- models ---------------------------------------------------------------------------------


def test_models_lists_what_is_there_and_why_some_cannot_be_used(
    run: Run, manager_calls: list[dict[str, Any]]
) -> None:
    code, out, _ = run("models", "--model-dir", "/a", "--model-dir", "/b", "--demo")
    assert code == 0
    (call,) = manager_calls
    assert call["settings"].defaults.model_directory == ["/a", "/b"]
    assert (call["engine"], call["demo"]) == ("mlx", True)
    lines = out.splitlines()
    assert lines[0].split() == list(HEADERS)
    good = [CARDS[0].id, "text", "16.0", "GB", "4-bit", "256k", "17.7", "GB", "available"]
    assert lines[1].split() == good
    assert lines[2].split()[0] == "org/broken"
    assert lines[2].split()[-1] == "unusable"
    assert "Cannot be used:" in lines
    assert "org/broken: model-00002-of-00003.safetensors is missing" in out


def test_options_may_stand_before_the_command(
    run: Run, manager_calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "models").write_text('{"defaults": {"cache_size": 7}}')
    code, out, _ = run("--config", "models", "--engine=scripted", "models", "--json")
    assert code == 0
    assert json.loads(out)["models"]
    (call,) = manager_calls
    assert call["settings"].defaults.cache_size == 7
    assert call["engine"] == "scripted"


def test_models_json_has_what_the_table_has(run: Run, manager_calls: list[Any]) -> None:
    code, out, _ = run("models", "--json", "--local")
    assert code == 0
    good, bad = json.loads(out)["models"]
    assert good["id"] == CARDS[0].id
    assert (good["kind"], good["state"], good["problem"]) == ("text", "unloaded", None)
    assert (good["size_bytes"], good["required_bytes"]) == (17_200_000_000, 19_000_000_000)
    assert (good["context_length"], good["quantization"]) == (262_144, "4-bit")
    assert bad["state"] == "unusable"
    assert "is missing" in bad["problem"]


def test_the_table_fits_80_columns_and_loses_nothing() -> None:
    out = io.StringIO()
    show_models(CARDS, Settings(), Terminal(out, width=80))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    names = "".join(line.split()[0] for line in lines[1 : lines.index("")])
    assert names == CARDS[0].id + CARDS[1].id
    squeezed = re.sub(r"\s", "", out.getvalue())
    assert CARDS[1].problem is not None
    assert re.sub(r"\s", "", CARDS[1].problem) in squeezed
    assert "256k" in lines[1]
    assert lines == [line.rstrip() for line in lines]


def test_sizes_and_contexts_are_written_as_people_read_them() -> None:
    assert [gigabytes(int(size)) for size in (0, 900 * 2**10, 1.6 * 2**20, 2.34 * GIB)] == [
        "0 kB", "900 kB", "2 MB", "2.3 GB",
    ]  # fmt: skip
    assert [tokens(count) for count in (0, 4096, 40_960, 5000)] == ["0", "4k", "40k", "5000"]


# --- the summary at start -------------------------------------------------------------------


def summary(cards: list[ModelCard], start: Start) -> str:
    out = io.StringIO()
    terminal = Terminal(out)
    show_summary(start, cards, terminal)
    show_ready(start.addresses, terminal)
    return out.getvalue()


def test_the_summary_says_all_one_needs_to_connect() -> None:
    start = Start(
        Settings(server=ServerSettings(api_keys={"phone": "s3cret"})),
        ["http://127.0.0.1:8800", "http://192.168.1.5:8800"],
        memory=Memory(total=32 * GIB, available=20 * GIB, pressure_below=16 * GIB),
        config=Path("my.json"),
    )
    shown = summary(CARDS, start)
    for text in (
        f"MLX Router {__version__}",
        "http://127.0.0.1:8800/v1",
        "http://192.168.1.5:8800/v1",
        "http://127.0.0.1:8800/docs",
        "32.0 GB, 20.0 GB available, pressure below 16.0 GB",
        "my.json",
        "phone",
        "256k",
        "model-00002-of-00003.safetensors is missing",
        "Ready: http://127.0.0.1:8800/v1",
    ):
        assert text in shown
    assert "s3cret" not in shown
    assert "\x1b" not in shown


def test_of_200_models_the_summary_shows_a_screen_and_says_how_to_see_them_all() -> None:
    usable = [replace(CARDS[0], id=f"org/model-{i}") for i in range(150)]
    broken = [replace(CARDS[1], id=f"org/broken-{i}") for i in range(50)]
    start = Start(Settings(), ["http://127.0.0.1:1"])
    shown = summary([*broken, *usable], start).splitlines()
    assert len(shown) < 50
    assert "… and 130 more; to see them all: mlx-router models" in shown
    assert "  … and 40 more; to see them all: mlx-router models" in shown
    assert "more" not in summary([*broken[:2], *usable[:18]], start)
    out = io.StringIO()
    show_models([*broken, *usable], Settings(), Terminal(out, width=200))
    assert all(card.id in out.getvalue() for card in [*broken, *usable])
    assert "more" not in out.getvalue()


def test_an_empty_model_folder_gets_a_hint_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    settings = Settings(defaults=DefaultSettings(model_directory=[str(folder)]))
    shown = summary([], Start(settings, ["http://127.0.0.1:1"]))
    assert f"No usable model in {folder} (does not exist)." in shown
    assert "mlx-router --demo" in shown
    assert f"hf download mlx-community/Qwen3-4B-Instruct-2507-4bit --local-dir {folder}" in shown
    assert "No usable model" not in summary(CARDS, Start(settings, ["http://127.0.0.1:1"]))


def test_names_from_files_cannot_steer_the_terminal() -> None:
    card = ModelCard(
        id="evil\x1b[2J[bold]",
        path=Path("x"),
        kind=ModelKind.TEXT,
        architecture="\x1b",
        problem="bad \x1b]0;title\x07 name",
    )
    shown = summary([card], Start(Settings(), ["http://127.0.0.1:1"]))
    assert "\x1b" not in shown
    assert "evil?[2J[bold]: bad ?]0;title? name" in shown


# --- the address ----------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_line_and_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "mlx_router", "--ip", "127.0.0.1", "-p", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "", "HOME": str(tmp_path)},
        )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"mlx-router: port {port} is in use")
    assert f"-p {port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ip", ["300.1.1.1", "no such host", "192.0.2.77"])
def test_an_ip_that_cannot_be_used_says_what_to_use(ip: str) -> None:
    with pytest.raises(AddressUnusable, match=r"use --ip 127\.0\.0\.1"):
        bind(ip, 0)


def test_addresses_can_be_pasted() -> None:
    with bind("127.0.0.1", 0) as one:
        assert urls(one) == [f"http://127.0.0.1:{one.getsockname()[1]}"]
    with bind("0.0.0.0", 0) as every:
        assert urls(every)[0] == f"http://127.0.0.1:{every.getsockname()[1]}"
    with bind("::1", 0) as six:
        assert urls(six) == [f"http://[::1]:{six.getsockname()[1]}"]


# --- a server that is not what it should be -------------------------------------------------


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """The address of a socket that says ``answer`` to the one who calls, whatever they want; with
    None it says nothing."""
    given_up = threading.Event()

    def talk() -> None:
        client, _ = listener.accept()
        with client:
            if answer is None:
                given_up.wait(20)
            else:
                client.recv(65_536)
                client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            given_up.set()
            thread.join(20)


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


STRANGER = "is not MLX Router, or is another version of it"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", STRANGER),
        (b"\x00\xff\x1b[2J\r\n\r\n", STRANGER),
        (b"HTTP/1.1 two hundred\r\n\r\n", STRANGER),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", STRANGER),
        (http("<html>"), STRANGER),
        (http("\x00"), STRANGER),
        (http("{}"), STRANGER),
        (http("[]"), STRANGER),
        (http("5"), STRANGER),
        (http('{"changes": 5}'), STRANGER),
        (http('{"changes": ["port"]}'), STRANGER),
        (http('{"changes": [{"setting": "server.port"}]}'), STRANGER),
        (http('{"changes": [{"takes_effect": "never"}]}'), STRANGER),
        (http('{"changes": [{"takes_effect": "now"}]}'), STRANGER),
        (http("", "404 Not Found"), "status 404; is it MLX Router?"),
        (http('{"error": "no"}', "404 Not Found"), "status 404; is it MLX Router?"),
        (http('{"error": {"message": 5}}', "500 Oh"), "status 500; is it MLX Router?"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 50\r\n\r\n{", "status 500; is it MLX Router?"),
        (http('{"error": {"message": "bad config"}}', "400 Bad Request"), "bad config"),
    ],
)
def test_a_server_of_another_kind_is_one_clear_line_and_code_1(
    answer: bytes, message: str, run: Run
) -> None:
    with answering(answer) as url:
        code, out, err = run("reload", "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith("mlx-router: ")
    assert message in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_a_server_that_does_not_answer_in_time_is_said_to_be_busy(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    with answering(None) as url:
        code, out, err = run("reload", "--url", url)
    assert (code, out) == (1, "")
    assert err == (
        f"mlx-router: {url} did not answer within 0.1 seconds; it may be busy. "
        "Try again, or look at its log.\n"
    )


@pytest.mark.parametrize(
    "url",
    [
        *("localhost", "localhost:8800", "file:///etc/hosts", "http://", "http://[::1"),
        *("http://127.0.0.1:port", "http://127.0.0.1:0", "http://a b:1", "http://a\x1b:1"),
    ],
)
def test_a_url_that_is_no_address_is_one_clear_line_and_code_1(url: str, run: Run) -> None:
    code, out, err = run("reload", "--url", url)
    assert (code, out) == (1, "")
    assert err == (
        f"mlx-router: {url!r} is not the address of a server; name it with --url, like "
        "http://127.0.0.1:8800\n"
    )


@contextmanager
def asked(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server's address, and what it is asked, a request each; it always says ``answer``."""
    requests: list[bytes] = []

    def talk() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    requests.append(client.recv(65_536))
                    client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)


NOTHING_CHANGED = (0, "Nothing has changed.\n", "")


def test_the_key_of_the_config_goes_to_the_server_of_the_config_only(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(http('{"changes": []}')) as (url, requests):
        config = {"server": {"api_keys": ["c0nfig"], "ip": "127.0.0.1"}}
        config["server"]["port"] = int(url.rpartition(":")[2])  # type: ignore[assignment]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert run("reload") == NOTHING_CHANGED
        assert b"Bearer c0nfig" in requests[-1]
        assert run("reload", "--url", url) == NOTHING_CHANGED
        assert b"uthorization" not in requests[-1]
        assert run("reload", "--url", url, "--api-key", "0ption") == NOTHING_CHANGED
        assert b"Bearer 0ption" in requests[-1]
        monkeypatch.setenv("MLX_ROUTER_API_KEY", "env1ron")
        assert run("reload", "--url", url) == NOTHING_CHANGED
        assert b"Bearer env1ron" in requests[-1]


def test_nobody_can_send_a_command_to_another_server(run: Run) -> None:
    with asked(http('{"changes": []}')) as (other, requests):
        for status in ("301 Moved", "302 Found", "307 Again", "308 There"):
            moved = f"HTTP/1.1 {status}\r\nlocation: {other}\r\ncontent-length: 0\r\n\r\n"
            with asked(moved.encode()) as (url, _):
                code, out, err = run("models", "--url", url, "--api-key", "s3cret")
            assert (code, out) == (1, "")
            assert STRANGER in err
        assert requests == []


@pytest.mark.parametrize(
    "key", ["with a blank", "line\nbreak", "\x1b[2J", "kl\u00fc\u010d", "\u20ac"]
)
def test_a_key_that_no_server_has_is_wrong_use_and_never_shown(key: str, run: Run) -> None:
    code, out, err = run("reload", "--url", "http://127.0.0.1:9", "--api-key", key)
    assert (code, out) == (2, "")
    assert err.startswith("mlx-router: --api-key: this is no API key; use ASCII letters")
    assert key not in err


def test_two_addresses_of_a_server_are_wrong_use(run: Run) -> None:
    code, out, err = run("reload", "--url", "http://127.0.0.1:9", "-p", "8801")
    assert (code, out) == (2, "")
    assert err == "mlx-router: --url and -p both say where the server is: use one of them\n"


@pytest.mark.parametrize(
    "words",
    [
        *(["models", "--local", "--model-dir", "~nosuchuser/x"], ["--model-dir", "~nosuchuser/x"]),
        *(["config", "check", "~nosuchuser/x"], ["config", "import", "~nosuchuser/x"]),
        ["pull", "org/name", "--model-dir", "~nosuchuser/x"],
        ["status", "--config", "~nosuchuser/x"],
        ["chat", "-m", "Hello.", "--image", "~nosuchuser/x"],
        ["config", "import", "x.yaml", "--output", "~nosuchuser/x"],
    ],
)  # fmt: skip
def test_a_home_that_there_is_not_is_one_clear_line(words: list[str], run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err == (
        "mlx-router: ~nosuchuser/x: there is no user with a home folder for ~nosuchuser; "
        "write the whole path\n"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{} config show > /dev/full", "mlx-router: .*No space left on device\n"),
        ("{} --help > /dev/full", "mlx-router: .*No space left on device\n"),
        ("{tool} --help > /dev/full", "mlx_downloader.py: .*No space left on device\\n"),
        ("{} config show >&-", "mlx-router: stdout is closed; send it to a file, .*\n"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_clear_line(line: str, message: str) -> None:
    code, out, err = shell(line)
    assert (code, out) == (1, "")
    assert re.fullmatch(message, err), err


def test_letters_that_a_terminal_lacks_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"default_model": "\u20ac\u4e2d"}', encoding="utf-8")
    code, out, err = shell(f"cd '{tmp_path}'; PYTHONIOENCODING=ascii {{}} config show")
    assert (code, err) == (0, "")
    assert json.loads(out)["default_model"] == "??"


def shell(line: str) -> tuple[int, str, str]:
    """What a shell's line with the program for ``{}`` ends with."""
    tool = f"'{sys.executable}' '{CHECKOUT / 'helper_tools' / 'mlx_downloader.py'}'"
    program = f"PYTHONPATH='{CHECKOUT}' '{sys.executable}' -m mlx_router"
    done = subprocess.run(
        ["sh", "-c", line.replace("{}", program).replace("{tool}", tool)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("ip", ["::1", "::", "127.0.0.1", "0.0.0.0"])
def test_a_server_is_reached_at_the_address_of_its_config(
    ip: str, run: Run, tmp_path: Path
) -> None:
    """A real one, with its guard."""
    with bind(ip, 0) as probe:
        port = probe.getsockname()[1]
    config = {"server": {"ip": ip, "port": port, "log_dir": "logs"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with serving(tmp_path):
        assert run("reload") == (0, "Nothing has changed.\n", "")


# --- the real thing -------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that was started in ``folder`` and is ready, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_router", "--engine", "scripted", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "", "HOME": str(folder)},
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("Ready: ")):
            line = process.stdout.readline()
            assert line, process.communicate()
            lines.append(line)
        yield process, lines[-1].split()[1].removesuffix("/v1")
    finally:
        process.kill()
        process.communicate()


def test_it_serves_says_so_and_ends_with_code_0(tmp_path: Path) -> None:
    with serving(tmp_path, "--ip", "127.0.0.1", "-p", "0") as (process, url):
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert "shutting down" in (tmp_path / "logs" / "mlx_router.log").read_text()
