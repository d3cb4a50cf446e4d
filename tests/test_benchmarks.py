"""The parts of the benchmarks that can be wrong without anybody noticing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socket import create_server

import psutil
import pytest

from benchmarks.__main__ import parse, plan_of
from benchmarks.agent import converse
from benchmarks.client import (
    Answer,
    Asked,
    Dechunker,
    LoadError,
    Piece,
    SSEReader,
    ask_in_turn,
    ask_repeatedly,
    ask_together,
    http_request,
    parse_answer,
    parse_head,
)
from benchmarks.fairness import Round
from benchmarks.measures import GROUPS, QUICK, Plan, in_turns
from benchmarks.model import TINY, make_model, make_prompt, recital
from benchmarks.prefix import NO_DIFFERENCE, Waits, survival
from benchmarks.processes import Process, ProcessFailed, environment, find_openblas
from benchmarks.report import (
    Result,
    as_json,
    as_markdown,
    as_text,
    at_least,
    at_most,
    differences,
    failed,
    median,
    number,
    percentile,
    ratios,
    spread,
    summary,
)
from benchmarks.subjects import Elsewhere, HTTPSubject, Run, WrongAnswer, checked, our_server, rival
from benchmarks.suite import Progress, Suite
from benchmarks.swap import TRACES, Trace, served
from benchmarks.watch import overtake, watch_streams

# --- statistics -----------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round() -> None:
    assert median(ratios([1.0, 2.0, 30.0], [1.0, 4.0, 30.0])) == 1.0
    assert differences([5.0, 3.0], [1.0, 4.0]) == [4.0, -1.0]


def test_ratios_of_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0)]
)
def test_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_nothing_measured_is_no_number() -> None:
    with pytest.raises(ValueError, match="nothing"):
        median([])
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_verdicts_go_by_the_value_not_by_its_rounding() -> None:
    result = Result("g", "n", 0.9699, "x", at_least(0.97))
    assert (result.shown, result.verdict) == ("0.970 x", "MISSED")


def test_numbers_have_the_digits_that_matter() -> None:
    assert number(1234.6) == "1235"
    assert number(12.345) == "12.3"
    assert number(-3.14159) == "-3.142"
    assert spread([0.95, 1.02, 1.0]) == "0.950 to 1.020"
    assert spread([1.0, 1.0]) == "1.000"


def test_who_begins_changes_with_each_round() -> None:
    assert list(in_turns(2, 3)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 0)]


# --- the report -----------------------------------------------------------------------------

RESULTS = [
    Result("Decoding", "ours ÷ bare", 0.98, "x", at_least(0.97), "50 ÷ 51 tokens/s"),
    Result("Decoding", "ours ÷ other", 1.2, "x"),
    Result("CPU", "1 stream", 15.3, "µs", at_most(15), samples={"µs": [15.0, 15.3, 16.0]}),
    failed("CPU", "16 streams", "mlx-router: it did not start; it said last:\nboom | bang"),
]
FACTS = {"command": "python -m benchmarks", "date": "2030-01-01 00:00 UTC"}


def test_verdicts_hide_nothing() -> None:
    assert [result.verdict for result in RESULTS] == ["met", "-", "MISSED", "FAILED"]
    assert summary(RESULTS) == "1 aims met, 1 MISSED, 1 measurements FAILED"


def test_terminal_report_names_aims_misses_and_reasons() -> None:
    text = as_text(RESULTS, FACTS, None)
    assert "python -m benchmarks" in text
    line = next(line for line in text.splitlines() if "ours ÷ bare" in line)
    cells = "ours ÷ bare | 0.980 x | ≥ 0.97 | met | 50 ÷ 51 tokens/s"
    assert line.split() == cells.replace("|", "").split()
    assert "MISSED" in next(line for line in text.splitlines() if "15.3 µs" in line)
    assert "FAILED" in next(line for line in text.splitlines() if "16 streams" in line)
    assert "boom | bang" in text
    assert text.endswith(f"{summary(RESULTS)}\n")


def test_markdown_tables_have_as_many_cells_in_every_row() -> None:
    text = as_markdown(RESULTS, FACTS, "Only a smoke run.")
    assert "**Only a smoke run.**" in text
    assert "## Decoding" in text
    assert "boom | bang" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "÷" in line]
    assert rows
    assert {row.count(" | ") for row in rows} == {4}


def test_json_has_the_single_measurements() -> None:
    data = json.loads(json.dumps(as_json(RESULTS, FACTS)))
    assert data["conditions"] == FACTS
    assert [one["verdict"] for one in data["results"]] == ["met", "-", "MISSED", "FAILED"]
    assert data["results"][2]["samples"] == {"µs": [15.0, 15.3, 16.0]}


def test_what_fails_is_reported_and_the_rest_goes_on() -> None:
    suite = Suite(Plan(), "/nowhere/libopenblas.so", Progress())
    suite.run(["decode", "ttft"])
    assert [result.verdict for result in suite.results] == ["FAILED"] * 3
    assert {result.problem for result in suite.results} == {
        "there is no file /nowhere/libopenblas.so"
    }


# --- reading streams ------------------------------------------------------------------------


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


EVENTS = [
    chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
    b": keep-alive\n\n",
    delta("one"),
    delta(" tw\u00f6"),
    delta("", "length"),
    chunk(usage={"prompt_tokens": 7, "completion_tokens": 2}),
    b"data: [DONE]\n\n",
]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.0 200 OK\r\nContent-type: text/event-stream\r\n\r\n"


def coded(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked_answer() -> bytes:
    return CHUNKED + b"".join(map(coded, EVENTS)) + b"0\r\n\r\n"


def in_pieces(data: bytes, size: int) -> Iterator[Piece]:
    for at in range(0, len(data), size):
        yield float(at), data[at : at + size]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("answer", [chunked_answer(), UNTIL_CLOSED + b"".join(EVENTS)])
def test_an_answer_reads_the_same_however_it_is_cut(answer: bytes, size: int) -> None:
    read = parse_answer(0.0, list(in_pieces(answer, size)))
    assert read.text == "one tw\u00f6"
    assert (read.prompt_tokens, read.completion_tokens) == (7, 2)
    assert 0.0 <= read.first <= read.last <= read.end


def test_times_are_those_of_the_first_and_the_last_text() -> None:
    pieces = [(10.0, UNTIL_CLOSED), *((11.0 + i, event) for i, event in enumerate(EVENTS))]
    read = parse_answer(9.0, pieces)
    assert (read.first, read.last, read.end) == (4.0, 5.0, 8.0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (EVENTS[:-1], "before"),
        ([*EVENTS[:5], EVENTS[-1]], "usage"),
        ([delta("a", "stop"), *EVENTS[5:]], "'stop'"),
        ([delta("a"), chunk(error={"message": "out of memory"})], "out of memory"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(events: list[bytes], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        parse_answer(0.0, [(1.0, UNTIL_CLOSED + b"".join(events))])


def test_an_error_status_is_shown() -> None:
    answer = b'HTTP/1.1 429 Too Many\r\nContent-Length: 15\r\n\r\n{"error":"full"}'
    with pytest.raises(LoadError, match=r"429.*full"):
        parse_answer(0.0, [(1.0, answer)])
    with pytest.raises(LoadError, match="no answer"):
        parse_answer(0.0, [])


def test_sse_reader_keeps_what_is_incomplete() -> None:
    reader = SSEReader()
    assert reader.feed(b"data: 1\n\n: comment\n\nda") == [b"1"]
    assert reader.feed(b"ta: 2\n") == []
    assert reader.feed(b"\ndata:3\n\n") == [b"2", b"3"]


def test_dechunker_ignores_chunk_extensions() -> None:
    assert Dechunker().feed(b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"


def test_head_is_none_until_it_is_whole() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n") is None
    head = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert head is not None
    assert (head.status, head.length, head.chunked, head.size) == (200, 5, False, 38)


@pytest.fixture
def canned_server() -> Iterator[int]:
    """Answers each request on two connections with the canned stream, in two writes."""
    listener = create_server(("127.0.0.1", 0))

    def serve_one() -> None:
        with listener.accept()[0] as connection:
            while connection.recv(65536):
                answer = chunked_answer()
                connection.sendall(answer[:-3])
                connection.sendall(answer[-3:])

    threads = [threading.Thread(target=serve_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield listener.getsockname()[1]
    for thread in threads:
        thread.join(10)
    listener.close()


def test_streams_are_asked_together(canned_server: int) -> None:
    answers = ask_together(canned_server, [b"{}", b"{}"], 10)
    assert [answer.text for answer in answers] == ["one tw\u00f6"] * 2
    assert http_request(b"{}").endswith(b"Content-Length: 2\r\n\r\n{}")


def test_connections_are_used_again(canned_server: int) -> None:
    latencies, seconds = ask_repeatedly(canned_server, [b"{}", b"{}"], 0.05, 10)
    assert len(latencies) > 2
    assert seconds >= 0.05


@pytest.fixture
def canned_connections() -> Iterator[int]:
    """Answers four connections, once each."""
    listener = create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(4):
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(chunked_answer())

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join(10)
    listener.close()


def test_clients_use_up_what_they_share(canned_connections: int) -> None:
    bodies = iter([(number % 2, b"{}") for number in range(4)])
    asked = ask_in_turn(canned_connections, [bodies, bodies], 10)
    assert sorted(one.source for one in asked) == [0, 0, 1, 1]
    assert [one.first for one in asked] == sorted(one.first for one in asked)
    assert all(one.sent >= 0 for one in asked)


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripted")


@pytest.fixture(scope="module")
def scripted_server(server_folder: Path) -> Iterator[HTTPSubject]:
    env = environment(server_folder)
    words = ("--engine", "scripted")
    with our_server(server_folder, env, *words, models=server_folder) as (process, port):
        process.wait_until_healthy(port)
        yield HTTPSubject("scripted", port, {"model": "scripted", "ignore_eos": True})


@pytest.mark.slow
def test_gaps_of_all_streams_are_seen_while_another_request_waits(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny", TINY)
    settings = {"defaults": {"stream_chunk_size": 1}}
    env, models = environment(tmp_path), tmp_path / "models"
    with our_server(tmp_path, env, models=models, settings=settings) as (process, port):
        process.wait_until_healthy(port)
        server = HTTPSubject("tiny", port, {"ignore_eos": True})
        streams = [server.body(f"stream {number}", 4000) for number in range(2)]
        seen = watch_streams(port, streams, server.body("other", 2), 5, 60)
    assert seen.waited > 0
    assert len(seen.before) >= 2 * 3  # of five pieces, the first of which is the head
    assert len(seen.meanwhile) >= 2


def test_a_stream_that_ends_too_soon_is_not_measured(scripted_server: HTTPSubject) -> None:
    body = scripted_server.body("other", 2)
    with pytest.raises(LoadError, match="ended before"):
        watch_streams(scripted_server.port, [body], body, 100, 60)


def test_two_requests_are_timed_from_when_the_second_is_sent(scripted_server: HTTPSubject) -> None:
    body = scripted_server.body("a question", 2)
    first, second = overtake(scripted_server.port, body, body, 0.0, 60)
    assert first > 0
    assert second > 0


def test_who_was_done_before_cannot_be_overtaken(scripted_server: HTTPSubject) -> None:
    body = scripted_server.body("a question", 2)
    with pytest.raises(LoadError, match="before the second request was sent"):
        overtake(scripted_server.port, body, body, 2.0, 60)


def test_a_slice_is_as_long_as_the_server_plans_it() -> None:
    run = Round(alone=8.0, beside=9.0, most=0.5, gaps=[0.1], step=0.05, left=1.0, short=1.0)
    assert run.slice == 0.25
    assert replace(run, step=0.1).slice == pytest.approx(0.4)
    assert replace(run, step=1.0).slice == 0.5
    assert replace(run, most=0.1).slice == 0.1


def test_a_round_in_which_only_the_load_shows_is_no_measurement() -> None:
    some, _ = survival("after a swap", Waits(cold=[4.0, 4.0], warm=[1.4, 0.9], load=[1.0, 1.0]))
    assert some.value == pytest.approx(0.1)
    assert f"1 of 2 rounds: in the others {NO_DIFFERENCE}" in some.detail
    none, with_it = survival("after a swap", Waits(cold=[4.0], warm=[0.9], load=[1.0]))
    assert (none.verdict, none.problem) == ("FAILED", f"in every round {NO_DIFFERENCE}")
    assert with_it.value == pytest.approx(0.225)


def test_our_server_keeps_everything_in_the_folder_of_the_benchmark(
    scripted_server: HTTPSubject, server_folder: Path
) -> None:
    config = json.loads((server_folder / "config.json").read_text())
    assert config["prefix_cache"]["directory"] == str(server_folder / "prompts")
    assert config["defaults"]["state_directory"] == str(server_folder / "state")
    assert config["server"]["log_dir"] == str(server_folder / "logs")


def test_an_agent_sends_everything_again_and_branches(scripted_server: HTTPSubject) -> None:
    found = converse(scripted_server, Elsewhere(), "test", 30)
    assert found.prompt_tokens > 11 * 30
    assert found.waited > 0


def test_another_server_is_asked_for_its_first_model(
    scripted_server: HTTPSubject, tmp_path: Path
) -> None:
    with rival(tmp_path, {}, tmp_path, scripted_server.port) as (other, host):
        assert other.fields == {"model": "scripted"}
        host.wait_until_healthy(other.port)
        assert other.answer(["hello"], 1).answers[0].completion_tokens == 1


def test_what_is_no_server_is_named() -> None:
    with create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        pytest.raises(WrongAnswer, match=f"127.0.0.1:{port}/v1/models names no model"),
        rival(Path(), {}, Path(), port),
    ):
        pass


def asked(source: int, sent: float, wait: float) -> Asked:
    return Asked(source, sent, Answer("text", 1, 1, wait, wait, wait + 1.0))


def test_swaps_are_counted_by_what_was_answered() -> None:
    run = served([asked(0, 0.0, 1.0), asked(0, 1.0, 1.0), asked(1, 0.0, 3.0)], resident=0)
    assert (run.swaps, run.waits, run.seconds) == (1, [1.0, 1.0, 3.0], 4.0)
    assert served([asked(1, 0.0, 1.0), asked(0, 0.0, 2.0)], resident=0).swaps == 2


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)
def test_traces_ask_for_both_models_as_often(trace: Trace) -> None:
    sources = {id(source): source for source in trace.sources(18)}
    models = [model for source in sources.values() for model in source]
    assert sorted(models) == [0] * 9 + [1] * 9


# --- runs, prompts, the model ---------------------------------------------------------------


def test_an_answer_of_another_length_is_not_measured() -> None:
    answer = parse_answer(0.0, [(1.0, UNTIL_CLOSED), (3.0, b"".join(EVENTS))])
    run = checked([answer, answer], 2)
    assert run.throughput == pytest.approx(4 / 3)
    with pytest.raises(WrongAnswer, match="2 tokens in place of 3"):
        checked([answer], 3)
    with pytest.raises(WrongAnswer, match="overloaded"):
        _ = Run([answer], 2).decode_rate


def test_prompts_differ_from_the_start_and_can_be_made_again() -> None:
    prompts = [make_prompt(f"{turn} {stream}", 20) for turn in range(5) for stream in range(16)]
    assert len({" ".join(prompt.split()[:2]) for prompt in prompts}) == len(prompts)
    assert make_prompt("1 1", 20) in prompts


def test_model_says_words_only_and_never_ends(tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = make_model(tmp_path / "model", TINY)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    assert sum(array.size for array in weights.values()) == TINY.parameters
    head = weights["lm_head.weight"]
    spoken = [i for i in range(len(head)) if head[i].any()]
    assert len(spoken) > 1000
    assert all(tokenizer.decode([i]).strip().isalpha() for i in spoken)
    assert not head[tokenizer.token_to_id("<|im_end|>")].any()
    words = tokenizer.encode(make_prompt("x", 50))
    assert 50 <= len(words.ids) < 60


def test_model_that_recites_says_the_words_of_its_prompt(tmp_path: Path) -> None:
    from mlx_lm import generate, load

    folder = make_model(tmp_path / "model", TINY, recites=True)
    model, tokenizer = load(str(folder))[:2]
    messages = [{"role": "user", "content": make_prompt("x", 20)}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    words = recital()
    text = generate(model, tokenizer, prompt, max_tokens=2 * len(words) + 5)
    assert text.split() == [*words, *words, *words[:5]]


# --- processes and the command --------------------------------------------------------------


def test_a_process_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    script = "import sys; sys.exit('no such model')"
    with (
        Process("child", ["-c", script], environment(tmp_path), tmp_path, json_lines=True) as child,
        pytest.raises(ProcessFailed, match=r"child: no answer[\s\S]*no such model"),
    ):
        child.read_json(20)


def test_a_process_is_gone_after_its_block(tmp_path: Path) -> None:
    script = "import os, sys\nprint(os.getpid(), flush=True)\nfor line in sys.stdin: print(line)"
    with Process("echo", ["-c", script], environment(tmp_path), tmp_path, json_lines=True) as echo:
        pid = echo.read_json(20)
        assert echo.ask_json({"a": 2}, 20) == {"a": 2}
        assert echo.cpu_seconds() >= 0
    assert not psutil.pid_exists(pid)


def test_openblas_is_named_where_it_is_missing(tmp_path: Path) -> None:
    assert find_openblas("none") is None
    with pytest.raises(ProcessFailed, match="no file"):
        find_openblas(str(tmp_path / "none.so"))
    assert environment(tmp_path, "libopenblas.so.0")["LD_PRELOAD"] == "libopenblas.so.0"
    assert "LD_PRELOAD" not in environment(tmp_path)


def test_groups_come_in_one_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--only", "cpu,decode"]).only == ["decode", "cpu"]
    assert parse([]).only == list(GROUPS)
    with pytest.raises(SystemExit):
        parse(["--only", "cpu,speed"])
    assert "'speed' is none of decode" in capsys.readouterr().err


def test_rounds_are_those_of_every_group() -> None:
    plan = plan_of(parse(["--rounds", "7", "--tokens", "9"]))
    assert (plan.rounds, plan.swap_rounds, plan.long_rounds, plan.lookup_rounds) == (7, 7, 7, 7)
    assert plan.tokens == 9
    assert plan_of(parse(["--quick"])) == QUICK


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://10.0.0.1:80", "http://localhost", "8000", "http://[:1"]
)
def test_only_a_server_of_this_machine_is_compared(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(["--against", "http://localhost:8001/v1"]).against == 8001
    with pytest.raises(SystemExit):
        parse(["--against", url])
    assert "http://127.0.0.1:8000" in capsys.readouterr().err


SHORT = replace(
    QUICK,
    shape=TINY,
    big_shape=TINY,
    long_rounds=1,
    swap_rounds=1,
    big_rounds=1,
    prefix_words=300,
    system_words=50,
    kv_tokens=4,
)


@pytest.mark.slow
def test_prompts_that_come_again_and_small_caches_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, scripted_server: HTTPSubject
) -> None:
    """The other server is one that runs elsewhere."""
    groups = ["prefix", "kv"]
    # A swap is measured as a restart is; the agent has a test of its own.
    monkeypatch.setattr("benchmarks.suite.prefix.after_swap", lambda *_, **__: [])
    monkeypatch.setattr("benchmarks.suite.agent", lambda *_, **__: [])
    suite = Suite(SHORT, "none", Progress(), scripted_server.port)
    suite.run(groups)
    problems = [result.problem for result in suite.results if result.value is None]
    # A load of so small a model varies by more than its prompts take.
    assert [problem for problem in problems if NO_DIFFERENCE not in str(problem)] == []
    assert {result.group for result in suite.results} == {GROUPS[group] for group in groups}


@pytest.mark.slow
def test_swaps_and_loads_can_be_measured() -> None:
    suite = Suite(SHORT, "none", Progress())
    suite.run(["swap", "load"])
    assert [result.problem for result in suite.results if result.value is None] == []
    assert {result.group for result in suite.results} == {GROUPS["swap"], GROUPS["load"]}


def test_help_needs_no_mlx() -> None:
    code = (
        "import sys; from benchmarks.__main__ import parse\n"
        "try: parse(['--help'])\nfinally: assert 'mlx' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for group in GROUPS:
        assert f"  {group}" in done.stdout
