"""Completions as one ``text_completion`` object."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mlx_router.api.completions import CompletionCall
from mlx_router.api.gather import Gathered
from mlx_router.api.merge import StartedOne
from mlx_router.api.wire import SYSTEM_FINGERPRINT, answer_id, text_logprobs, usage_dict


class CompletionAnswer(Gathered):
    """Gathers the merged events of a call. ``echoes``: for each prompt, what its answers begin
    with."""

    def __init__(self, call: CompletionCall, echoes: Sequence[str]) -> None:
        super().__init__(call.n * len(call.requests))
        self._call = call
        self._echoes = echoes

    def body(self) -> dict[str, Any]:
        """The text_completion object; call it after :meth:`gather`."""
        prompt_ids = {
            started.source if isinstance(started, StartedOne) else 0: started.prompt_token_ids
            for started in self.starts
        }
        has_logprobs = self._call.requests[0].logprobs is not None
        choices = []
        for index, choice in enumerate(self.choices):
            source = index // self._call.n
            entry: dict[str, Any] = {
                "text": self._echoes[source] + "".join(choice.content),
                "index": index,
                "logprobs": text_logprobs(choice.logprobs) if has_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            if self._call.delivery.token_ids:
                entry["token_ids"] = choice.token_ids
                entry["prompt_token_ids"] = list(prompt_ids[source])
            choices.append(entry)
        return {
            "id": answer_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.started.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
            "usage": usage_dict(self.done.usage),
        }
