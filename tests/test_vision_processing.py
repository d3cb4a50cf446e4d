"""How images are prepared for a model, where a prompt puts them, and which models can batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_router.domain import ChatPrompt, ModelCard, ModelKind
from mlx_router.engine.vision.codec import VisionCodec
from mlx_router.engine.vision.processing import OneByOne
from mlx_router.errors import InvalidRequest
from tests.vision_models import VISION_ARCHITECTURES
from tests.vision_support import BALL, BOX, LARGE, WORDS, Sight, said, user

SEVERAL = ChatPrompt((user(BOX, "and", LARGE), said("Yes."), user(BALL, WORDS)))

# --- one image at a time --------------------------------------------------------------------


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_images_prepared_one_by_one_are_the_same_as_prepared_together(
    kind: str, vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for each in the Qwen families; in the others the last call has all of them."""
    codec = vision_sights(kind).codec
    processor = codec._processor
    one_by_one = processor.image_processor
    assert isinstance(one_by_one, OneByOne)
    prepare = type(one_by_one._inner).__call__
    calls: list[int] = []

    def counted(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        several = [i for row in images for i in (row if isinstance(row, list) else [row])]
        calls.append(len(several))
        return prepare(self, images, *args, **kwargs)

    monkeypatch.setattr(type(one_by_one._inner), "__call__", counted)
    apart = codec.encode_chat(SEVERAL)
    if kind.startswith("qwen"):
        assert calls == [1, 1, 1]
    else:
        assert calls[-1] == 3
    calls.clear()
    monkeypatch.setattr(processor, "image_processor", one_by_one._inner)
    together = codec.encode_chat(SEVERAL)
    assert calls == [3]
    assert apart.ids == together.ids
    one, other = (_tensors(encoded.media) for encoded in (apart, together))
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def _tensors(media: Any) -> dict[str, Any]:
    found = {"pixels": media.pixels, "mask": media.mask, "extras": media.extras, "key": media.key}
    return {
        name: np.asarray(value)
        for name, value in tree_flatten(found)
        if isinstance(value, mx.array | np.ndarray)
    }


def test_what_a_processor_raises_is_a_refusal_that_says_what_to_do(
    vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = vision_sights("qwen3_vl").codec

    def failing(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("no pixels")

    monkeypatch.setattr(type(codec._processor), "__call__", failing)
    with pytest.raises(InvalidRequest, match=r"Error: .*no pixels") as caught:
        codec.encode_chat(SEVERAL)
    assert "another size" in caught.value.message
    assert caught.value.param == "messages"


# --- templates ------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["llama3", "chatml"])
@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma3", "smolvlm"])
def test_a_template_that_knows_no_images_never_prints_their_parts(
    kind: str, template: str, vision_folders: Callable[[str], Path]
) -> None:
    """A family with a form of its own for images has it; for another it is a clear refusal."""
    card = ModelCard(kind, vision_folders(kind), ModelKind.VISION, kind)
    codec = VisionCodec(card, template=template)
    text = codec.decode(codec.encode_chat(ChatPrompt((user("Only ", "text."),))).ids)
    assert "Only text." in text
    assert "'type'" not in text
    if kind == "gemma3":
        encoded = codec.encode_chat(SEVERAL)
        media: Any = encoded.media
        assert media.pixels.shape[0] == 3
        assert "'type'" not in codec.decode(encoded.ids)
        return
    with pytest.raises(InvalidRequest, match="chat_template") as caught:
        codec.encode_chat(SEVERAL)
    assert caught.value.param == "messages"
    assert kind in caught.value.message


# --- who batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("part", ["Model", "LanguageModel"])
def test_a_model_batches_if_its_own_policy_for_slices_lets_it(
    part: str, says: bool, vision_sight_of: Callable[..., Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = importlib.import_module("mlx_vlm.models.qwen3_vl")
    monkeypatch.setattr(
        getattr(library, part), "chunked_prefill_policy", lambda self, **_: says, raising=False
    )
    sight = vision_sight_of("qwen3_vl")
    assert sight.loaded.batches is says
    chats = [(user(BOX, "Hm?"),), (user(WORDS),)]
    jobs = [sight.job(*chat) for chat in chats]
    assert sight.run(*jobs) == [sight.expected(*chat) for chat in chats]
