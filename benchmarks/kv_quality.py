"""A KV cache of fewer bits against a whole one: ``python -m benchmarks.kv_quality MODEL TOKENS``.

Each question is answered greedily with a whole cache; then the same answer is read with a cache of
8 and of 4 bits, as our server makes it, and what the model finds likely at every token is compared.
The answer is one line of JSON: bits to the fields of :class:`Quality`; ``"whole"`` to the bytes of
a token in the whole cache.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from benchmarks.bare import protocol_output, send
from mlx_router.engine.quantized import QuantizedCache

QUESTIONS = (
    "Hello!",
    "Who are you?",
    "Tell me a joke.",
    "Tell me a short story.",
    "What is the capital of France?",
    "What is the capital of Norway?",
    "What is the opposite of hot?",
    "My name is Ada. What is my name?",
    "What is MLX Router?",
    "How do I install MLX Router?",
    "How do I add a model?",
    "What happens when memory is short?",
    "Can several requests run at once?",
    "Does it stream its answers?",
    "How do I set an API key?",
    "Repeat after me: the quick brown fox.",
    "Make a list of three fruits.",
    "Which port does the server use?",
    "Thank you!",
    "What can you not do?",
)


@dataclass(slots=True)
class Quality:
    """``bytes_per_token``: of the KV cache, all layers. ``agreeing``: of ``tokens``, how many the
    model would have chosen as well. ``divergences``: one for each token, in nats: the Kullback-
    Leibler divergence KL(whole || fewer bits), of what the model finds likely with a whole cache
    from what it finds likely with this one."""

    bytes_per_token: float = 0.0
    tokens: int = 0
    agreeing: int = 0
    divergences: list[float] = field(default_factory=list)


def compare(folder: Path, tokens: int) -> dict[str, Any]:
    model, tokenizer = load(str(folder))[:2]
    qualities = {bits: Quality() for bits in (8, 4)}
    whole_bytes = 0.0
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        )
        whole = make_prompt_cache(model)
        answer, expected = _answer(model, whole, prompt, tokens, tokenizer.eos_token_ids)
        whole_bytes = _bytes_per_token(whole)
        for bits, quality in qualities.items():
            cache = QuantizedCache(model, folder.name, bits)()
            found = _read(model, cache, prompt, answer)
            divergences = mx.sum(mx.exp(expected) * (expected - found), axis=-1)
            agreeing = mx.argmax(found, axis=-1) == mx.argmax(expected, axis=-1)
            quality.bytes_per_token = _bytes_per_token(cache)
            quality.tokens += len(answer)
            quality.agreeing += int(cast(int, mx.sum(agreeing).item()))
            quality.divergences += cast(list[float], divergences.tolist())
    by_bits = {str(bits): asdict(quality) for bits, quality in qualities.items()}
    return {"whole": whole_bytes, **by_bits}


def _answer(
    model: Any, cache: list[Any], prompt: list[int], tokens: int, stops: set[int]
) -> tuple[list[int], mx.array]:
    """The greedy answer, its end included, and the log-probabilities at each of its tokens."""
    answer: list[int] = []
    rows = []
    ids = prompt
    while len(answer) < tokens and not (answer and answer[-1] in stops):
        rows.append(_forward(model, cache, ids))
        answer.append(int(cast(int, mx.argmax(rows[-1]).item())))
        ids = answer[-1:]
    return answer, mx.stack(rows)


def _read(model: Any, cache: list[Any], prompt: list[int], answer: list[int]) -> mx.array:
    """The log-probabilities at each token of an answer that is known."""
    steps = [prompt, *([token] for token in answer[:-1])]
    return mx.stack([_forward(model, cache, ids) for ids in steps])


def _forward(model: Any, cache: list[Any], ids: list[int]) -> mx.array:
    logits = model(mx.array([ids]), cache=cache)[0, -1].astype(mx.float32)
    row: mx.array = logits - mx.logsumexp(logits)
    mx.eval(row)
    return row


def _bytes_per_token(cache: list[Any]) -> float:
    """Caches are allocated in blocks, so what is allocated is divided by what there is room for."""
    total = 0.0
    for layer in cache:
        arrays = _arrays(layer.keys) + _arrays(layer.values)
        total += sum(array.nbytes for array in arrays) / arrays[0].shape[2]
    return total


def _arrays(value: Any) -> list[mx.array]:
    return [value] if isinstance(value, mx.array) else list(value)


def main() -> None:
    answer = protocol_output()
    send(answer, compare(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
