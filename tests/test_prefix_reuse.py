"""Computed prompts are reused, and no answer depends on it. Real models, through the library."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_router import MLXModelManager
from mlx_router.config.settings import Settings

# Every layer can be cut back; some have a sliding window; some have a recurrent state.
KINDS = ("qwen3", "gemma3_text", "qwen3_next")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": "Count from one to nine and print the sum of both numbers.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for number in range(4)
]
SYSTEM = {
    "role": "system",
    "content": "The router answers every question that it can, and says so when it cannot. " * 12,
}


def manager_of(models: Path, folder: Path, **prefix_cache: Any) -> MLXModelManager:
    kept = {"directory": str(folder), "disk_gb": 0, **prefix_cache}
    settings = Settings.model_validate({"prefix_cache": kept})
    return MLXModelManager(settings, model_directory=models)


@pytest.fixture
def manager(tiny_models: Path, tmp_path: Path) -> Iterator[MLXModelManager]:
    with manager_of(tiny_models, tmp_path, memory_gb=1) as manager:
        yield manager


@pytest.fixture(scope="module")
def plain(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXModelManager]:
    """One that keeps nothing."""
    with manager_of(tiny_models, tmp_path_factory.mktemp("none"), memory_gb=0) as manager:
        yield manager


def ask(manager: MLXModelManager, kind: str, messages: list[dict[str, Any]]) -> tuple[str, Any]:
    answer = manager.chat(messages, model=f"tiny/{kind}", tools=TOOLS, max_tokens=8, temperature=0)
    return answer.content, answer.usage


def question(number: int, text: str = "What is the capital of Norway?") -> dict[str, Any]:
    return {"role": "user", "content": f"{number}. {text}"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_computes_little_of_a_conversation_of_ten_turns_and_a_branch(
    manager: MLXModelManager, plain: MLXModelManager, kind: str
) -> None:
    """What the model thought is stripped by the client and by the template, and the results of
    tools come between; at last it goes on from the fifth turn in another way."""
    messages: list[dict[str, Any]] = [SYSTEM]
    turns: list[tuple[list[dict[str, Any]], str]] = []
    for number in range(10):
        if number % 3 == 2:
            call = {
                "id": "1",
                "type": "function",
                "function": {"name": "tool_1", "arguments": "{}"},
            }
            messages[-1] = {"role": "assistant", "content": "", "tool_calls": [call]}
            messages.append({"role": "tool", "tool_call_id": "1", "content": "It is sunny, 21."})
        else:
            messages.append(question(number))
        text, _ = ask(plain, kind, messages)
        turns.append((list(messages), text))
        answer = {"role": "assistant", "content": text[len(text) // 2 :]}
        messages.append(answer | {"reasoning_content": "Let me think about Norway."})
    branch = [{"role": "assistant", "content": "No."}, question(5, "And of France?")]
    branched = [*turns[4][0], *branch]
    turns.append((branched, ask(plain, kind, branched)[0]))
    total = computed = 0
    for turn, expected in turns:
        text, usage = ask(manager, kind, turn)
        assert text == expected
        total += usage.prompt_tokens
        computed += usage.prompt_tokens - usage.cached_tokens
    assert computed <= 0.15 * total


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_conversation_reuses_the_system_prompt(
    manager: MLXModelManager, plain: MLXModelManager, kind: str
) -> None:
    ask(manager, kind, [SYSTEM, question(1)])
    other = [SYSTEM, {"role": "user", "content": "Write a short story."}]
    text, usage = ask(manager, kind, other)
    assert text == ask(plain, kind, other)[0]
    assert usage.cached_tokens > 0.9 * usage.prompt_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_again_is_hardly_computed(
    manager: MLXModelManager, plain: MLXModelManager, kind: str
) -> None:
    messages = [SYSTEM, question(1)]
    first, usage = ask(manager, kind, messages)
    assert usage.cached_tokens == 0
    assert first == ask(plain, kind, messages)[0]
    for _ in range(3):
        again, usage = ask(manager, kind, messages)
        assert again == first
        assert usage.cached_tokens > 0.95 * usage.prompt_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_at_once_share_what_they_begin_with_and_keep_their_answers(
    manager: MLXModelManager, plain: MLXModelManager, kind: str
) -> None:
    chats = [[SYSTEM, question(number, "Say it.")] for number in range(4)]
    expected = [ask(plain, kind, chat)[0] for chat in chats]
    with ThreadPoolExecutor(len(chats)) as pool:
        for _ in range(2):
            found = list(pool.map(lambda chat: ask(manager, kind, chat), chats))
            assert [text for text, _ in found] == expected
    assert all(usage.cached_tokens > 0.9 * usage.prompt_tokens for _, usage in found)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_survive_a_swap_an_unload_and_a_new_start(
    tiny_models: Path, tmp_path: Path, plain: MLXModelManager, kind: str
) -> None:
    messages = [SYSTEM, question(1)]
    expected = ask(plain, kind, messages)[0]

    def again(manager: MLXModelManager) -> None:
        text, usage = ask(manager, kind, messages)
        assert text == expected
        assert usage.cached_tokens >= min(512, 0.9 * usage.prompt_tokens)

    with manager_of(tiny_models, tmp_path, disk_gb=1) as manager:
        assert ask(manager, kind, messages)[1].cached_tokens == 0
        manager.unload(f"tiny/{kind}")
        again(manager)
    with manager_of(tiny_models, tmp_path, disk_gb=1) as manager:
        again(manager)
    assert tmp_path.stat().st_mode & 0o077 == 0
