"""POST /v1/tokenize and /v1/detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.body import read_json
from mlx_router.api.completions import token_ids
from mlx_router.api.fields import sort_fields
from mlx_router.api.generation import model_name
from mlx_router.api.openapi import errors, json_body
from mlx_router.api.respond import notes
from mlx_router.api.schemas.answers import Detokenized, Tokenized
from mlx_router.api.schemas.tokens import (
    DetokenizeRequest,
    TokenizeChat,
    TokenizeRequest,
    TokenizeText,
)
from mlx_router.api.service import RouterService, service_of
from mlx_router.api.stream import unless_client_leaves
from mlx_router.api.translate import chat_prompt, parse_chat
from mlx_router.api.validation import parse
from mlx_router.api.wire import dumps
from mlx_router.domain import Prompt, TextPrompt
from mlx_router.errors import InvalidRequest

router = APIRouter(tags=["tokens"])

_TOKENIZE = {
    "text": {"prompt": "Hello, world!", "return_token_strs": True},
    "chat": {"messages": [{"role": "user", "content": "Say hello."}]},
}
_STATUSES = (400, 401, 403, 404, 413, 500, 503)


@router.post(
    "/tokenize",
    summary="Text or chat to token ids",
    operation_id="tokenize",
    response_class=Response,
    responses={200: {"model": Tokenized, "description": "The token ids."}, **errors(*_STATUSES)},
    openapi_extra=json_body(TokenizeRequest, _TOKENIZE),
)
async def tokenize(request: Request) -> Response:
    """The token ids that a model would read. The model is not loaded for it."""
    data = await read_json(request.receive)
    is_text = data.get("prompt") is not None
    if is_text == (data.get("messages") is not None):
        raise InvalidRequest("Send either prompt or messages.", param="prompt")
    wire: TokenizeText | TokenizeChat
    prompt: Prompt
    warnings: tuple[str, ...] = ()
    if is_text:
        wire = parse(TokenizeText, data)
        prompt = TextPrompt(wire.prompt)
    else:
        wire = parse_chat(TokenizeChat, data)
        prompt, warnings = chat_prompt(wire)
    ignored = sort_fields(data, type(wire))
    body = await unless_client_leaves(
        request.receive, _tokenized(service_of(request), wire, prompt)
    )
    return _response(body, notes(ignored, warnings))


@router.post(
    "/detokenize",
    summary="Token ids to text",
    operation_id="detokenize",
    response_class=Response,
    responses={200: {"model": Detokenized, "description": "The text."}, **errors(*_STATUSES)},
    openapi_extra=json_body(DetokenizeRequest, {"simple": {"tokens": [72, 101, 108]}}),
)
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included. The model is not loaded for it."""
    data = await read_json(request.receive)
    ignored = sort_fields(data, DetokenizeRequest)
    wire = parse(DetokenizeRequest, data)
    ids, model = token_ids(wire.tokens, "tokens"), model_name(wire.model)
    text = await unless_client_leaves(request.receive, service_of(request).adetokenize(model, ids))
    return _response({"prompt": text}, notes(ignored))


async def _tokenized(
    service: RouterService, wire: TokenizeText | TokenizeChat, prompt: Prompt
) -> dict[str, Any]:
    card = await service.afind(model_name(wire.model))
    special = wire.add_special_tokens if isinstance(wire, TokenizeText) else False
    ids = await service.atokenize(card.id, prompt, add_special_tokens=special)
    body = {"count": len(ids), "max_model_len": card.context_length, "tokens": ids}
    if wire.return_token_strs:
        body["token_strs"] = await service.atoken_texts(card.id, ids)
    return body


def _response(body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(dumps(body), media_type="application/json", headers=headers)
