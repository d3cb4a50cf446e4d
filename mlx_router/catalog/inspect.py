"""From a folder to a :class:`ModelCard`, by reading alone: no model code is imported or run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlx_router.catalog import checks, supported
from mlx_router.catalog.estimate import context_length, kv_cost, text_config
from mlx_router.catalog.folder import Missing, ModelFolder, Problem, is_absent
from mlx_router.catalog.supported import Supported
from mlx_router.catalog.weights import Weights, inspect_weights
from mlx_router.catalog.working import PREFILL_TOKENS, conversation_bytes, forward_bytes
from mlx_router.domain import USUAL_TOKENS, ModelCard, ModelKind

EMBEDDED_TOKENS = 2048  # of the text that the memory of a model without a cache is reckoned for

_MAX_TEMPLATE_BYTES = 1_000_000
_TOOLS = re.compile(r"\btools\b")
_THINKING = (
    *("think>", "[THINK]", "think▷", "<thought>", "<reasoning>", "<|START_THINKING|>"),
    *("enable_thinking", "reasoning_content", "<|channel"),
)

_T = TypeVar("_T")


def inspect_folder(
    path: Path,
    model_id: str,
    *,
    trust_remote_code: bool = False,
    roots: Iterable[Path] = (),
    libraries: Supported | None = None,
    folder: ModelFolder | None = None,
    stated_context: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> ModelCard | None:
    """What a folder holds; None if it is no model's folder. Never raises for what it finds there,
    and OSError only where nothing can be told for the moment.

    ``roots`` are folders into which links may point, beside the model's own. ``libraries`` stands
    in for the architectures that are installed. ``folder`` is a look at it, if one was taken
    already. ``stated_context`` replaces the context length of the model's config.
    ``prefill_tokens`` of a prompt are computed at a time. Of several problems the first is
    reported.
    """
    try:
        folder = folder or ModelFolder.scan(path)
    except OSError as error:
        if not is_absent(error):
            raise
        return None
    if not _is_model(folder):
        return None
    libraries = libraries or supported.installed()
    return _inspect(
        folder, model_id, trust_remote_code, roots, libraries, stated_context, prefill_tokens
    )


def _is_model(folder: ModelFolder) -> bool:
    if "config.json" in folder.files or "config.json" in folder.dangling:
        return True
    weights = folder.named(suffix=".safetensors") + folder.named(suffix=".gguf")
    if any(not name.startswith("adapter") for name in weights):
        return True
    return folder.partial_downloads() > 0


def _inspect(
    folder: ModelFolder,
    model_id: str,
    trust_remote_code: bool,
    roots: Iterable[Path],
    libraries: Supported,
    stated_context: int | None,
    prefill_tokens: int,
) -> ModelCard | None:
    roots = tuple(roots)
    if refused := _refused_link(folder, roots):
        return _card(folder, model_id, ModelKind.TEXT, {}, {}, None, refused, None, 1)
    problems: list[Problem] = []

    def attempt(action: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return action()
        except Problem as problem:
            problems.append(problem)
            return otherwise

    config = attempt(lambda: folder.read_json("config.json"), None) or {}
    if not problems and config.get("model_type") is None and not _has_weights(folder):
        return None  # another program's config.json
    tokenizer_config = attempt(lambda: folder.read_json("tokenizer_config.json"), None) or {}
    kind = checks.kind_of(folder, config, model_id, libraries)
    if kind in (ModelKind.EMBEDDING, ModelKind.RERANKER):
        folder = attempt(folder.with_inner, folder)
        if refused := _refused_link(folder, roots):
            problems.append(refused)
    weights = None
    if not problems:
        attempt(lambda: checks.check_own_code(folder, config, trusted=trust_remote_code), None)
        attempt(lambda: checks.check_config(folder, config, text_config(config)), None)
    if not problems:
        attempt(
            lambda: checks.check_architecture(kind, config, libraries, trusted=trust_remote_code),
            None,
        )
        any_name = kind is not ModelKind.TEXT
        weights = attempt(lambda: inspect_weights(folder, config, any_name=any_name), None)
        attempt(lambda: checks.check_tokenizer(folder), None)
    problem = problems[0] if problems else None
    return _card(
        folder,
        model_id,
        kind,
        config,
        tokenizer_config,
        weights,
        problem,
        stated_context,
        prefill_tokens,
        checks.is_blind(kind, config, libraries),
    )


def _refused_link(folder: ModelFolder, roots: Iterable[Path]) -> Problem | None:
    link = folder.link_outside(roots)
    if link is None:
        return None
    return Problem(
        f"{link} is a link to a place outside of the model directories; add the folder that it "
        "leads to to model_directory if you trust it"
    )


def _has_weights(folder: ModelFolder) -> bool:
    names = (*folder.files, *folder.dangling)
    return folder.partial_downloads() > 0 or any(
        n.endswith((".safetensors", ".gguf")) for n in names
    )


def _card(
    folder: ModelFolder,
    model_id: str,
    kind: ModelKind,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    weights: Weights | None,
    problem: Problem | None,
    stated_context: int | None,
    prefill_tokens: int,
    blind: bool = False,
) -> ModelCard:
    weight_bytes = weights.size_bytes if weights else 0
    context = stated_context or context_length(config, tokenizer_config)
    generates = kind in (ModelKind.TEXT, ModelKind.VISION)
    element = weights.element_bytes if weights else 2
    kv = kv_cost(config if generates else {}, element)
    if generates:
        usual = min(context, USUAL_TOKENS)
        working = conversation_bytes(config, usual, element, slice_tokens=prefill_tokens)
    else:
        usual = 0
        working = forward_bytes(config, min(context, EMBEDDED_TOKENS), element)
    template = template_source(folder, tokenizer_config) if generates and problem is None else ""
    created = folder.files.get("config.json")
    return ModelCard(
        id=model_id,
        path=folder.path,
        kind=kind,
        architecture=checks.architecture_of(config),
        size_bytes=folder.size_bytes,
        weight_bytes=weight_bytes,
        parameters=weights.parameters if weights else 0,
        quantization=weights.quantization if weights else None,
        context_length=context,
        kv_bytes_per_token=kv.bytes_per_token,
        cache_bytes=kv.total(usual),
        required_bytes=weight_bytes + working,
        supports_tools=_TOOLS.search(template) is not None,
        supports_reasoning=any(mark in template for mark in _THINKING),
        blind=blind,
        created=int(created.st_mtime) if created else 0,
        fingerprint=folder.model_fingerprint,
        problem=_sentence(folder, problem),
    )


def _sentence(folder: ModelFolder, problem: Problem | None) -> str | None:
    if isinstance(problem, Missing) and (folder.growing or folder.partial_downloads()):
        return f"the download is incomplete: {problem}"
    return str(problem) if problem else None


def template_source(folder: ModelFolder, tokenizer_config: Mapping[str, Any]) -> str:
    """All chat templates of the model, one after the other; empty if there is none to be read."""
    try:
        if "chat_template.jinja" in folder.files:
            content = folder.read("chat_template.jinja", _MAX_TEMPLATE_BYTES)
            return content.decode("utf-8", "replace")
        template = tokenizer_config.get("chat_template")
        if template is None:
            template = (folder.read_json("chat_template.json") or {}).get("chat_template")
    except Problem:
        return ""
    if isinstance(template, list):  # several, each with a name
        texts = [entry.get("template") for entry in template if isinstance(entry, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return template if isinstance(template, str) else ""
