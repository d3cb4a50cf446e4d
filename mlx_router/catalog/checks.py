"""What a model is for, and what keeps it from being used. Each check raises Problem."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx_router.catalog.estimate import MAX_LAYERS
from mlx_router.catalog.folder import Missing, ModelFolder, Problem
from mlx_router.catalog.supported import Supported
from mlx_router.domain import ModelKind
from mlx_router.errors import INSTALL_VISION

_BERT_LIKE = {
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra"),
    *("jina_bert", "modernbert", "mpnet", "new", "nomic_bert", "roberta"),
    *("xlm-roberta", "xlm_roberta"),
}
_IMAGE_KEYS = (
    *("audio_config", "img_processor", "mm_vision_tower", "vision_config", "vision_tower"),
    "visual",
)
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json"),
    *("vocab.txt", "spiece.model"),
)
# Conversions to MLX often lose the files that would tell, but keep the name.
_RERANKER_NAME = re.compile(r"rerank", re.IGNORECASE)
_EMBEDDING_NAME = re.compile(r"(^|[-_.])embed(ding)?s?([-_.]|$)", re.IGNORECASE)
_OWN_CODE_KEYS = ("model_file", "auto_map", "trust_remote_code")
_OWN_CODE_FILES = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_MODEL_TYPE = re.compile(r"[\w.-]{1,64}", re.ASCII)


def kind_of(
    folder: ModelFolder, config: Mapping[str, Any], model_id: str, libraries: Supported
) -> ModelKind:
    """What a model is for, as its config, its files and its name tell."""
    name = model_id.rsplit("/", 1)[-1]
    architectures = config.get("architectures")
    if not isinstance(architectures, list):
        architectures = []
    if any(str(a).endswith("ForSequenceClassification") for a in architectures):
        return ModelKind.RERANKER
    if _RERANKER_NAME.search(name):
        return ModelKind.RERANKER
    if (
        "modules.json" in folder.files
        or "1_Pooling" in folder.folders
        or str(config.get("model_type")) in _BERT_LIKE
        or _EMBEDDING_NAME.search(name)
    ):
        return ModelKind.EMBEDDING
    if not _made_to_see(config):
        return ModelKind.TEXT
    # Without mlx-vlm the language half of many of these models still serves as a text model.
    if libraries.text.supports(config) and not libraries.vision.supports(config):
        return ModelKind.TEXT
    return ModelKind.VISION


def is_blind(kind: ModelKind, config: Mapping[str, Any], libraries: Supported) -> bool:
    """Whether a model that was made to see is served as one of text, for want of mlx-vlm."""
    return kind is ModelKind.TEXT and _made_to_see(config) and not libraries.vision.installed


def _made_to_see(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) is not None for key in _IMAGE_KEYS)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The model_type; ``unknown`` if there is none or it is not a plain name."""
    name = config.get("model_type")
    return name if isinstance(name, str) and _MODEL_TYPE.fullmatch(name) else "unknown"


def check_config(folder: ModelFolder, config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """That config.json says what every loader needs. ``text`` is its language part."""
    if "config.json" not in folder.files:
        if gguf := folder.named(suffix=".gguf"):
            raise Problem(f"{gguf[0]} is a GGUF file: MLX needs safetensors weights")
        raise Missing("config.json is missing")
    if config.get("model_type") is None:
        raise Problem("config.json names no model_type")
    if architecture_of(config) == "unknown":
        raise Problem("config.json is broken: model_type is not a plain name")
    for name in _NUMBERS:
        value = text.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise Problem(f"config.json is broken: {name} is not a whole number")
        if not 0 < value < 1 << 31 or (name == "num_hidden_layers" and value > MAX_LAYERS):
            raise Problem(f"config.json is broken: {name} is out of range")


def check_own_code(folder: ModelFolder, config: Mapping[str, Any], *, trusted: bool) -> None:
    """That nothing in the folder asks for Python code of its own to be run, unless it may."""
    if trusted:
        return
    _refuse_own_code("config.json", config)
    for name in _OWN_CODE_FILES:
        _refuse_own_code(name, folder.read_json(name) or {})


def _refuse_own_code(name: str, settings: Mapping[str, Any]) -> None:
    # A section (text_config and such) is loaded by the same machinery as the whole.
    for section in (settings, *settings.values()):
        if not isinstance(section, Mapping):
            continue
        for key in _OWN_CODE_KEYS:
            if section.get(key):
                raise Problem(
                    f"the model asks to run its own code ({key} in {name}); set "
                    "trust_remote_code for it in the configuration if you trust it"
                )


def check_architecture(
    kind: ModelKind, config: Mapping[str, Any], libraries: Supported, *, trusted: bool
) -> None:
    """That an installed library can build the model, or its own code, which it may run."""
    if trusted and config.get("model_file"):
        return
    text, vision = libraries.text, libraries.vision
    if vision.supports(config) if kind is ModelKind.VISION else text.supports(config):
        return
    if kind in (ModelKind.EMBEDDING, ModelKind.RERANKER) and vision.supports(config):
        return
    architecture = architecture_of(config)
    if kind is ModelKind.TEXT or vision.installed:
        library = "mlx-lm" if kind is ModelKind.TEXT else "mlx-vlm"
        raise Problem(
            f"config.json asks for the architecture {architecture}, which the installed "
            f"{library} does not support"
        )
    raise Problem(
        f"{kind.value} models of the architecture {architecture} (config.json) need mlx-vlm: "
        f"{INSTALL_VISION}"
    )


def check_tokenizer(folder: ModelFolder) -> None:
    """That there is something to tokenise with."""
    present = [n for n in _TOKENIZERS if n in folder.files] + folder.named(suffix=".tiktoken")
    if not present:
        raise Missing("tokenizer.json is missing: the model has no tokenizer")
    if folder.files[present[0]].st_size == 0:
        raise Problem(f"{present[0]} is empty")
