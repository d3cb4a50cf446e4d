"""Drafting inside the engine and behind the API: the answers are those without it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import openai
import pytest
from mlx_lm.utils import load_model, load_tokenizer

from mlx_router.domain import ChatPrompt, FinishReason, ResponseFormat
from mlx_router.engine.base import Sampling
from mlx_router.engine.grammar.compiler import Compiler
from mlx_router.engine.grammar.mask import GrammarConstraint
from mlx_router.errors import ModelLoadFailed
from tests.embedding_models import make_embedding_model
from tests.models import copy_model, make_model
from tests.server import ServerProcess
from tests.speculation_support import plain
from tests.stepping import ByHand, card_of, make_job, words
from tests.test_text_engine import make_gemma2

PROMPT = words(40)
TOKENS = 24
SEEDED = Sampling(temperature=0.9, top_k=20, seed=11)


def forgetful(folder: Path) -> Path:
    """Let the model see its last token alone: soon its answer repeats itself."""
    file = folder / "model.safetensors"
    weights: Any = mx.load(str(file))
    for name, value in weights.items():
        if "o_proj" in name or "down_proj" in name:
            weights[name] = mx.zeros_like(value)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its likeness with other weights, one that repeats itself, and what cannot draft."""
    home = tmp_path_factory.mktemp("drafting")
    make_model("llama", home / "large")
    make_model("llama", home / "other", seed=1)
    forgetful(make_model("llama", home / "repeating"))
    make_model("gemma3_text", home / "window")
    make_model("qwen3_next", home / "recurrent")
    make_embedding_model("bert", home / "encoder")
    stranger = copy_model(home / "other", home / "stranger")
    tokenizer = json.loads((stranger / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (stranger / "tokenizer.json").write_text(json.dumps(tokenizer))
    truncated = copy_model(home / "other", home / "broken") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    make_model("llama", home / "heads-of-32", changes={"head_dim": 32})
    make_gemma2(home / "gemma2", home / "large")
    return home


@pytest.fixture
def start(folders: Path) -> Iterator[Callable[..., ByHand]]:
    """Engines by the name of the model and of the one that drafts for it."""
    started: list[ByHand] = []

    def begin(name: str, draft: str | None = None, **options: Any) -> ByHand:
        if draft is not None:
            options["draft"] = card_of(folders / draft)
        started.append(ByHand(folders / name, **options))
        return started[-1]

    yield begin
    for engine in started:
        engine.close()


@pytest.fixture(scope="module")
def expected(folders: Path) -> Callable[..., list[int]]:
    """What mlx-lm answers."""
    models: dict[str, Any] = {}
    known: dict[Any, list[int]] = {}

    def answer(
        name: str, prompt: list[int] = PROMPT, sampling: Sampling | None = None, n: int = TOKENS
    ) -> list[int]:
        key = (name, tuple(prompt), None if sampling is None else sampling.seed, n)
        if key not in known:
            model = models.setdefault(name, load_model(folders / name)[0])
            known[key] = plain(model, prompt, sampling or Sampling(), n)
        return known[key]

    return answer


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("large", {"draft": "large"}),
    ("large", {"draft": "other"}),
    ("large", {"prompt_lookup": True}),
    ("repeating", {"prompt_lookup": True}),
    ("gemma2", {"draft": "gemma2"}),
    ("gemma2", {"prompt_lookup": True}),
]
HELPFUL = [WAYS[0], WAYS[3], WAYS[4]]  # almost all that is drafted is right


# --- the answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_a_drafted_answer_is_the_one_of_mlx_lm(
    start: Callable[..., ByHand],
    expected: Callable[..., list[int]],
    name: str,
    options: dict[str, Any],
) -> None:
    engine = start(name, **options)
    assert engine.loaded.batches == (name != "gemma2")
    length = 60 if name == "repeating" else TOKENS
    assert engine.answer(make_job(1, PROMPT, length)) == expected(name, n=length)
    helpful = (name, options) in HELPFUL
    made = sum(1 for rows, tokens in engine.model.passes if rows == 1)
    if helpful:
        # Three slices of the prompt; what is drafted is right four times of five.
        assert made - 3 <= 0.6 * length
    assert engine.answer(make_job(2, PROMPT, TOKENS, sampling=SEEDED)) == expected(
        name, sampling=SEEDED
    )


