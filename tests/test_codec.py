"""The codec of a real model folder: templates, markers, detokenising, advised sampling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_router.domain import ChatPrompt, Message, ModelCard, ModelKind, SamplingOptions, Tool
from mlx_router.engine.codec import MLXCodec
from mlx_router.errors import InvalidRequest, ModelCorrupt
from tests.models import copy_model

HELLO = ChatPrompt((Message("user", "Hello"),))


def codec(folder: Path, template: str | None = None) -> MLXCodec:
    card = ModelCard(id="m", path=folder, kind=ModelKind.TEXT, architecture="")
    return MLXCodec(card, template=template)


def with_template(model: Path, folder: Path, source: str | None) -> Path:
    """A copy of a model with another chat template, or none."""
    copy_model(model, folder)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if source is not None:
        (folder / "chat_template.jinja").write_text(source)
    return folder


@pytest.fixture
def llama(tiny_models: Path) -> Path:
    return tiny_models / "tiny" / "llama"


def test_the_prompt_is_what_mlx_lm_makes(llama: Path) -> None:
    import mlx_lm

    _, tokenizer = mlx_lm.load(str(llama))
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, enable_thinking=False
    )
    prompt = ChatPrompt(HELLO.messages, template_kwargs={"enable_thinking": False})
    assert codec(llama).encode_chat(prompt) == expected


def test_a_client_cannot_take_over_the_rendering(llama: Path) -> None:
    hostile = {"add_generation_prompt": False, "messages": [], "tokenize": True}
    prompt = ChatPrompt(HELLO.messages, template_kwargs=hostile)
    assert codec(llama).encode_chat(prompt) == codec(llama).encode_chat(HELLO)


def test_a_model_without_template_says_what_to_do(llama: Path, tmp_path: Path) -> None:
    bare = with_template(llama, tmp_path / "bare", None)
    with pytest.raises(InvalidRequest, match="chat_template"):
        codec(bare).encode_chat(HELLO)
    assert "Hello" in codec(bare, "chatml").decode(codec(bare, "chatml").encode_chat(HELLO))


def test_text_survives_a_round_trip_token_by_token(llama: Path) -> None:
    made = codec(llama)
    for text in ("Hello, world", "caf\u00e9 \u6f22\u5b57 \U0001f642!", "a\n\n\tb"):
        detokenizer = made.detokenizer()
        ids = made.encode(text, add_special_tokens=False)
        pieces = [detokenizer.add(token) for token in ids]
        assert "".join(pieces) + detokenizer.finish() == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_dropped(llama: Path) -> None:
    made = codec(llama)
    ids = made.encode("ok \U0001f642", add_special_tokens=False)
    detokenizer = made.detokenizer()
    text = "".join(detokenizer.add(token) for token in ids[:-1]) + detokenizer.finish()
    assert text.startswith("ok")
    assert "\ufffd" not in text


def test_ids_without_text_are_no_error(llama: Path) -> None:
    detokenizer = codec(llama).detokenizer()
    for token in (511, 10**6):
        assert isinstance(detokenizer.add(token), str)
    assert isinstance(detokenizer.finish(), str)


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("<|channel|>analysis<|message|>", "harmony"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek"),
        ("<|start_of_role|>user<|end_of_role|>", "granite"),
        ("<|tool_call|>[]<|/tool_call|>", "phi4"),
        ("<|start_header_id|>ipython<|end_header_id|>", "llama3_json"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call>{{ tool_call.name }}</tool_call>", "hermes"),
        ("plain", None),
    ],
)
def test_the_family_of_tool_calls_is_known_by_the_template(
    llama: Path, tmp_path: Path, source: str, family: str | None
) -> None:
    folder = with_template(llama, tmp_path / "model", "{{ messages[0].content }}{#" + source + "#}")
    assert codec(folder).markers.tool_format == family


def test_the_tool_use_template_is_taken_where_there_is_one(llama: Path, tmp_path: Path) -> None:
    folder = with_template(llama, tmp_path / "model", None)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings["chat_template"] = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools {{ tools[0].function.name }}"},
    ]
    config.write_text(json.dumps(settings))
    made = codec(folder)
    assert made.decode(made.encode_chat(HELLO)) == "plain"
    offered = ChatPrompt(HELLO.messages, tools=(Tool("look"),))
    assert made.decode(made.encode_chat(offered)) == "tools look"


def test_sampling_is_what_the_makers_advise(llama: Path, tmp_path: Path) -> None:
    folder = copy_model(llama, tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text('{"temperature": 0.6, "top_k": 20.0, "top_p": "high", "do_sample": true}')
    assert codec(folder).sampling == SamplingOptions(temperature=0.6, top_k=20)
    file.write_text('{"temperature": 0.6, "do_sample": false}')
    assert codec(folder).sampling == SamplingOptions(temperature=0.0)
    file.write_text("not JSON")
    assert codec(folder).sampling == SamplingOptions()


def test_a_broken_tokenizer_is_named_without_its_path(llama: Path, tmp_path: Path) -> None:
    folder = copy_model(llama, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelCorrupt) as caught:
        codec(folder)
    assert str(tmp_path) not in caught.value.message
