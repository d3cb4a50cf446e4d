"""The codec of a real model folder: templates, markers, detokenising, advised sampling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_router.domain import (
    ChatPrompt,
    Message,
    ModelCard,
    ModelKind,
    SamplingOptions,
    Tool,
    ToolCall,
)
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


def without_thinking_tokens(model: Path, folder: Path, source: str, *tokens: str) -> Path:
    """A copy of a model whose tokens for reasoning and calls have other names: ``tokens``."""
    with_template(model, folder, source)
    file = folder / "tokenizer.json"
    names = iter((*tokens, "<unused1>", "<unused2>", "<unused3>", "<unused4>"))
    text = file.read_text()
    for old in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert json.dumps(old) in text
        text = text.replace(json.dumps(old), json.dumps(next(names)))
    file.write_text(text)
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
    assert codec(llama).encode_chat(prompt).ids == expected


@pytest.mark.parametrize(
    "name", ["add_generation_prompt", "messages", "tools", "tokenize", "bos_token", "nonsense"]
)
def test_a_client_sets_only_what_the_template_reads(llama: Path, tmp_path: Path, name: str) -> None:
    source = "{{ bos_token }}{{ style }} {{ messages[0].content }}{% set nonsense = 1 %}"
    made = codec(with_template(llama, tmp_path / "model", source))
    prompt = ChatPrompt(HELLO.messages, template_kwargs={"style": "brief", "enable_thinking": True})
    assert made.decode(made.encode_chat(prompt).ids).endswith("brief Hello")
    with pytest.raises(InvalidRequest, match="enable_thinking, reasoning_effort, style") as caught:
        made.encode_chat(ChatPrompt(HELLO.messages, template_kwargs={name: "x"}))
    assert caught.value.param == "chat_template_kwargs"


def test_a_model_without_template_says_what_to_do(llama: Path, tmp_path: Path) -> None:
    bare = with_template(llama, tmp_path / "bare", None)
    with pytest.raises(InvalidRequest, match="chat_template"):
        codec(bare).encode_chat(HELLO)
    assert "Hello" in codec(bare, "chatml").decode(codec(bare, "chatml").encode_chat(HELLO).ids)


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
        ("<|header_start|>ipython<|header_end|>", "llama3_json"),
        ("<|start_header_id|>ipython [func_name1(params_name1=params_value1)]", "pythonic"),
        ("<|header_start|>ipython [func_name1(params_name1=params_value1)]", "pythonic"),
        ("<\uff5cDSML\uff5cfunction_calls>", "deepseek_v32"),
        ("<\uff5cDSML\uff5ctool_calls>", "deepseek_v4"),
        ("SYSTEM: <|function_call_library|>", "granite"),
        ("<|tool|>{{ tools }}<|/tool|>", "phi4"),
        ("<|START_ACTION|>[]<|END_ACTION|>", "cohere"),
        ("<start_of_turn>user", "gemma"),
        ("<start_function_call>", "function_gemma"),
        ("<tool_call>{{ tool.name }}<arg_key>", "glm47"),
        ("<tool_call>\n<function=", "qwen3_coder"),
        ("<|tool_calls_section_begin|>", "kimi_k2"),
        ("<minimax:tool_call>", "minimax_m2"),
        ("<|tool_call><tool_call|>", "gemma4"),
        ("<|tool_list_start|>", "pythonic"),
        ('<function name="{{ tool.name }}"><param name="a">', "minicpm5"),
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


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("Here is my thought process:", "Here is my response:"),
        ("<think>", "</think>"),
    ],
)
def test_the_markers_of_reasoning_are_known_by_the_template(
    llama: Path, tmp_path: Path, start: str, end: str
) -> None:
    folder = without_thinking_tokens(llama, tmp_path / "model", "{#" + start + end + "#}" + start)
    made = codec(folder)
    assert (made.markers.think_start, made.markers.think_end) == (start, end)
    assert made.starts_in_reasoning(made.encode_chat(HELLO).ids)
    half = without_thinking_tokens(llama, tmp_path / "half", "{#" + start + "#}")
    assert codec(half).markers.think_start is None


def test_the_markers_of_reasoning_are_known_by_the_vocabulary(llama: Path, tmp_path: Path) -> None:
    assert codec(llama).markers.think_start == "<think>"  # mlx-lm's own knowledge
    folder = without_thinking_tokens(llama, tmp_path / "model", "plain", "[THINK]", "[/THINK]")
    assert codec(folder).markers.think_start == "[THINK]"
    plain = without_thinking_tokens(llama, tmp_path / "plain", "plain")
    assert codec(plain).markers.think_start is None


def test_kimi_k3_is_known_by_its_vocabulary(llama: Path, tmp_path: Path) -> None:
    tokens = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")
    made = codec(without_thinking_tokens(llama, tmp_path / "m", "<|open|>think<|sep|>", *tokens))
    assert made.markers.tool_format == "kimi_k3"
    assert made.markers.think_end == "<|close|>think<|sep|>"
    assert made.starts_in_reasoning(made.encode_chat(HELLO).ids)


def test_switches_of_reasoning_reach_the_template(llama: Path, tmp_path: Path) -> None:
    folder = with_template(llama, tmp_path / "m", "{{ enable_thinking }} {{ reasoning_effort }}")
    made = codec(folder)
    prompt = ChatPrompt(
        HELLO.messages, template_kwargs={"enable_thinking": False}, reasoning_effort="high"
    )
    assert made.decode(made.encode_chat(prompt).ids) == "False high"
    assert made.decode(made.encode_chat(HELLO).ids) == " "


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
    assert made.decode(made.encode_chat(HELLO).ids) == "plain"
    offered = ChatPrompt(HELLO.messages, tools=(Tool("look"),))
    assert made.decode(made.encode_chat(offered).ids) == "tools look"


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


def test_the_bytes_of_tokens_join_to_the_text(llama: Path) -> None:
    made = codec(llama)
    text = 'caf\u00e9 \u6f22\u5b57 \U0001f642 <think>{"a": 1}\n'
    ids = made.encode(text, add_special_tokens=False)
    parts = [made.token_bytes(token) for token in ids]
    assert b"".join(parts).decode() == text
    assert any(len(part) == 1 and part[0] > 127 for part in parts)  # a part of a character
    assert made.token_bytes(511) == b""  # padding


def test_the_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<unk>": 0, "</s>": 1, "\u2581the": 2, "boat": 3, "<0xE6>": 4, "\u2581": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    made = codec(folder)
    expected = [b"<unk>", b"</s>", b" the", b"boat", b"\xe6", b" "]
    assert [made.token_bytes(token) for token in range(6)] == expected


def test_text_that_is_not_unicode_is_refused(llama: Path) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        codec(llama).encode("half \ud800")


def test_a_renderer_in_python_that_refuses_a_chat_is_no_fault_of_ours(
    llama: Path, tmp_path: Path
) -> None:
    folder = with_template(llama, tmp_path / "model", None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template_type"] = "deepseek_v32"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    made = codec(folder)
    asked = Message("user", "Weather?")
    called = Message("assistant", None, tool_calls=(ToolCall("c1", "f", '{"city": "Oslo"}'),))
    answered = Message("tool", "rain", tool_call_id="c1")
    text = made.decode(made.encode_chat(ChatPrompt((asked, called, answered), (Tool("f"),))).ids)
    assert "Oslo" in text
    assert "rain" in text
    assert made.encode_chat(ChatPrompt((asked,), reasoning_effort="high"))
    with pytest.raises(InvalidRequest):
        made.encode_chat(ChatPrompt((answered,)))
    with pytest.raises(InvalidRequest):
        made.encode_chat(ChatPrompt((asked,), template_kwargs={"nonsense": 1}))