@pytest.mark.parametrize(("name", "options"), HELPFUL)
def test_a_short_answer_has_its_length(
    start: Callable[..., ByHand],
    expected: Callable[..., list[int]],
    name: str,
    options: dict[str, Any],
) -> None:
    engine = start(name, **options)
    for length in (1, 2, 3, 6):
        results = engine.run(make_job(length, PROMPT, length))[length]
        assert [result.token for result in results] == expected(name)[:length]
        finishes = [result.finish for result in results]
        assert finishes == [None] * (length - 1) + [FinishReason.LENGTH]


@pytest.mark.parametrize(("name", "options"), HELPFUL)
def test_a_stop_id_inside_a_draft_ends_the_answer(
    start: Callable[..., ByHand],
    expected: Callable[..., list[int]],
    name: str,
    options: dict[str, Any],
) -> None:
    engine, whole = start(name, prefix_cache_bytes=10**8, **options), expected(name)
    place = max(map(whole.index, whole))  # the last that says something new
    stop = whole[place]
    job = make_job(1, PROMPT, TOKENS, stop_ids=frozenset({stop}))
    results = engine.run(job)[1]
    assert [result.token for result in results] == whole[: whole.index(stop) + 1]
    assert results[-1].finish is FinishReason.STOP
    # What is kept of it is what it says: a chat that goes on has the right answer.
    said = whole[: whole.index(stop) + 1]
    further = make_job(2, [*PROMPT, *said, 50, 60, 70], 20)
    results = engine.run(further)[2]
    assert [result.token for result in results] == expected(name, list(further.prompt), n=20)
    assert results[0].cached_tokens >= len(PROMPT) + len(said) - 1


@pytest.mark.parametrize(("name", "options"), [WAYS[0], WAYS[3]])
def test_another_request_ends_drafting_and_when_it_leaves_it_goes_on(
    start: Callable[..., ByHand],
    expected: Callable[..., list[int]],
    name: str,
    options: dict[str, Any],
) -> None:
    engine = start(name, **options)

    def drafts() -> bool:
        return engine.runner._solo is not None and engine.runner._solo.decodes

    engine.add(make_job(1, PROMPT, 70))
    got = engine.until(drafts)[1]
    got += engine.step()
    for number, prompt in ((2, words(50, start=9)), (3, [5, 6, 7])):
        engine.add(make_job(number, prompt, 8))
        beside = engine.until(lambda number=number: number not in engine.engine._live)  # type: ignore[misc]
        assert [each.token for each in beside[number]] == expected(name, prompt, n=8)
        got += beside[1]
        assert 1 in engine.engine._live
        before = len(engine.engine._live[1].tokens)
        got += engine.until(drafts)[1]
        # One as of old, and those of the first draft: it comes back at once.
        assert len(engine.engine._live[1].tokens) - before <= 1 + 5
    got += engine.until(lambda: not engine.engine.busy)[1]
    assert [result.token for result in got] == expected(name, n=70)


def test_a_sampled_answer_stays_the_same_as_others_come_and_go(
    start: Callable[..., ByHand], expected: Callable[..., list[int]]
) -> None:
    engine = start("large", "large")
    engine.add(make_job(1, PROMPT, 40, sampling=SEEDED))
    got = engine.until(lambda: len(engine.engine._live[1].tokens) >= 10)[1]
    got += engine.run(make_job(2, [5, 6, 7], 8))[1]
    assert [result.token for result in got] == expected("large", sampling=SEEDED, n=40)


def test_choices_that_are_drafted_one_after_the_other_share_their_prompt(
    start: Callable[..., ByHand], expected: Callable[..., list[int]]
) -> None:
    engine = start("gemma2", "gemma2")
    jobs = [make_job(1, PROMPT, 12), make_job(2, PROMPT, 12, fork_of=1)]
    jobs.append(make_job(3, PROMPT, 12, fork_of=1, sampling=SEEDED))
    results = engine.run(*jobs)
    plainly = expected("gemma2", n=12)
    wanted = [plainly, plainly, expected("gemma2", sampling=SEEDED, n=12)]
    assert [[result.token for result in results[number]] for number in (1, 2, 3)] == wanted
    assert sum(tokens for _, tokens in engine.model.passes if tokens > 8) <= len(PROMPT)


