"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.body import read_json
from mlx_router.api.chat_answer import ChatAnswer
from mlx_router.api.chat_chunks import ChatChunks
from mlx_router.api.openapi import errors, json_body, streamable
from mlx_router.api.respond import respond
from mlx_router.api.schemas.answers import ChatCompletion, ChatCompletionChunk
from mlx_router.api.schemas.chat import ChatCompletionRequest
from mlx_router.api.service import caller_of, service_of
from mlx_router.api.translate import chat_call

router = APIRouter(tags=["chat"])

_EXAMPLES = {
    "simple": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 50},
    "streaming": {
        "model": "mlx-community/Qwen3-4B-4bit",
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "tools": {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "description": "The weather in a city",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                    },
                },
            }
        ],
    },
}


@router.post(
    "/chat/completions",
    summary="Answer a chat",
    operation_id="create_chat_completion",
    response_class=Response,
    responses={
        200: streamable(ChatCompletion, ChatCompletionChunk),
        **errors(400, 401, 403, 404, 413, 429, 500, 503, 504),
    },
    openapi_extra=json_body(ChatCompletionRequest, _EXAMPLES),
)
async def create_chat_completion(request: Request) -> Response:
    """A chat with a model: OpenAI's request and answer, with a few extensions.

    A model that is not in memory is loaded first. `max_tokens` is clamped to what the model, the
    context and the memory allow; the header `x-mlx-router-max-tokens` says so.
    """
    service = service_of(request)
    data = await read_json(request.receive)
    call = chat_call(data, service.settings, caller_of(request))

    def shows_reasoning(model: str) -> bool:
        return service.settings.for_model(model).reasoning_response != "disable"

    return await respond(
        request,
        call,
        service.generate(call.request),
        encoder=ChatChunks(call, shows_reasoning),
        answer=ChatAnswer(call, shows_reasoning),
    )
