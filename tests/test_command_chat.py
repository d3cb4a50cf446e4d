"""``mlx-router chat``: a conversation in the terminal, and one question from a script."""

from __future__ import annotations

import http.server
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router import MLXModelManager
from mlx_router.cli import chat_session
from mlx_router.cli.chat_answers import LocalAnswers, Options
from mlx_router.cli.main import main
from mlx_router.cli.terminal import without_controls
from mlx_router.config import Settings
from tests.media_support import encoded, gradient
from tests.models import make_model
from tests.server import ServerProcess
from tests.terminals import CTRL_C, CTRL_D, Terminal
from tests.waiting import until_sync

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLX_MODEL_DIR", "MLX_ROUTER_CONFIG", "MLX_ROUTER_PORT", "MLX_ROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo, and ``endless``, whose answers end only where they are cut."""
    folder = tmp_path_factory.mktemp("chat")
    make_model("llama", folder / "models" / "endless")
    with ServerProcess(folder, "--demo", models=folder / "models") as process:
        yield process


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*words: str) -> tuple[int, str, str]:
        code = main(["chat", *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_it


def scripted(run: Run, *words: str) -> dict[str, Any]:
    """What the scripted engine answers in this process; it repeats the question."""
    code, out, _ = run("scripted", "--engine", "scripted", "--json", *words)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


# --- one question ---------------------------------------------------------------------------


def test_one_question_prints_the_answer_and_nothing_else(run: Run, server: ServerProcess) -> None:
    question = "What is MLX Router?"
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    answer = httpx.post(f"{server.url}/chat/completions", json=body, timeout=60).json()
    words = ["-m", question, "--temperature", "0", "-p", str(server.port)]
    expected = answer["choices"][0]["message"]["content"] + "\n"
    assert run(*words) == (0, expected, "")
    code, out, err = run("demo", "--json", *words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found == {
        "model": "demo",
        "content": expected[:-1],
        "reasoning": "",
        "finish_reason": "stop",
        "usage": {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")},
    }


def test_what_is_piped_in_is_the_question_or_follows_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "mlx_router", "chat", "--engine", "scripted", "scripted"]
    done = subprocess.run(
        [*command, "-m", "Read this:"],
        input="one two\n",
        text=True,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert 'You said: "Read this: one two".' in done.stdout
    monkeypatch.setattr("sys.stdin", io.StringIO("one two\n"))
    assert 'You said: "one two".' in scripted(run)["content"]


def test_the_models_of_this_process_answer_without_a_server(run: Run) -> None:
    code, out, err = run("--demo", "-m", "Hello", "--temperature", "0")
    assert (code, err) == (0, "")
    assert out.startswith("Hello")


def test_system_prompt_images_and_thinking_reach_the_model(run: Run, tmp_path: Path) -> None:
    plain = scripted(run, "-m", "Hello")
    assert plain["reasoning"] == ""
    told = scripted(run, "-m", "Hello", "--system", "Be brief, and say what you mean.")
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    thought = scripted(run, "-m", "Hello", "--thinking")
    assert "nothing more to think about" in thought["reasoning"]
    assert thought["content"] == plain["content"]
    (tmp_path / "a picture.png").write_bytes(encoded(gradient(8, 4)))
    code, out, _ = run(
        "scripted-vision", "--engine", "scripted", "--image", "a picture.png", "-m", "What is it?"
    )
    assert code == 0
    assert out.startswith("I see 1 image: 8x4.")


def test_an_answer_that_was_cut_off_says_so_beside_it(run: Run, server: ServerProcess) -> None:
    code, out, err = run("endless", "-m", "Go on.", "--max-tokens", "5", "-p", str(server.port))
    assert code == 0
    assert out.strip()
    assert err.startswith("mlx-router: the answer was cut off")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "x", "--temperature", "hot"], "--temperature: 'hot' is not allowed"),
        (["-m", "x", "--temperature", "3"], "--temperature: '3' is not allowed"),
        (["-m", "x", "--max-tokens", "0"], "--max-tokens: '0' is not allowed"),
        (["-m", "x", "--image", "no.png"], "image no.png: there is no such file"),
        (["-m", "x", "--image", "."], "image .: is not a file"),
        (["-m", ""], "there is no question"),
        (["-m", "x", "--demo", "-p", "1"], "--port asks a server; leave it out"),
        (["-m", "x", "--local", "--url", "http://a"], "--url asks a server; leave it out"),
    ],
)
def test_wrong_use_is_one_clear_line_and_code_2(words: list[str], message: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_empty_pipe_is_no_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert run()[0] == 2


def test_a_server_that_ends_in_the_middle_of_an_answer_is_code_1(run: Run) -> None:
    chunk = {"model": "m", "choices": [{"delta": {"content": "Half"}, "finish_reason": None}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(b'{"data": []}')

        def do_POST(self) -> None:
            self._say(f"data: {json.dumps(chunk)}\n\n".encode())

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        code, out, err = run("-m", "Hello", "-p", str(listening.server_address[1]))
        listening.shutdown()
        thread.join(20)
    assert (code, out) == (1, "Half")
    assert "broke before the answer was complete" in err


def test_an_unknown_model_in_this_process_is_code_1_and_the_nearest_is_named(run: Run) -> None:
    code, out, err = run("scripted-visoin", "--engine", "scripted", "-m", "Hello.")
    assert (code, out) == (1, "")
    assert "The nearest are: scripted-vision" in err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("it's me.jpg", "/image it's me.jpg: there is no such file"),
        ("~nosuchuser/x", "~nosuchuser/x: there is no user with a home folder"),
        ("x" * 5000, "name"),
        ("none.jpg", "there is no such file"),
    ],
)
def test_an_image_that_cannot_be_shown_is_one_line_and_the_conversation_goes_on(
    names: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter([f"/image {names}", "/system Be brief.", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(chat_session, "_edit_lines", lambda *_: None)
    with MLXModelManager(Settings(), engine="scripted") as manager:
        assert chat_session.Session(LocalAnswers(manager), None, None, Options()).run() == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert said in out
    assert "The system prompt is set." in out


def test_an_answer_cannot_steer_the_terminal() -> None:
    text = "a\x1b[2Jb\x07\x9bc\r\n\td 👩‍💻 é"
    assert without_controls(text) == "a[2Jbc\n\td 👩‍💻 é"


# --- a conversation -------------------------------------------------------------------------


def test_a_conversation_with_the_demo_model(server: ServerProcess, tmp_path: Path) -> None:
    with Terminal(tmp_path, "chat", "--temperature", "0", "-p", str(server.port)) as terminal:
        terminal.expect("/help shows the commands")
        terminal.expect("> ")
        terminal.type("My name is Ada.\n")
        terminal.expect("tokens/s")
        terminal.type("What is my name?\n")
        terminal.expect("Ada")
        terminal.expect("demo, ")
        terminal.type("/clear\n")
        terminal.expect("forgotten")
        terminal.type('"""\nHello\nthere"""\n')
        terminal.expect("the first after ")
        terminal.expect("> ")
        terminal.type("/model\n")
        terminal.expect("demo-vision")
        terminal.type("/model demmo\n")
        terminal.expect("The nearest are: demo")
        terminal.type("/model ENDLESS\n")
        terminal.expect("endless answers from now on")
        terminal.type("/mod\tdemo-v\t\n")  # Tab completes commands and models
        terminal.expect("demo-vision answers from now on")
        terminal.type("/modl\n")
        terminal.expect("unknown command '/modl'; did you mean /model?")
        terminal.type("/image nothing.png\n")
        terminal.expect("there is no such file")
        terminal.type("/help\n")
        terminal.expect("Ctrl+C stops an answer")
        terminal.expect("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_ctrl_c_stops_the_answer_and_not_the_program(server: ServerProcess, tmp_path: Path) -> None:
    def under_way() -> list[Any]:
        found: list[Any] = httpx.get(f"{server.base}/hub/status").json()["requests"]
        return found

    words = ["chat", "endless", "--max-tokens", "1900", "-p", str(server.port)]
    with Terminal(tmp_path, *words) as terminal:
        terminal.expect("> ")
        terminal.type("Go on.\n")
        until_sync(lambda: any(request["completion_tokens"] for request in under_way()))
        terminal.type(CTRL_C)
        terminal.expect("stopped")
        until_sync(lambda: not under_way())  # the server does not go on for nobody
        terminal.type(CTRL_C)
        terminal.expect("Ctrl+D or /exit leaves.")
        terminal.type("/exit\n")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_reasoning_is_dimmed_and_a_picture_goes_with_the_next_message(tmp_path: Path) -> None:
    (tmp_path / "a picture.png").write_bytes(encoded(gradient(8, 4)))
    with Terminal(
        tmp_path, "chat", "scripted-vision", "--engine", "scripted", "--thinking"
    ) as terminal:
        terminal.expect("> ")
        terminal.type("/image a picture.png\n")
        terminal.expect("1 image for the next message")
        terminal.type("What is it?\n")
        terminal.expect("nothing more to think about.\n\nI see 1 image: 8x4.")
        terminal.expect("tokens")
        terminal.type("/system Be brief.\n")
        terminal.expect("The system prompt is set.")
        terminal.type("/image 'a picture.png'\n")
        terminal.expect("1 image for the next message")
        terminal.type("/model scripted\n")
        terminal.expect("scripted answers from now on")
        terminal.type("What is it?\n")
        terminal.expect("nothing is attached any more")
        terminal.expect("cannot see images")
        terminal.type("/exit\n")
        assert terminal.end() == 0
    thought = terminal.raw.index("The script says")
    assert terminal.raw.rindex("\x1b[", 0, thought) == terminal.raw.rindex("\x1b[2m", 0, thought)
