"""What a client of a model that sees relies on, on a real server process."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.media_support import data_uri, encoded
from tests.models import CONTEXT_LENGTH, make_model
from tests.server import ServerProcess
from tests.vision_messages import BALL, BOX, EGG, Json, drawing, image, text, token_ids, user
from tests.vision_models import IMAGE_TOKENS, make_vision_model
from tests.waiting import until_sync

EYES = ("qwen3_vl", "gemma3")
KEYS = {"one": "key-one-0123456789abcdef", "two": "key-two-0123456789abcdef"}

WEATHER: Json = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris"]},
        "warm": {"type": "boolean"},
    },
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    for kind in EYES:
        make_vision_model(kind, models / kind)
    make_model("llama", models / "llama")
    config = {
        "defaults": {"prefill_step_size": 16, "cache_size": 8},
        "server": {"api_keys": KEYS},
        "media": {"max_images": 20},
    }
    with ServerProcess(tmp_path_factory.mktemp("server"), config=config, models=models) as running:
        yield running


def headers(name: str = "one") -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=headers(), timeout=60) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=server.url, api_key=KEYS["one"], max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture(params=EYES)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


CHATS: dict[str, list[Json]] = {
    "one": [user(image(BOX), text("What is in this image?"))],
    "two": [user(text("Compare "), image(BOX), text(" with "), image(BALL), text("."))],
    "again": [
        user(image(EGG), text("What is this?")),
        {"role": "assistant", "content": "An egg."},
        {"role": "user", "content": "Which colour?"},
    ],
    "none": [{"role": "user", "content": "What is the capital of Norway?"}],
}
MESSAGES: Any = CHATS["one"]


def body(model: str, chat: str = "one", **more: Any) -> Json:
    return {
        "model": model,
        "messages": CHATS[chat],
        "temperature": 0,
        "max_tokens": 12,
        "return_token_ids": True,
        **more,
    }


def post(http: httpx.Client, request: Json) -> Json:
    response = http.post("/chat/completions", json=request)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def content(answer: Json, choice: int = 0) -> str:
    found: str = answer["choices"][choice]["message"]["content"]
    return found


def refused(http: httpx.Client, request: Json, status: int = 400) -> Json:
    response = http.post("/chat/completions", json=request)
    assert response.status_code == status, response.text
    error: Json = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


def together(server: ServerProcess, requests: list[Json]) -> list[Json]:
    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, headers=headers(), timeout=120) as client:
            calls = (client.post("/chat/completions", json=each) for each in requests)
            return list(await asyncio.gather(*calls))

    responses = asyncio.run(send())
    for response in responses:
        assert response.status_code == 200, response.text
    return [response.json() for response in responses]


def active_requests(server: ServerProcess) -> int:
    health = httpx.get(f"{server.url}/health", headers=headers(), timeout=10).json()
    return sum(m["active_requests"] + m["waiting_requests"] for m in health["loaded_models"])


def wait_until_idle(server: ServerProcess) -> None:
    until_sync(lambda: active_requests(server) == 0)


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 11])
def test_a_stream_says_what_a_whole_answer_says(
    client: openai.OpenAI, model: str, seed: int | None
) -> None:
    options: Any = {"model": model, "max_tokens": 20, "seed": seed}
    options["temperature"] = 0 if seed is None else 1.2
    for chat in CHATS.values():
        messages: Any = chat
        whole = client.chat.completions.create(messages=messages, **options)
        *chunks, last = client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **options
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == whole.choices[0].message.content
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert last.usage is not None
        assert whole.usage is not None
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
        assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_usage_counts_what_an_image_takes(http: httpx.Client, model: str) -> None:
    def prompt_tokens(*parts: Json) -> int:
        usage = post(http, body(model) | {"messages": [user(*parts)]})["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
        found: int = usage["prompt_tokens"]
        return found

    none = prompt_tokens(text("Hello."))
    one = prompt_tokens(image(BOX), text("Hello."))
    two = prompt_tokens(image(BOX), image(BOX), text("Hello."))
    assert one - none >= 4
    assert two - one == pytest.approx(one - none, abs=1)  # some templates part them by a token


def test_tokenize_counts_what_the_answer_counts(http: httpx.Client, model: str) -> None:
    for chat in CHATS:
        answer = post(http, body(model, chat))
        found = http.post("/tokenize", json={"model": model, "messages": CHATS[chat]})
        assert found.status_code == 200, found.text
        assert found.json()["count"] == answer["usage"]["prompt_tokens"]


def test_an_answer_ends_before_a_stop_string(http: httpx.Client, model: str) -> None:
    whole = content(post(http, body(model, max_tokens=30)))
    assert len(whole) > 4
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    answer = post(http, body(model, max_tokens=30, stop=[middle]))
    assert content(answer) == whole[: whole.index(middle)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_seed_gives_the_same_answer_alone_and_among_others(
    server: ServerProcess, http: httpx.Client, model: str
) -> None:
    requests = [
        body(model, chat, temperature=1.3, seed=seed, max_tokens=16)
        for seed, chat in enumerate(["one", "two", "again", "none", "one", "two"])
    ]
    alone = [token_ids(post(http, request)) for request in requests]
    assert [token_ids(answer) for answer in together(server, requests)] == alone
    assert alone[0] != alone[4]


def test_log_probabilities_are_there_with_an_image(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 8
    for token in logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert sum(math.exp(each.logprob) for each in token.top_logprobs) <= 1.0001


def test_a_bias_forbids_and_forces_a_token(http: httpx.Client, model: str) -> None:
    first = token_ids(post(http, body(model)))[0]
    without = token_ids(post(http, body(model, logit_bias={str(first): -100})))
    assert first not in without
    forced = token_ids(post(http, body(model, logit_bias={"300": 100}, max_tokens=4)))
    assert forced == [300] * 4


def test_an_answer_about_an_image_has_the_form_that_is_asked_for(
    http: httpx.Client, model: str
) -> None:
    for temperature in (0, 1.5):
        answer = post(
            http,
            body(model, response_format=FORMAT, max_tokens=200, temperature=temperature, seed=1),
        )
        found = json.loads(content(answer))
        assert found["city"] in ("Oslo", "Paris")
        assert isinstance(found["warm"], bool)


def test_a_call_that_is_required_is_made(client: openai.OpenAI, model: str) -> None:
    tools: Any = [TOOL]
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        seed=1,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Paris")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_choices_are_those_of_their_seeds(http: httpx.Client, model: str) -> None:
    hot = body(model, "two", temperature=1.4, seed=5)
    answer = post(http, hot | {"n": 2})
    assert [token_ids(answer, i) for i in range(2)] == [
        token_ids(post(http, hot | {"seed": 5 + i})) for i in range(2)
    ]
    assert answer["usage"]["completion_tokens"] == 24
    assert (
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        < (answer["usage"]["prompt_tokens"])
    )


def test_an_answer_is_cut_to_what_the_context_leaves(http: httpx.Client) -> None:
    request = body("qwen3_vl", max_tokens=1_000_000, ignore_eos=True)
    request["messages"] = [user(image(BOX), text("word " * 300))]
    answer = post(http, request)
    assert answer["usage"]["completion_tokens"] > 100
    assert answer["usage"]["total_tokens"] == CONTEXT_LENGTH
    assert answer["choices"][0]["finish_reason"] == "length"


# --- what is reused -------------------------------------------------------------------------


def test_one_key_never_sees_what_another_computed(server: ServerProcess) -> None:
    """Not even that it was computed: its answers say nothing of it."""
    words = "A question that nobody has asked before: what do you see, and where exactly is it?"

    def cached(key: str, model: str) -> tuple[int, list[int]]:
        request = body(model) | {"messages": [user(text(words), image(EGG), text("Well?"))]}
        request["messages"].append({"role": "assistant", "content": "It is green."})
        request["messages"].append({"role": "user", "content": "Is it?"})
        response = httpx.post(
            f"{server.url}/chat/completions", json=request, headers=headers(key), timeout=60
        )
        answer = response.json()
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found, token_ids(answer)

    first, said = cached("one", "qwen3_vl")
    again, said_again = cached("one", "qwen3_vl")
    other, said_to_other = cached("two", "qwen3_vl")
    other_again, _ = cached("two", "qwen3_vl")
    assert said == said_again == said_to_other
    assert again > first
    assert other < again
    assert other == 0
    assert other_again == again


# --- refusals -------------------------------------------------------------------------------


def test_text_that_stands_for_an_image_is_refused_beside_one(
    http: httpx.Client, model: str
) -> None:
    token = IMAGE_TOKENS[model]
    error = refused(http, body(model) | {"messages": [user(image(BOX), text(f"Is {token} one?"))]})
    assert error["param"] == "messages.0"
    assert token in error["message"]
    tool = {"type": "function", "function": {"name": "f", "description": token}}
    assert refused(http, body(model, tools=[tool]))["param"] == "tools"


def test_text_that_stands_for_an_image_never_fails_the_server(
    http: httpx.Client, model: str
) -> None:
    """There is no image to take it for."""
    messages = [{"role": "user", "content": f"Is {IMAGE_TOKENS[model]} one? <|video_pad|>"}]
    post(http, body(model) | {"messages": messages})
    response = http.post(
        "/completions", json={"model": model, "prompt": IMAGE_TOKENS[model] * 3, "max_tokens": 3}
    )
    assert response.status_code == 200, response.text


def test_images_that_take_more_than_the_context_are_refused_by_their_tokens(
    http: httpx.Client,
) -> None:
    parts = [image(drawing((256, 256), "white", "ellipse", c)) for c in ("red", "blue")] * 10
    words = text("word " * 900)
    error = refused(http, body("qwen3_vl") | {"messages": [user(*parts, words)]})
    assert error["code"] == "context_length_exceeded"
    assert "tokens" in error["message"]


def test_too_many_images_are_refused(http: httpx.Client, model: str) -> None:
    error = refused(http, body(model) | {"messages": [user(*[image(BOX)] * 21)]})
    assert "21" in error["message"]
    assert "20" in error["message"]
    assert error["param"].startswith("messages")


def test_an_image_is_refused_by_a_model_that_cannot_see(http: httpx.Client) -> None:
    error = refused(http, body("llama"))
    assert error["param"].startswith("messages")
    assert "llama" in error["message"]
    for kind in EYES:
        post(http, body(kind))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!!"}},
        {"type": "image_url", "image_url": {"url": data_uri(b"no image at all")}},
        {"type": "image_url", "image_url": {"url": data_uri(encoded(BOX)[:200])}},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "image_url"},
        {"type": "file", "file": {"file_data": base64.b64encode(b"%PDF-1.4 broken").decode()}},
    ],
)
def test_what_is_no_image_is_refused_and_disturbs_no_other(
    server: ServerProcess, http: httpx.Client, part: Json
) -> None:
    expected = token_ids(post(http, body("qwen3_vl")))
    error = refused(http, body("qwen3_vl") | {"messages": [user(part, text("What is it?"))]})
    assert error["param"].startswith("messages")
    assert token_ids(post(http, body("qwen3_vl"))) == expected


# --- ends before the end --------------------------------------------------------------------


def test_an_answer_that_takes_too_long_ends_in_time(http: httpx.Client, model: str) -> None:
    """With what there was until then, or an error if there was nothing."""
    expected = token_ids(post(http, body(model)))
    request = body(model, max_tokens=1500, timeout=0.3, ignore_eos=True)
    response = http.post("/chat/completions", json=request)
    if response.status_code == 200:
        assert response.headers["x-mlx-router-timed-out"] == "true"
        assert response.json()["usage"]["completion_tokens"] < 1500
    else:
        assert response.status_code == 504, response.text
        assert "second" in response.json()["error"]["message"]
    assert token_ids(post(http, body(model))) == expected


def test_a_client_that_leaves_while_its_images_are_computed_is_answered_no_further(
    server: ServerProcess, http: httpx.Client
) -> None:
    """Twenty large images, and an answer that would be long."""
    expected = token_ids(post(http, body("qwen3_vl")))
    rng = random.Random(1)

    def large(**more: Any) -> Json:
        colours = [f"#{rng.randrange(1 << 24):06x}" for _ in range(20)]
        parts = [image(drawing((256, 256), "white", "ellipse", colour)) for colour in colours]
        return body("qwen3_vl", ignore_eos=True, **more) | {"messages": [user(*parts)]}

    def answered() -> int:
        """Those with so long a prompt that came to their end."""
        counts = re.findall(r"(\d+) prompt tokens ", server.output())
        return sum(int(count) > 1000 for count in counts)

    async def leave(request: Json, looks: int) -> None:
        """As soon as it is under way, or a little later."""
        async with httpx.AsyncClient(base_url=server.url, headers=headers(), timeout=60) as client:
            asking = asyncio.create_task(client.post("/chat/completions", json=request))
            while looks:
                looks -= await asyncio.to_thread(active_requests, server) > 0
            assert not asking.done()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    post(http, large(max_tokens=2))
    assert answered() == 1
    for looks in range(1, 5):
        asyncio.run(leave(large(max_tokens=600), looks))
        assert token_ids(post(http, body("qwen3_vl"))) == expected
        wait_until_idle(server)
    assert answered() == 1
    assert "Traceback" not in server.output()


@pytest.mark.slow
def test_many_at_once_of_whom_some_leave_are_answered_rightly_and_leave_nothing_behind(
    server: ServerProcess, http: httpx.Client
) -> None:
    kinds = [(model, chat) for model in EYES for chat in CHATS]
    expected = {kind: token_ids(post(http, body(*kind))) for kind in kinds}

    async def one(client: httpx.AsyncClient, rng: random.Random) -> None:
        kind = rng.choice(kinds)
        if rng.random() < 0.4:
            request = body(*kind, max_tokens=300, stream=True, ignore_eos=True)
            try:
                async with asyncio.timeout(rng.uniform(0, 0.4)):
                    async with client.stream("POST", "/chat/completions", json=request) as got:
                        assert got.status_code == 200
                        async for _ in got.aiter_lines():
                            if rng.random() < 0.1:
                                return
            except TimeoutError:
                pass
            return
        response = await client.post("/chat/completions", json=body(*kind))
        assert response.status_code == 200, response.text
        assert token_ids(response.json()) == expected[kind], kind

    async def crowd(seed: int) -> None:
        limits = httpx.Limits(max_connections=24)
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers(), timeout=120, limits=limits
        ) as client:
            await asyncio.gather(*(one(client, random.Random(seed + i)) for i in range(24)))

    held = []
    for round_ in range(6):
        asyncio.run(crowd(round_ * 100))
        wait_until_idle(server)
        held.append(server.usage())
    story = "\n".join(map(str, held))
    assert held[-1].descriptors <= max(usage.descriptors for usage in held[:3]) + 2, story
    assert held[-1].threads <= max(usage.threads for usage in held[:3]) + 2, story
    for kind in kinds:
        assert token_ids(post(http, body(*kind))) == expected[kind]
    assert "Traceback" not in server.output()