# --- who drafts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammar(folders: Path) -> GrammarConstraint:
    tokenizer = load_tokenizer(folders / "large")
    made_by = Compiler(tokenizer._tokenizer, tokenizer.eos_token_ids, family="hermes", template="")
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 20}
    wanted = ResponseFormat("json_schema", "answer", schema, strict=True)
    compiled = made_by.compile(ChatPrompt((), response_format=wanted))
    assert compiled is not None
    return GrammarConstraint(made_by, compiled, None)


def test_what_stands_between_logits_and_sampler_is_never_drafted(
    start: Callable[..., ByHand], grammar: GrammarConstraint
) -> None:
    drafting, without = start("large", "large"), start("large")
    asked: list[dict[str, Any]] = [
        {"logprobs": 2},
        {"constraint": grammar},
        {"sampling": Sampling(presence_penalty=1.0)},
        {"sampling": Sampling(frequency_penalty=1.0)},
        {"sampling": Sampling(repetition_penalty=1.3)},
        {"sampling": Sampling(logit_bias={40: 2.0})},
    ]
    for number, more in enumerate(asked):
        job = make_job(number, PROMPT, 6, **more)
        assert drafting.answer(job) == without.answer(job)
    assert drafting.draft is not None
    assert not drafting.draft.passes
    drafting.answer(make_job(99, PROMPT, 10))
    assert drafting.draft.passes


# --- memory --------------------------------------------------------------------------------------


def test_the_draft_is_a_part_of_the_model_and_goes_with_it(
    start: Callable[..., ByHand], folders: Path
) -> None:
    alone = start("large").loaded.memory_bytes
    before = mx.get_active_memory()
    engine = ByHand(folders / "large", draft=card_of(folders / "other"))
    try:
        weights = engine.loaded.memory_bytes
        assert weights == 2 * alone == engine.engine.memory_bytes()
        engine.answer(make_job(1, PROMPT, TOKENS))
        assert engine.engine.memory_bytes() > weights  # what the draft has computed
        engine.call(engine.engine.drop_caches)
        assert engine.engine.memory_bytes() == weights
        assert engine.answer(make_job(2, PROMPT, TOKENS)) == engine.answer(
            make_job(3, PROMPT, TOKENS)
        )
    finally:
        engine.close()
    assert mx.get_active_memory() <= before


def test_caches_that_are_dropped_while_it_drafts_change_nothing(
    start: Callable[..., ByHand], expected: Callable[..., list[int]]
) -> None:
    engine = start("large", "large", prefix_cache_bytes=10**8)
    engine.add(make_job(1, PROMPT, TOKENS))
    got = engine.until(lambda: len(engine.engine._live[1].tokens) >= 10)[1]
    engine.call(engine.engine.drop_caches)
    got += engine.until(lambda: not engine.engine.busy)[1]
    assert [result.token for result in got] == expected("large")


def test_an_answer_goes_on_when_its_draft_model_fails(
    start: Callable[..., ByHand], expected: Callable[..., list[int]]
) -> None:
    for name in ("large", "gemma2"):
        engine = start(name, name)
        assert engine.draft is not None
        engine.add(make_job(1, PROMPT, TOKENS))
        got = engine.until(lambda engine=engine: len(engine.engine._live[1].tokens) >= 10)[1]  # type: ignore[misc]
        engine.draft.before = lambda ids: 1 / 0
        got += engine.until(lambda engine=engine: not engine.engine.busy)[1]  # type: ignore[misc]
        assert [result.token for result in got] == expected(name)


def test_a_refused_draft_leaves_no_memory_behind(folders: Path) -> None:
    before = mx.get_active_memory()
    for name, draft in (("large", "window"), ("recurrent", "large"), ("large", "broken")):
        with pytest.raises(ModelLoadFailed):
            ByHand(folders / name, draft=card_of(folders / draft))
        assert mx.get_active_memory() <= before


