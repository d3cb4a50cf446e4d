"""Text to token ids and back for a model of mlx-lm, on any thread."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from mlx_router.domain import ChatPrompt, ModelCard, SamplingOptions
from mlx_router.engine import device
from mlx_router.engine.base import Constraint, Encoded
from mlx_router.engine.encoding import PromptEncoder
from mlx_router.engine.families import output_markers
from mlx_router.engine.grammar.compiler import Compiler
from mlx_router.engine.grammar.mask import GrammarConstraint
from mlx_router.engine.grammar.thinking import Thinking
from mlx_router.engine.rendering import ChatRenderer
from mlx_router.errors import InvalidRequest, ModelCorrupt

log = logging.getLogger(__name__)

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

_ADVISED = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
}


class MLXCodec:
    """Implements :class:`mlx_router.engine.base.TextCodec` with the model's own tokenizer.

    ``template``: the name of a built-in chat template to use in place of the model's own.
    Construction reads the tokenizer's files (a second for a large one); raises ModelCorrupt.
    """

    def __init__(
        self, card: ModelCard, *, template: str | None = None, trust_remote_code: bool = False
    ) -> None:
        device.prepare()
        from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer
        from mlx_lm.utils import load_config, load_tokenizer

        try:
            config = load_config(card.path)
            self._tokenizer = load_tokenizer(
                card.path,
                {"trust_remote_code": trust_remote_code},
                eos_token_ids=config.get("eos_token_id"),
            )
        except Exception as error:
            log.exception("the tokenizer of %s could not be loaded", card.id)
            raise ModelCorrupt(
                f"The tokenizer of {card.id} could not be loaded ({type(error).__name__}). "
                "Download the model again, or look at the log."
            ) from None
        self._renderer = self._make_renderer(card, template)
        self._encoder = PromptEncoder(self._tokenizer._tokenizer, self._renderer.source)
        self.eos_ids: frozenset[int] = frozenset(self._tokenizer.eos_token_ids)
        self.markers = output_markers(self._tokenizer, self._renderer.source, template)
        byte_level = isinstance(self._tokenizer.detokenizer, BPEStreamingDetokenizer)
        self._added_ids = frozenset(self._tokenizer.added_tokens_decoder)
        self._byte_of = _byte_alphabet() if byte_level else {}
        self.sampling = _advised_sampling(card)
        self._compiler = Compiler(
            self._tokenizer._tokenizer,
            self.eos_ids,
            family=self.markers.tool_format,
            template=self._renderer.source,
        )

    def _make_renderer(self, card: ModelCard, template: str | None) -> ChatRenderer:
        return ChatRenderer(card.id, self._tokenizer, template)

    def encode_chat(self, prompt: ChatPrompt, *, scope: str | None = None) -> Encoded:
        text, marks = self._renderer.render_marked(prompt)
        try:
            ids, boundaries = self._encoder.encode(text, marks, scope=scope)
        except (TypeError, UnicodeError):  # half of a surrogate pair, say
            raise _not_unicode("messages") from None
        return Encoded(ids, boundaries=boundaries)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(
                text, add_special_tokens=add_special_tokens, verbose=False
            )
        except (TypeError, UnicodeError):
            raise _not_unicode("prompt") from None
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids))
        return text

    def token_bytes(self, token_id: int) -> bytes:
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return b""
        if token_id in self._added_ids:
            return piece.encode()
        if self._byte_of:  # a byte-level vocabulary: each character stands for a byte
            return bytes(self._byte_of[c] for c in piece if c in self._byte_of)
        byte = _BYTE_TOKEN.fullmatch(piece)
        if byte is not None:
            return bytes.fromhex(byte[1])
        if "\u2581" in piece:  # SentencePiece's space
            return piece.replace("\u2581", " ").encode()
        return self.decode([token_id]).encode()

    def detokenizer(self) -> MLXDetokenizer:
        return MLXDetokenizer(self._tokenizer.detokenizer)

    def starts_in_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        start = self.markers.think_start
        # Templates that open the block for the model end with it, give or take a line break.
        return start is not None and self.decode(prompt_ids[-32:]).rstrip().endswith(start)

    def constraint(self, prompt: ChatPrompt, prompt_ids: Sequence[int]) -> Constraint | None:
        if not prompt.restricts_answer:
            return None
        compiled = self._compiler.compile(prompt)
        if compiled is None:
            return None
        return GrammarConstraint(self._compiler, compiled, self._thinking(prompt_ids))

    def _thinking(self, prompt_ids: Sequence[int]) -> Thinking | None:
        """The reasoning that may come before an answer; None if the model does not reason, or the
        prompt has put an end to it."""
        opening, closing = self.markers.think_start, self.markers.think_end
        if opening is None or closing is None:
            return None
        if self.decode(prompt_ids[-32:]).rstrip().endswith(closing):
            return None
        start = self.encode(opening, add_special_tokens=False)
        return Thinking(
            begun=self.starts_in_reasoning(prompt_ids),
            start=start[0] if len(start) == 1 else None,
            end=self.encode(closing, add_special_tokens=False),
        )


class MLXDetokenizer:
    """mlx-lm's streaming detokenizer, made safe: it never raises, and holds a character back until
    all of its bytes are there. It gives the text that mlx_lm.generate gives for the same tokens."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def add(self, token: int) -> str:
        inner = self._inner
        try:
            inner.add_token(token)
            segment: str = inner.last_segment
        except Exception:
            return ""  # such as an id in the padding of the vocabulary, which has no text
        return segment

    def finish(self) -> str:
        try:
            self._inner.finalize()
            segment: str = self._inner.last_segment
        except Exception:
            return ""
        return segment.rstrip("\ufffd")


def _not_unicode(param: str) -> InvalidRequest:
    return InvalidRequest("The prompt is not valid Unicode text.", param=param)


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies, as GPT-2 defined them:
    printable ones of Latin-1 for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _advised_sampling(card: ModelCard) -> SamplingOptions:
    """Sampling as the model's makers advise it (generation_config.json)."""
    try:
        stated = json.loads((card.path / "generation_config.json").read_text())
    except (OSError, ValueError):
        return SamplingOptions()
    if not isinstance(stated, dict):
        return SamplingOptions()
    values: dict[str, Any] = {
        key: kind(stated[key])
        for key, kind in _ADVISED.items()
        if isinstance(stated.get(key), int | float) and not isinstance(stated[key], bool)
    }
    if stated.get("do_sample") is False:
        values["temperature"] = 0.0
    return SamplingOptions(**values)
