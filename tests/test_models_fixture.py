"""The random test models are fit for their purpose: lively, deterministic, and loadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import models

Models = dict[str, tuple[Any, Any]]  # kind -> model and tokenizer
Answers = dict[str, list[tuple[list[int], float]]]
PROMPTS = ("Hello", "What is the capital of Norway?", "Write a story.", "Count from one to nine.")


@pytest.fixture(scope="module")
def loaded(tiny_models: Path) -> Models:
    import mlx_lm

    return {kind: mlx_lm.load(str(tiny_models / "tiny" / kind)) for kind in models.ARCHITECTURES}


@pytest.fixture(scope="module")
def answers(loaded: Models) -> Answers:
    """Of each model the greedy tokens after each of the prompts, and their smallest margin."""
    return {
        kind: [_greedy(model, _prompt_ids(tokenizer, text)) for text in PROMPTS]
        for kind, (model, tokenizer) in loaded.items()
    }


def _prompt_ids(tokenizer: Any, text: str, **kwargs: Any) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, **kwargs
        )
    )


def _greedy(model: Any, prompt: list[int], count: int = 40) -> tuple[list[int], float]:
    """The greedy tokens, and by how much the best one won at least."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=cache)[0, -1]
    tokens: list[int] = []
    margin = float("inf")
    for _ in range(count):
        best = int(mx.argmax(logits))
        second = logits.at[best].add(-1e9).max()
        margin = min(margin, float(logits[best] - second))
        tokens.append(best)
        logits = model(mx.array([tokens[-1:]]), cache=cache)[0, -1]
    return tokens, margin


@pytest.mark.parametrize("kind", models.ARCHITECTURES)
def test_greedy_answers_are_lively_and_well_separated(
    kind: str,
    loaded: Models,
    answers: Answers,
) -> None:
    tokenizer = loaded[kind][1]
    for text, (tokens, margin) in zip(PROMPTS, answers[kind], strict=True):
        assert len(set(tokens)) > 10, f"{kind} repeats itself after {text!r}: {tokens}"
        assert margin > 1e-4, f"{kind} has a near tie after {text!r}"
        assert not set(tokens) & set(tokenizer.eos_token_ids)
        assert "\ufffd" not in tokenizer.decode(tokens)
    assert len({tuple(tokens) for tokens, _ in answers[kind]}) == len(PROMPTS)


@pytest.mark.parametrize("kind", models.ARCHITECTURES)
def test_an_answer_depends_on_the_whole_prompt(kind: str, loaded: Models) -> None:
    model, tokenizer = loaded[kind]
    near, _ = _greedy(model, _prompt_ids(tokenizer, "Is it 1 or 2? Please do say so."))
    far, _ = _greedy(model, _prompt_ids(tokenizer, "Is it 1 or 3? Please do say so."))
    assert near != far


@pytest.mark.parametrize("kind", models.ARCHITECTURES)
def test_a_batch_answers_as_each_prompt_alone(
    kind: str,
    loaded: Models,
    answers: Answers,
) -> None:
    from mlx_lm.generate import BatchGenerator

    model, tokenizer = loaded[kind]
    prompts = [_prompt_ids(tokenizer, text) for text in PROMPTS]
    generator = BatchGenerator(model, max_tokens=40)
    ids = generator.insert(prompts)
    batched: dict[int, list[int]] = {i: [] for i in ids}
    while responses := generator.next_generated():
        for response in responses:
            batched[response.uid].append(response.token)
    generator.close()
    assert [batched[i] for i in ids] == [tokens for tokens, _ in answers[kind]]


def test_a_bias_of_100_brings_up_end_of_sequence(loaded: Models) -> None:
    import mlx.core as mx

    for kind, (model, tokenizer) in loaded.items():
        logits = model(mx.array([_prompt_ids(tokenizer, "Hello")]))[0, -1]
        eos = logits[tokenizer.eos_token_id].item()
        assert eos + 100 > mx.max(logits).item() + 10, kind
        assert eos + 10 < mx.max(logits).item(), kind


def test_tokenizers_know_tools_thinking_and_unicode(loaded: Models) -> None:
    text = "Crème brûlée 日本 🙂 <|im_end|> never seen: ℵ₀"
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    for _, tokenizer in loaded.values():
        assert tokenizer.has_thinking
        assert tokenizer.has_tool_calling
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
        rendered = tokenizer.decode(
            _prompt_ids(tokenizer, "Hi", tools=[tool], enable_thinking=False)
        )
        assert "get_weather" in rendered
        assert rendered.endswith("<think>\n\n</think>\n\n")


def test_a_seed_makes_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        models.make_model("qwen3", tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    content = [(path / "model.safetensors").read_bytes() for path in (first, again, other)]
    assert content[0] == content[1] != content[2]


def test_a_sharded_model_answers_as_the_whole_one(
    answers: Answers,
) -> None:
    assert answers["sharded"] == answers["qwen3"]


def test_the_cache_layout_is_what_the_hub_client_makes(tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir

    path = models.make_model("qwen3", tmp_path, layout="hf_cache", repo_id="org/model")
    (repo,) = scan_cache_dir(tmp_path).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.snapshot_path) == ("org/model", path)
    assert revision.refs == {"main"}
    assert json.loads((path / "config.json").read_text())["model_type"] == "qwen3"
    assert all(file.is_symlink() for file in path.iterdir())


def test_breaking_touches_the_copy_only(tmp_path: Path) -> None:
    whole = models.make_model("sharded", tmp_path, layout="hf_cache")
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    copy = models.copy_model(whole, tmp_path / "copy")
    broken = models.truncate_shard(copy)
    assert broken.stat().st_size < len(before[broken.name])
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == before