# --- behind the API ------------------------------------------------------------------------------

REFUSED = {  # model: what it is to draft with, and what the error has to say
    "with-stranger": ("large", "stranger", "another vocabulary"),
    "with-window": ("large", "window", "sliding window"),
    "recurrent-with": ("recurrent", "other", "recurrent state"),
    "with-nothing": ("large", "no-such-model", "no-such-model"),
    "with-broken": ("large", "broken", "broken"),
    "with-encoder": ("large", "encoder", "another vocabulary"),
}


@pytest.fixture(scope="module")
def server(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    entries: dict[str, Any] = {
        "drafted": {"path": str(folders / "large"), "draft_model": "other"},
        "looked-up": {"path": str(folders / "repeating"), "prompt_lookup": True},
        "by-folder": {"path": str(folders / "large"), "draft_model": str(folders / "other")},
    }
    entries["eight"] = {"path": str(folders / "heads-of-32"), "kv_bits": 8, "draft_model": "other"}
    entries["eight-bits"] = {"path": str(folders / "large"), "kv_bits": 8}
    for name, (model, draft, _) in REFUSED.items():
        entries[name] = {"path": str(folders / model), "draft_model": draft}
    config = {"models": entries, "prefix_cache": {"disk_gb": 0}}
    with ServerProcess(tmp_path_factory.mktemp("server"), config=config, models=folders) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def completion(client: openai.OpenAI, model: str, **more: Any) -> str:
    asked: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24} | more
    answer: str = client.completions.create(model=model, **asked).choices[0].text
    return answer


@pytest.mark.parametrize(
    ("model", "without"),
    [("drafted", "large"), ("by-folder", "large"), ("looked-up", "repeating")],
)
def test_a_config_that_drafts_changes_no_answer(
    client: openai.OpenAI, model: str, without: str
) -> None:
    wanted = completion(client, without)
    assert wanted
    assert completion(client, model) == wanted
    seeded = {"temperature": 1.0, "seed": 5, "n": 2}
    assert completion(client, model, **seeded) == completion(client, without, **seeded)
    together: list[str] = []
    threads = [
        threading.Thread(target=lambda: together.append(completion(client, model)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == [wanted] * 3


@pytest.mark.parametrize("name", REFUSED)
def test_a_draft_that_cannot_be_used_is_refused_with_what_to_do(
    server: ServerProcess, client: openai.OpenAI, folders: Path, name: str
) -> None:
    _model, draft, reason = REFUSED[name]
    response = httpx.post(
        f"{server.url}/completions",
        json={"model": name, "prompt": [5, 6], "max_tokens": 2},
        timeout=60,
    )
    error = response.json()["error"]
    assert response.status_code in range(400, 600), response.text
    assert error["code"] == "model_load_failed"
    message = error["message"]
    assert name in message, "the model that is asked for"
    assert reason in message
    assert "draft_model" in message
    assert "eave it out" in message
    if name in ("with-stranger", "with-window", "with-nothing"):
        assert draft in message
    assert str(folders) not in message
    # The others serve on.
    assert completion(client, "large", max_tokens=3)


def test_a_config_with_kv_bits_answers_all_who_wait(
    server: ServerProcess, client: openai.OpenAI, folders: Path
) -> None:
    """One at a time, with a draft model; and says so where it cannot have them."""
    prompts = {number: words(40, start=number) for number in range(4)}
    engine = ByHand(folders / "heads-of-32", kv_bits=8)
    try:
        wanted = {n: engine.answer(make_job(n, each, 8)) for n, each in prompts.items()}
    finally:
        engine.close()
    got: dict[int, Any] = {}

    def ask(number: int) -> None:
        answer = client.completions.create(
            model="eight",
            prompt=prompts[number],
            temperature=0,
            max_tokens=8,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        got[number] = answer.choices[0].token_ids  # type: ignore[attr-defined]

    threads = [threading.Thread(target=ask, args=(number,)) for number in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == wanted
    with pytest.raises(openai.APIStatusError) as caught:
        completion(client, "eight-bits")
    assert "eight-bits cannot have a KV cache of 8 bits" in caught.value.message
    assert "kv_bits" in caught.value.message
