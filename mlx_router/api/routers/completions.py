"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.body import read_json
from mlx_router.api.completion_answer import CompletionAnswer
from mlx_router.api.completion_chunks import CompletionChunks
from mlx_router.api.completions import CompletionCall, completion_call
from mlx_router.api.merge import merge
from mlx_router.api.openapi import errors, json_body, streamable
from mlx_router.api.respond import respond
from mlx_router.api.schemas.answers import Completion, CompletionChunk
from mlx_router.api.schemas.completions import CompletionRequest
from mlx_router.api.service import caller_of, service_of
from mlx_router.api.stream import unless_client_leaves
from mlx_router.domain import TextPrompt
from mlx_router.errors import InvalidRequest

router = APIRouter(tags=["completions"])

_EXAMPLES = {
    "simple": {"prompt": "Once upon a time", "max_tokens": 50},
    "several": {"prompt": ["One, two,", "Red, green,"], "max_tokens": 20, "n": 2},
}


@router.post(
    "/completions",
    summary="Continue a text",
    operation_id="create_completion",
    response_class=Response,
    responses={
        200: streamable(Completion, CompletionChunk),
        **errors(400, 401, 403, 404, 413, 429, 500, 503, 504),
    },
    openapi_extra=json_body(CompletionRequest, _EXAMPLES),
)
async def create_completion(request: Request) -> Response:
    """Raw text, continued without a chat template: OpenAI's request and answer, with a few
    extensions. Several prompts are answered together."""
    service = service_of(request)
    data = await read_json(request.receive)
    call = completion_call(data, service.settings, caller_of(request))
    echoes = await _echoes(request, call)
    return await respond(
        request,
        call,
        # More at once would only wait in the model's queue, which others need, too.
        merge(service.generate, call.requests, service.settings.defaults.max_batch_size),
        encoder=CompletionChunks(call, echoes),
        answer=CompletionAnswer(call, echoes),
    )


async def _echoes(request: Request, call: CompletionCall) -> list[str]:
    """What the answers to each prompt begin with."""
    if not call.echo:
        return [""] * len(call.requests)
    service = service_of(request)
    echoes = []
    for one in call.requests:
        assert isinstance(one.prompt, TextPrompt)
        text = one.prompt.text
        if text is None:
            reading = service.adetokenize(one.model, one.prompt.token_ids)
            try:
                text = await unless_client_leaves(request.receive, reading)
            except InvalidRequest as error:
                if error.param == "tokens":  # as detokenize calls them
                    error.param = "prompt"
                raise
        echoes.append(text)
    return echoes
