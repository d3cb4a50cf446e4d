"""The bare loop: mlx-lm's BatchGenerator driven by as little Python as it takes.

Run as ``python -m benchmarks.bare MODEL`` it loads the model once and then answers JSON lines: in
``{"prompts": [text, ...], "max_tokens": n}``, out the fields of :class:`BareAnswer` for each;
in ``"gflops"``, out a number. It begins with a line of its own when the model is loaded.
Templates and tokens are made before the clock starts, texts after it has stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load

_ROWS = 32  # as many as our server decodes together


@dataclass(frozen=True, slots=True)
class BareAnswer:
    """``times``: seconds from the start to each token."""

    text: str
    prompt_tokens: int
    times: list[float]


class BareLoop:
    def __init__(self, model: Path) -> None:
        self._model, self._tokenizer = load(str(model))[:2]

    def answer(self, prompts: list[str], max_tokens: int) -> list[BareAnswer]:
        """Decode all prompts together, greedily, to exactly ``max_tokens`` each."""
        ids = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True
            )
            for prompt in prompts
        ]
        lengths = [len(prompt) for prompt in ids]  # the generator empties the lists
        generator = BatchGenerator(
            self._model, completion_batch_size=_ROWS, prefill_batch_size=_ROWS
        )
        tokens: dict[int, list[int]] = {}
        times: dict[int, list[float]] = {}
        start = time.perf_counter()
        uids = generator.insert(ids, max_tokens=[max_tokens] * len(ids))
        for uid in uids:
            tokens[uid], times[uid] = [], []
        left = len(ids)
        while left:
            _, responses = generator.next()
            now = time.perf_counter() - start
            for response in responses:
                tokens[response.uid].append(response.token)
                times[response.uid].append(now)
                left -= response.finish_reason is not None
        generator.close()
        return [
            BareAnswer(self._text(tokens[uid]), length, times[uid])
            for uid, length in zip(uids, lengths, strict=True)
        ]

    def _text(self, tokens: list[int]) -> str:
        detokenizer = self._tokenizer.detokenizer
        for token in tokens:
            detokenizer.add_token(token)
        detokenizer.finalize()
        text: str = detokenizer.text
        return text


def matmul_gflops(size: int = 512, repeats: int = 5) -> float:
    """How fast float32 matrices are multiplied here: tells OpenBLAS (tens) from the reference
    BLAS (about 1)."""
    matrix = mx.random.normal((size, size))
    mx.eval(matrix @ matrix)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(matrix @ matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def main() -> None:
    answers = protocol_output()
    loop = BareLoop(Path(sys.argv[1]))
    send(answers, "ready")
    for line in sys.stdin:
        request = json.loads(line)
        if request == "gflops":
            send(answers, matmul_gflops())
        else:
            result = loop.answer(request["prompts"], request["max_tokens"])
            send(answers, [asdict(answer) for answer in result])


def protocol_output() -> IO[str]:
    """Standard output for the protocol alone: what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def send(output: IO[str], value: Any) -> None:
    output.write(json.dumps(value) + "\n")
    output.flush()


if __name__ == "__main__":
    main()
