"""Text to token ids and back for a model of mlx-lm, on any thread."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_router.domain import ChatPrompt, ModelCard, SamplingOptions
from mlx_router.engine import device
from mlx_router.engine.base import OutputMarkers
from mlx_router.errors import InvalidRequest, ModelCorrupt
from mlx_router.prompt.builtin import named_template
from mlx_router.prompt.messages import template_messages, template_tools
from mlx_router.prompt.template import ChatTemplate

log = logging.getLogger(__name__)

# mlx-lm's name for a tool-call format -> the family of mlx_router.parsing that reads it.
_TOOL_FORMATS = {"json_tools": "hermes"}

# What the template of a model writes -> its family, where mlx-lm has none; the first that fits.
_TEMPLATE_MARKERS = (
    ("harmony", ("<|channel|>", "<|message|>")),
    ("deepseek", ("<\uff5ctool\u2581calls\u2581begin\uff5c>",)),
    ("granite", ("<|start_of_role|>",)),
    ("phi4", ("<|/tool_call|>",)),
    ("llama3_json", ("<|start_header_id|>", "ipython")),
)

# What a template gets from us, whatever a client sends.
_OWN_TEMPLATE_KEYS = ("messages", "tools", "add_generation_prompt", "tokenize")

# The tool-call format of the built-in templates.
_TEMPLATE_TOOL_FORMATS = {
    "chatml": "hermes",
    "qwen": "hermes",
    "phi4": "hermes",
    "llama3": "llama3_json",
    "generic": "json",
    "gpt-oss": "harmony",
    "deepseek": "deepseek",
}

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
        self._model_id = card.id
        self._templates = self._load_templates(template)
        self.eos_ids: frozenset[int] = frozenset(self._tokenizer.eos_token_ids)
        self.markers = OutputMarkers(
            think_start=self._tokenizer.think_start,
            think_end=self._tokenizer.think_end,
            tool_format=self._tool_format(template),
        )
        self.sampling = _advised_sampling(card)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        # A list of tools picks the template "tool_use" where a model has one.
        use_tools = bool(prompt.tools) and prompt.tool_choice != "none"
        template = self._templates.get("tool_use" if use_tools else "default")
        template = template or self._templates.get("default")
        kwargs = {
            key: value
            for key, value in prompt.template_kwargs.items()
            if key not in _OWN_TEMPLATE_KEYS
        }
        if prompt.reasoning_effort is not None:
            kwargs.setdefault("reasoning_effort", prompt.reasoning_effort)
        messages = template_messages(prompt)
        tools = template_tools(prompt.tools) if use_tools else None
        if template is not None:
            text = template.render(messages, tools, add_generation_prompt=True, **kwargs)
        elif self._tokenizer.has_chat_template:  # a renderer in Python, from mlx-lm itself
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False, **kwargs
            )
        else:
            raise InvalidRequest(
                f"The model {self._model_id} has no chat template. Use /v1/completions, or set "
                "chat_template for it in the config.",
                param="messages",
            )
        return self.encode(text, add_special_tokens=False)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, verbose=False
        )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids))
        return text

    def detokenizer(self) -> MLXDetokenizer:
        return MLXDetokenizer(self._tokenizer.detokenizer)

    def starts_in_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        start = self.markers.think_start
        # Templates that open the block for the model end with it, give or take a line break.
        return start is not None and self.decode(prompt_ids[-8:]).rstrip().endswith(start)

    def _load_templates(self, name: str | None) -> dict[str, ChatTemplate]:
        tokens = {
            key: str(value)
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (value := getattr(self._tokenizer, key, None)) is not None
        }
        sources = self._own_templates() if name is None else {"default": named_template(name)}
        return {key: ChatTemplate(text, special_tokens=tokens) for key, text in sources.items()}

    def _own_templates(self) -> Mapping[str, str]:
        """The model's own templates by name; most models have one, ``default``, some none."""
        own: str | Mapping[str, str] | None = self._tokenizer.chat_template
        return {"default": own} if isinstance(own, str) else own or {}

    def _infer_tool_format(self) -> str | None:
        """The family of a model for which mlx-lm knows none, by what its template writes."""
        source = "".join(self._own_templates().values())
        for family, markers in _TEMPLATE_MARKERS:
            if all(marker in source for marker in markers):
                return family
        return None

    def _tool_format(self, template: str | None) -> str | None:
        if template is not None:
            return _TEMPLATE_TOOL_FORMATS.get(template)
        settings = self._tokenizer.init_kwargs
        if settings.get("chat_template_type") == "deepseek_v32":  # a renderer in Python
            return "deepseek_v32"
        name: str | None = settings.get("tool_parser_type") or self._infer_tool_format()
        return _TOOL_FORMATS.get(name, name) if name else None


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
