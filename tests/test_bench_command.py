"""``mlx-router bench``: what it measures, how it shows it, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_router.bench import suite
from mlx_router.bench.library import LibraryTarget, bench_settings
from mlx_router.bench.results import Plan, Results
from mlx_router.bench.suite import Suite
from mlx_router.cli.bench_options import make_parser
from mlx_router.cli.bench_report import about, bar, rate, seconds, show
from mlx_router.cli.main import main
from mlx_router.cli.terminal import Terminal
from mlx_router.config import DefaultSettings, Settings
from mlx_router.runtime.manager import MLXModelManager
from tests.models import make_model
from tests.server import ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[1]
PAIR = ("tiny/llama", "tiny/qwen3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in PAIR:
        make_model(name.split("/")[1], folder / name)
    return folder


def command(folder: Path, *words: str) -> dict[str, Any]:
    """What starts the command as a user has it, with a home of its own."""
    return {
        "args": [sys.executable, "-m", "mlx_router", "bench", *words],
        "cwd": folder,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(folder, *words), timeout=150)


@pytest.fixture(scope="module")
def pair(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Two models measured once for all tests: the process, and the JSON."""
    folder = tmp_path_factory.mktemp("bench")
    lengths = ("--prompt", "64,256,4096", "--streams", "1,3", "--tokens", "8", "--runs", "2")
    done = bench(
        folder, "llama", "tiny/qwen3", "llama", "--model-dir", str(models), *lengths,
        "--json", "report.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "report.json").read_text())


def check_models(report: dict[str, Any], runs: int, tokens: int) -> None:
    """Every figure of the report is one that can be."""
    for model in report["models"]:
        for prompt in model["prompts"]:
            cold, warm = prompt["cold"], prompt["warm"]
            assert len(cold["runs"]) == len(warm["runs"]) == runs
            for run in cold["runs"]:
                assert run["prompt_tokens"] == prompt["prompt_tokens"]
                assert run["cached_tokens"] < 16
            for run in warm["runs"]:
                assert prompt["prompt_tokens"] < run["prompt_tokens"]
                assert prompt["prompt_tokens"] - 16 <= run["cached_tokens"] < run["prompt_tokens"]
            assert prompt["warm_to_cold"] == pytest.approx(
                warm["first_token_seconds"] / cold["first_token_seconds"]
            )
        for together in model["streams"]:
            assert len(together["runs"]) == runs
            for run in together["runs"]:
                assert run["tokens"] == together["streams"] * tokens
                assert run["tokens_per_second"] == pytest.approx(run["tokens"] / run["seconds"])
                assert run["tokens_per_second_per_stream"] > 0
        assert model["decode_tokens_per_second"] > 0


# --- what is measured -----------------------------------------------------------------------


def test_every_run_is_in_the_json_and_counts_real_tokens(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = pair
    assert [model["model"] for model in report["models"]] == list(PAIR)
    check_models(report, runs=2, tokens=8)
    for model in report["models"]:
        assert [prompt["prompt_tokens"] for prompt in model["prompts"]] == [64, 256]
        assert [together["streams"] for together in model["streams"]] == [1, 3]
        assert len(model["load"]["runs"]) == 2
        assert min(model["load"]["runs"]) <= model["load"]["seconds"] <= max(model["load"]["runs"])
    assert report["settings"]["runs"] == 2
    assert (report["url"], report["interrupted"], report["failures"]) == (None, False, [])
    assert report["versions"].keys() >= {"mlx-router", "python", "mlx", "mlx-lm"}
    assert report["machine"]["memory_bytes"] > 2**28


def test_models_are_swapped_for_each_other(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    swaps = pair[1]["swaps"]
    assert [(swap["from"], swap["to"]) for swap in swaps] == [PAIR, PAIR[::-1]]
    assert all(len(swap["runs"]) == 2 and swap["seconds"] > 0 for swap in swaps)


def test_a_prompt_longer_than_the_context_is_left_out_and_said_so(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, report = pair
    for name in PAIR:
        note = f"{name}: prompt of 4096 tokens: left out, its context is 2048 tokens."
        assert note in report["notes"]
        assert note in done.stdout


def test_the_tables_show_what_was_measured_with_bars(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, report = pair
    lines = [line.split() for line in done.stdout.splitlines()]
    for model in report["models"]:
        for together in model["streams"]:
            shown = [str(together["streams"]), rate(together["tokens_per_second"])]
            assert any(line[:2] == shown for line in lines)
    bars = [line[-1] for line in lines if line and line[-1].startswith("█")]
    assert len(bars) == 2 * (2 + 2)  # prompts and streams of each model
    assert f"{PAIR[0]} → {PAIR[1]}" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines()[2:])) <= 80  # the first lines tell of the machine


def test_progress_says_in_lines_what_is_measured_and_how_much_is_left(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    steps = re.findall(r"^\[(\d+)/(\d+)\] (.+)$", pair[0].stderr, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, 15))
    assert {total for _, total, _ in steps} == {"14"}
    assert steps[0][2] == "tiny/llama: loading"
    assert steps[-1][2] == "swap from tiny/qwen3 to tiny/llama"


def test_the_default_model_is_measured_and_json_alone_is_on_stdout(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--demo", "--quick", "--quiet", "--prompt", "32", "--tokens", "4", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    assert "[1/" not in done.stderr
    report = json.loads(done.stdout)
    assert [model["model"] for model in report["models"]] == ["demo"]
    check_models(report, runs=1, tokens=4)
    assert not (tmp_path / ".cache").exists()  # nothing of it is kept on disk


def test_a_model_that_does_not_fit_is_named_and_the_others_are_measured(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"models": {PAIR[0]: {"required_memory_gb": 90_000}}})
    )
    short = ("--prompt", "32", "--streams", "1", "--tokens", "4", "--runs", "1", "--json", "r.json")
    done = bench(tmp_path, *PAIR, "--model-dir", str(models), *short)
    report = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == 1
    (failure,) = report["failures"]
    assert failure.startswith("tiny/llama: ")
    assert "does not fit" in failure
    assert f"mlx-router: {failure}" in done.stderr
    assert [model["model"] for model in report["models"]] == ["tiny/qwen3"]
    done = bench(tmp_path, "--all", "--model-dir", str(models), *short)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (done.returncode, report["failures"]) == (0, [])
    assert report["notes"][0].startswith("tiny/llama: left out. ")
    assert [model["model"] for model in report["models"]] == ["tiny/qwen3"]


def test_ctrl_c_shows_what_has_been_measured_so_far(tmp_path: Path) -> None:
    words = ("--demo", "--prompt", "16", "--streams", "1,2", "--tokens", "64", "--runs", "8")
    with subprocess.Popen(**command(tmp_path, *words, "--json", "r.json")) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[3/4]"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["interrupted"] is True
    (model,) = report["models"]
    assert len(model["prompts"][0]["cold"]["runs"]) == 8
    assert "first token" in out


async def measured(plan: Plan, **defaults: Any) -> Results:
    """What there is to tell of the scripted engine, whose speed means nothing."""
    results = Results(plan, {})
    settings = Settings(defaults=DefaultSettings(**defaults))
    manager = MLXModelManager(bench_settings(settings, 4), engine="scripted")
    await manager.astart(preload=False)
    try:
        target = LibraryTarget(manager)
        await Suite(target, plan, results, lambda *_: None).run([await target.find("scripted")])
    finally:
        await manager.aclose()
    return results


async def test_a_prompt_that_nobody_asked_for_and_takes_too_long_is_left_out() -> None:
    results = await measured(Plan((64, 128), (1,), 4, runs=1, longest_prompt=1e-9))
    (model,) = results.models
    assert [prompt.tokens for prompt in model.prompts] == [64]
    (note,) = results.notes
    assert "prompt of 128 tokens: left out, it would take over " in note
    assert "--prompt 128" in note


async def test_what_takes_long_is_measured_once_unless_runs_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "LONG_SECONDS", 0.0)
    for runs, expected in ((None, 1), (2, 2)):
        (model,) = (await measured(Plan((64,), (2,), 4, runs=runs))).models
        counts = [len(model.load_seconds), len(model.prompts[0].cold), len(model.streams[0].runs)]
        assert counts == [expected] * 3
    monkeypatch.undo()
    (model,) = (await measured(Plan((64,), (2,), 4))).models
    assert len(model.streams[0].runs) == suite.USUAL_RUNS


async def test_answers_that_a_limit_cuts_short_are_counted_as_they_are_and_said_so() -> None:
    results = await measured(Plan((64,), (2,), tokens=8, runs=1), max_tokens=5)
    assert [len(run) for run in results.models[0].streams[0].runs] == [2]
    assert {a.completion_tokens for a in results.models[0].streams[0].runs[0]} == {5}
    assert ["2 streams: answers of 5 tokens" in note for note in results.notes] == [True]


# --- a running server -----------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """The address of a web server that is not ours."""
    files = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_is_measured_over_http(models: Path, tmp_path: Path) -> None:
    config = {"defaults": {"cache_size": 1}, "server": {"api_keys": {"me": "s3cret"}}}
    words = ("--prompt", "64", "--streams", "1,3", "--tokens", "8", "--runs", "2", "--json", "-")
    home = tmp_path / "home"
    home.mkdir()
    with ServerProcess(tmp_path, config=config, models=models) as server:
        to_server = ("--url", server.url, "--api-key", "s3cret")
        done = bench(home, *PAIR, *to_server, *words)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        again = json.loads(bench(home, PAIR[0], *to_server, *words).stdout)
        refused = bench(home, PAIR[0], "--url", server.url, *words)
        unknown = bench(home, "lama", *to_server, *words)
        assert "Traceback" not in server.output()
    assert report["url"] == server.base
    check_models(report, runs=2, tokens=8)
    assert [(swap["from"], swap["to"]) for swap in report["swaps"]] == [PAIR, PAIR[::-1]]
    # The swaps have left the first model in memory, and a server's models stay there.
    assert again["models"][0]["load"] == {"seconds": None, "runs": []}
    assert any("in memory already" in note for note in again["notes"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "key" in refused.stderr
    assert "The nearest are: tiny/llama" in unknown.stderr


def test_a_server_that_is_not_there_or_another_program_gets_one_clear_line(
    stranger: str, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    done = bench(tmp_path, "demo", "--url", nobody, "--quiet")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"no MLX Router answers at {nobody}" in done.stderr
    done = bench(tmp_path, "demo", "--url", stranger, "--quiet")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not MLX Router" in done.stderr


# --- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "0"], "--prompt: '0' is not allowed; use a whole number from 1 to 1000000"),
        (["--prompt", "128,x"], "--prompt: 'x' is not allowed"),
        (["--streams", "500"], "--streams: '500' is not allowed; use a whole number from 1 to 256"),
        (["--tokens", "1"], "--tokens: '1' is not allowed; use a whole number from 2"),
        (["--runs", "-3"], "--runs: '-3' is not allowed"),
        (["--stream", "4"], "unknown option '--stream'; did you mean --streams?"),
        (["demo", "--all"], "leave it or the names out"),
        (["--url", "http://127.0.0.1:1", "--demo"], "--demo has no meaning with --url"),
        (["--json", "no/such/folder/r.json"], "cannot be written"),
        (["--engine", "scripted", "--quiet"], "which model? Name one or several, or --all: "),
    ],
)
def test_wrong_use_is_one_clear_line_and_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_an_unknown_model_gets_the_nearest_names_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--engine", "scripted", "--quiet", "scripted", "scriptd"]
    assert main(["bench", *words]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "'scriptd' does not exist. The nearest are: scripted" in shown.err


def test_help_teaches_with_examples_and_imports_nothing_heavy() -> None:
    heavy = ("mlx", "mlx_lm", "pydantic", "httpcore", "rich", "transformers", "numpy")
    script = (
        "import sys; from mlx_router.cli.main import main; main(['bench', '--help']); "
        f"sys.exit(str([n for n in {heavy} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    for text in ("examples:", "mlx-router bench --demo", "--url", "exit codes:"):
        assert text in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_progress_is_one_line_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ("--engine", "scripted", "scripted", "--quick")
    with subprocess.Popen(**{**command(tmp_path, *words), "stderr": theirs}) as process:
        os.close(theirs)
        out, _ = process.communicate(timeout=60)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "\n" not in shown
    assert "\r\x1b[K[1/5] scripted: loading" in shown
    assert shown.endswith("\r\x1b[K")
    assert "streams" in out


def test_every_name_in_the_json_is_documented(
    pair: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    documented = set(re.findall(r"`([a-z_-]+)`", (ROOT / "docs" / "bench.md").read_text()))
    libraries = pair[1].pop("versions").keys()
    assert names(pair[1]) | {"versions"} <= documented, names(pair[1]) - documented
    assert libraries


def names(value: Any) -> set[str]:
    """The names in a value of JSON, however deep."""
    if isinstance(value, dict):
        return set(value).union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("words", "begin"), [((), ""), (("--url", "http://elsewhere:8800"), "measured from: ")]
)
def test_a_server_elsewhere_is_not_taken_for_this_machine(
    words: tuple[str, ...], begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = about(make_parser().parse_args(words))
    show(Results(Plan((64,), (1,), 4), told), Terminal())
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"{begin}{told['machine']['processor']}, ")


def test_bars_and_figures_are_as_long_as_what_is_known() -> None:
    assert [bar(value, 2.0, width=4) for value in (2.0, 1.0, 0.25, 0.0)] == ["████", "██", "▌", ""]
    assert bar(0.0, 0.0) == ""
    assert [seconds(value) for value in (None, 0.00512, 0.9996, 61.23)] == [
        "-", "5.12 ms", "1 s", "61.2 s",
    ]  # fmt: skip
    assert [rate(value) for value in (None, 7.126, 99.96, 2841.2)] == ["-", "7.13", "100", "2,841"]
