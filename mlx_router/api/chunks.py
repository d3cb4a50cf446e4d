"""What the encoders of streamed answers share; see :class:`mlx_router.api.stream.Encoder`.

Everything of a chunk but its text is the same for the whole stream, so it is made once; a token
costs one JSON encoding of its text.
"""

from __future__ import annotations

import time
from typing import Any

from mlx_router.api.errors import error_body
from mlx_router.api.generation import Delivery
from mlx_router.api.stream import JSON_LINES, SSE
from mlx_router.api.wire import SYSTEM_FINGERPRINT, dumps, usage_dict
from mlx_router.domain import Completed
from mlx_router.errors import RouterError


class Chunks:
    """A chunk is ``_head``, the rest of its object and ``_tail``. ``kind``: its ``object``."""

    def __init__(self, how: Delivery, kind: str, answer_id: str) -> None:
        self.framing = JSON_LINES if how.streaming_format == "json_lines" else SSE
        self._how = how
        self._same = {"id": answer_id, "object": kind, "created": int(time.time())}
        self._head = b""
        self._tail = (b',"usage":null}' if how.include_usage else b"}") + self.framing.after

    def error(self, error: RouterError) -> bytes:
        """An error in the middle of the stream, and its end."""
        return self.framing.before + error_body(error) + self.framing.after + self.framing.done

    def _begin(self, model: str) -> None:
        same = {**self._same, "model": model, "system_fingerprint": SYSTEM_FINGERPRINT}
        self._head = self.framing.before + dumps(same)[:-1]

    def _choice_head(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,' % index

    def _end(self, done: Completed, **more: Any) -> bytes:
        """The chunk with the usage and ``more`` if it was asked for, and the end of the stream."""
        if not self._how.include_usage:
            return self.framing.done
        last = {"choices": [], "usage": usage_dict(done.usage), **more}
        return self._head + b"," + dumps(last)[1:] + self.framing.after + self.framing.done
