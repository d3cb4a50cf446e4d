"""Chats with images to token ids and tensors, on any thread."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_router.domain import ChatPrompt, ModelCard, Picture
from mlx_router.engine import device
from mlx_router.engine.base import Encoded
from mlx_router.engine.codec import MLXCodec
from mlx_router.engine.vision.inputs import ImageInputs, arrays_in, image_key
from mlx_router.engine.vision.processing import load_processor
from mlx_router.engine.vision.rendering import VisionRenderer
from mlx_router.errors import InsufficientMemory, InvalidRequest
from mlx_router.prompt.messages import template_messages, template_tools

log = logging.getLogger(__name__)

_TENSORS = ("input_ids", "pixel_values", "attention_mask")
_STAND_INS = ("image_token", "boi_token", "video_token")  # attributes of processors
_PLACEHOLDER = "<|placeholder|>"  # what several processors write, and then turn into image tokens


class VisionCodec(MLXCodec):
    """An :class:`MLXCodec` whose chats may hold pictures: these go through the model's own
    processor, as mlx-vlm has it. A processor that cannot be loaded is said to whoever sends a
    picture; text is served all the same."""

    def __init__(
        self, card: ModelCard, *, template: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self._config = json.loads((card.path / "config.json").read_text())
        super().__init__(card, template=template, trust_remote_code=trust_remote_code)
        self._lock = threading.Lock()  # a tokenizer that pads is changed by every call
        self._processor, self._problem = load_processor(
            card, self._config, trust_remote_code=trust_remote_code
        )

    def encode_chat(self, prompt: ChatPrompt, *, scope: str | None = None) -> Encoded:
        if not prompt.pictures:
            return super().encode_chat(prompt, scope=scope)
        if self._problem is not None:
            raise InvalidRequest(self._problem, param="messages", code="vision_unavailable")
        self._check_text(prompt)
        return self._encode_images(self._renderer.render(prompt), prompt.pictures)

    def _make_renderer(self, card: ModelCard, template: str | None) -> VisionRenderer:
        if self._tokenizer.chat_template is None:  # older models keep it in a file of its own
            self._tokenizer.chat_template = _own_template(card)
        kind = str(self._config.get("model_type", ""))
        return VisionRenderer(card.id, self._tokenizer, template, kind)

    def _encode_images(self, text: str, pictures: tuple[Picture, ...]) -> Encoded:
        from mlx_vlm.utils import prepare_inputs
        from PIL import Image

        images = [Image.frombytes("RGB", (p.width, p.height), p.rgb) for p in pictures]
        with self._lock:
            # Tensors are made on a stream that ends with the call: a stream that outlives its
            # thread's use aborts the process at its end. The main thread's streams are MLX's.
            borrowed = threading.current_thread() is not threading.main_thread()
            if borrowed:
                device.begin_thread()
            try:
                found = prepare_inputs(
                    self._processor,
                    images=images,
                    prompts=text,
                    image_token_index=self._image_token,
                    add_special_tokens=False,
                )
                mx.eval(arrays_in(dict(found)))
            except MemoryError:
                raise InsufficientMemory(
                    "There is not enough memory for the images of this request. Send fewer, or "
                    'with "detail": "low".',
                    retry_after=5,
                ) from None
            except Exception as error:  # processors raise anything for what they cannot take
                log.info("a processor refused a prompt", exc_info=True)
                raise InvalidRequest(
                    f"The model's image processor refused the images ({type(error).__name__}: "
                    f"{str(error)[:200]}). Send them in another size, or leave one out.",
                    param="messages",
                ) from None
            finally:
                if borrowed:
                    device.end_thread()
        ids = np.asarray(found["input_ids"])[0].tolist()
        extras = {key: value for key, value in found.items() if key not in _TENSORS}
        digests = [picture.digest for picture in pictures]
        counts = _tokens_per_image(ids.count(self._image_token), len(pictures), found)
        key, end = image_key(ids, self._image_token, digests, counts)
        media = ImageInputs(
            ids=found["input_ids"],
            pixels=found.get("pixel_values"),
            mask=found.get("attention_mask"),
            extras=extras,
            key=key,
            images_end=end,
        )
        return Encoded(ids, media)

    def _check_text(self, prompt: ChatPrompt) -> None:
        """Raises InvalidRequest for text that holds what stands for an image: the processor could
        not tell it from the place of one."""
        stand_ins = {getattr(self._processor, name, None) for name in _STAND_INS}
        stand_ins.add(_PLACEHOLDER)
        if self._image_token is not None:
            stand_ins.add(self._tokenizer.convert_ids_to_tokens(self._image_token))
        for param, text in _texts(prompt):
            for each in stand_ins:
                if isinstance(each, str) and each and each in text:
                    raise InvalidRequest(
                        f"The text of {param} holds {each!r}, which stands for an image in this "
                        "model's prompts. Leave it out where a chat has images.",
                        param=param,
                    )

    @property
    def _image_token(self) -> int | None:
        stated = self._config.get("image_token_id", self._config.get("image_token_index"))
        if stated is None:
            stated = getattr(self._processor, "image_token_id", None)
        return stated if isinstance(stated, int) else None


def _texts(prompt: ChatPrompt) -> Iterator[tuple[str, str]]:
    """All that a client wrote, as a template may write it, and what it belongs to."""
    for index, message in enumerate(prompt.messages):
        written = template_messages(replace(prompt, messages=(message,)), keep_parts=True)
        yield f"messages.{index}", message.text + json.dumps(written, ensure_ascii=False)
    yield "tools", json.dumps(template_tools(prompt.tools), ensure_ascii=False)
    settings = dict(prompt.template_kwargs)
    yield "chat_template_kwargs", json.dumps(settings, ensure_ascii=False, default=str)


def _own_template(card: ModelCard) -> str | None:
    for name in ("chat_template.json", "processor_config.json"):
        try:
            found = json.loads((card.path / name).read_text()).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return None


def _tokens_per_image(total: int, images: int, found: dict[str, Any]) -> list[int]:
    """How many of ``total`` tokens each image takes; empty if it cannot be told."""
    if images == 1:
        return [total]
    grid = found.get("image_grid_thw")
    if isinstance(grid, mx.array) and grid.shape == (images, 3):
        patches = np.prod(np.asarray(grid), axis=1)
        counts = patches * total / patches.sum()
        return counts.astype(int).tolist() if (counts == counts.astype(int)).all() else []
    pixels = found.get("pixel_values")
    if isinstance(pixels, mx.array) and pixels.ndim == 4 and pixels.shape[0] == images:
        return [total // images] * images if total % images == 0 else []
    return []
