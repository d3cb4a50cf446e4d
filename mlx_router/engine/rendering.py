"""A chat to the text that a model reads: by its own template, a built-in one, or mlx-lm's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_router.domain import RESERVED_TEMPLATE_VARIABLES, ChatPrompt
from mlx_router.errors import InvalidRequest
from mlx_router.prompt.builtin import named_template
from mlx_router.prompt.messages import template_messages, template_tools
from mlx_router.prompt.template import ChatTemplate

# May be given to any template: front ends send them to all models alike.
_SWITCHES = frozenset(("enable_thinking", "thinking", "reasoning_effort"))

# Stands for a content; of private characters, which no template looks for.
_STAND_IN = "\ue000content\ue001"


class ChatRenderer:
    """``tokenizer`` is mlx-lm's wrapper; ``template`` names a built-in template, to be used in
    place of the model's own. Safe to use from several threads."""

    def __init__(self, model_id: str, tokenizer: Any, template: str | None) -> None:
        self._model_id = model_id
        self._tokenizer = tokenizer
        tokens = {
            key: str(value)
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (value := getattr(tokenizer, key, None)) is not None
        }
        sources = (
            _own_templates(tokenizer) if template is None else {"default": named_template(template)}
        )
        self._templates = {
            key: ChatTemplate(text, special_tokens=tokens) for key, text in sources.items()
        }

    @property
    def source(self) -> str:
        """All templates that are used, as text."""
        return "".join(template.source for template in self._templates.values())

    def render(self, prompt: ChatPrompt) -> str:
        """The text of the prompt. Raises InvalidRequest for what cannot be rendered."""
        return self._writer(prompt)(self._messages(prompt))

    def render_marked(self, prompt: ChatPrompt) -> tuple[str, tuple[int, ...]]:
        """The text, and the places in it where other prompts are likely to go on in another way:
        where the content of the user's first message begins, and the end of all messages, after
        which the text only asks for the answer. A place that cannot be told is left out. Raises as
        :meth:`render`."""
        write, messages = self._writer(prompt), self._messages(prompt)
        text = write(messages)
        roles = [message["role"] for message in messages]
        if "user" not in roles:
            return text, ()
        first = roles.index("user")
        stand_in = dict(messages[first])
        is_text = isinstance(stand_in["content"], str)
        stand_in["content"] = _STAND_IN if is_text else [{"type": "text", "text": _STAND_IN}]
        head = [*messages[:first], stand_in]
        marks = []
        try:
            bare, asking = write(head, False), write(head)
        except InvalidRequest:
            return text, ()  # refused for being so short a chat: the text itself is right
        before, found, _ = bare.partition(_STAND_IN)
        if found and text.startswith(before):
            marks.append(len(before))
        if asking.startswith(bare) and text.endswith(asking[len(bare) :]):
            marks.append(len(text) - len(asking) + len(bare))
        return text, tuple(marks)

    def _writer(self, prompt: ChatPrompt) -> Callable[..., str]:
        """Makes the text of messages, the second argument being whether it asks for an answer, as
        it does by default."""
        # A list of tools picks the template "tool_use" where a model has one.
        use_tools = bool(prompt.tools) and prompt.tool_choice != "none"
        template = self._templates.get("tool_use" if use_tools else "default")
        template = template or self._templates.get("default")
        kwargs = dict(prompt.template_kwargs)
        self._check_kwargs(kwargs, template)
        tools = template_tools(prompt.tools) if use_tools else None
        if template is not None and prompt.reasoning_effort is not None:
            kwargs.setdefault("reasoning_effort", prompt.reasoning_effort)

        def write(messages: Sequence[dict[str, Any]], ask: bool = True) -> str:
            if template is None:
                return self._render_in_python(messages, tools, kwargs, ask)
            return template.render(messages, tools, add_generation_prompt=ask, **kwargs)

        if template is not None or self._tokenizer.has_chat_template:
            return write
        raise InvalidRequest(
            f"The model {self._model_id} has no chat template. Use /v1/completions, or set "
            "chat_template for it in the config.",
            param="messages",
        )

    def _messages(self, prompt: ChatPrompt) -> list[dict[str, Any]]:
        """The messages as a template is given them."""
        return template_messages(prompt)

    def _render_in_python(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
        ask: bool,
    ) -> str:
        """mlx-lm's own code for models without a template. It wants the arguments of calls as text,
        and raises anything for what it does not expect."""
        for message in messages:
            for call in message.get("tool_calls") or ():
                function = call["function"]
                if not isinstance(function["arguments"], str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=ask, tokenize=False, **kwargs
            )
        except Exception as error:
            raise InvalidRequest(
                f"{self._model_id} cannot be given this chat ({type(error).__name__}: "
                f"{str(error)[:200]}).",
                param="messages",
            ) from None
        return text

    def _check_kwargs(self, kwargs: Mapping[str, Any], template: ChatTemplate | None) -> None:
        """Raises InvalidRequest for a name that the template does not read, or may not be given. A
        renderer in Python does not say what it reads."""
        known = _SWITCHES | (template.variables if template is not None else kwargs.keys())
        for name in kwargs:
            if name in RESERVED_TEMPLATE_VARIABLES or name not in known:
                choice = ", ".join(sorted(known - RESERVED_TEMPLATE_VARIABLES))
                raise InvalidRequest(
                    f"chat_template_kwargs cannot set {name[:64]!r} for {self._model_id}: its "
                    f"template takes {choice}.",
                    param="chat_template_kwargs",
                )


def _own_templates(tokenizer: Any) -> Mapping[str, str]:
    """A model's templates by name; most models have one, ``default``, some none."""
    own: str | Mapping[str, str] | None = tokenizer.chat_template
    return {"default": own} if isinstance(own, str) else own or {}
