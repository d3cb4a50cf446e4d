"""Chats with images in the form that a model's template wants."""

from __future__ import annotations

import logging
from typing import Any

from mlx_router.domain import ChatPrompt
from mlx_router.engine.rendering import ChatRenderer
from mlx_router.errors import InvalidRequest
from mlx_router.prompt.messages import template_messages

log = logging.getLogger(__name__)

_PROBE = "kaleidoscope"


class VisionRenderer(ChatRenderer):
    """Finds out by trial what the template takes: most write an image where they find its part in
    a message; some know lists of parts only, no plain text; and for those that know no images
    mlx-vlm knows what the family writes in their place (``model_type``)."""

    def __init__(
        self, model_id: str, tokenizer: Any, template: str | None, model_type: str
    ) -> None:
        super().__init__(model_id, tokenizer, template)
        self._model_type = model_type
        image: dict[str, Any] = {"type": "image"}
        text = {"type": "text", "text": _PROBE}
        with_image, without = self._try([image, text]), self._try([text])
        # A template that knows text only may well print the parts as Python would.
        self._takes_parts = (
            _PROBE in with_image and with_image != without and "'type'" not in with_image
        )
        self._takes_text = _PROBE in self._try(_PROBE) or not self._takes_parts

    def _messages(self, prompt: ChatPrompt) -> list[dict[str, Any]]:
        messages = template_messages(prompt, keep_parts=True)
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                if not self._takes_text and content:
                    message["content"] = [{"type": "text", "text": content}]
            elif not self._takes_parts:
                message["content"] = self._in_family_form(message["role"], content)
        return messages

    def _in_family_form(self, role: str, parts: list[dict[str, Any]]) -> Any:
        from mlx_vlm.prompt_utils import get_message_json

        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        count = sum(part["type"] == "image" for part in parts)
        try:
            formed = get_message_json(self._model_type, text, role, num_images=count)
        except Exception as error:
            raise InvalidRequest(
                f"{self._model_id} cannot be shown these images: {str(error)[:200]}",
                param="messages",
            ) from None
        content = formed["content"] if isinstance(formed, dict) else formed
        if not isinstance(content, str):
            raise InvalidRequest(
                f"The chat template of {self._model_id} has no place for images. If its config "
                "names a chat_template, remove that: the model's own is the one to use.",
                param="messages",
            )
        return content

    def _try(self, content: Any) -> str:
        """A message as the template renders it; empty if it refuses."""
        template = self._templates.get("default")
        if template is None:
            return ""
        try:
            return template.render([{"role": "user", "content": content}])
        except InvalidRequest:
            return ""
