"""Every error as OpenAI writes it: the one place that turns exceptions into responses.

Inside this package any code raises :class:`~mlx_router.errors.RouterError`; whatever else arrives
here is either a client's mistake found by a library (a wrong method, an unknown path) or a fault
of ours, which is logged with its trace and told to the client without internals.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_router.api.validation import invalid_request
from mlx_router.errors import (
    InvalidRequest,
    ModelLoadFailed,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    RequestTimeout,
    RouterError,
    Unavailable,
)

log = logging.getLogger(__name__)

_MAX_MESSAGE = 2000
_DEFAULT_RETRY_SECONDS = 5


class BodyTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class HeadersTooLarge(InvalidRequest):
    status = 431
    code = "headers_too_large"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


def error_body(error: RouterError) -> bytes:
    """The error object as JSON, without a line break. Never raises."""
    body: dict[str, Any] = error.body()
    if len(error.message) > _MAX_MESSAGE:
        body["error"]["message"] = error.message[:_MAX_MESSAGE] + "…"
    try:
        return orjson.dumps(body)
    except TypeError:  # a lone surrogate, from a header or a path
        message = error.message[:_MAX_MESSAGE].encode(errors="replace").decode()
        return orjson.dumps({"error": {**body["error"], "message": message, "param": None}})


def error_headers(error: RouterError) -> dict[str, str]:
    """Headers that belong to the error: when to retry, how to log in, whether to retry at all."""
    headers: dict[str, str] = {}
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, QueueFull | Unavailable):
        retry_after = _DEFAULT_RETRY_SECONDS
    if retry_after is not None:
        headers["retry-after"] = str(max(1, retry_after))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, PayloadTooLarge | BodyTimeout | HeadersTooLarge):
        headers["connection"] = "close"  # the rest of the body will not be read
    if isinstance(error, ModelLoadFailed | RequestTimeout):
        # OpenAI's clients repeat a 5xx twice by themselves: here it would fail again, at a price.
        headers["x-should-retry"] = "false"
    return headers


def error_response(error: RouterError) -> Response:
    return Response(
        error_body(error),
        status_code=error.status,
        headers=error_headers(error),
        media_type="application/json",
    )


def as_router_error(error: BaseException) -> RouterError:
    """What the client may know of ``error``; a fault of ours is logged here, with its trace."""
    if isinstance(error, RouterError):
        if error.status >= 500 and error.__cause__ is not None:
            log.error("%s: %s", type(error).__name__, error.message, exc_info=error.__cause__)
        return error
    log.error("Unexpected %s while answering", type(error).__name__, exc_info=error)
    return RouterError("The server hit an internal error; its log has the details.")


async def _on_router_error(request: Request, error: Exception) -> Response:
    return error_response(as_router_error(error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
    return error_response(invalid_request(found, error.body))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    found: RouterError
    if error.status_code == 404:
        found = NotFound(f"Unknown URL ({what}). /docs lists what there is.")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        found = MethodNotAllowed(f"Method not allowed ({what}). Use {allowed}.")
    elif error.status_code == 413:
        found = PayloadTooLarge("The request body is too large.")
    elif error.status_code < 500:
        found = InvalidRequest(str(error.detail))
    else:
        found = as_router_error(error)
    response = error_response(found)
    response.headers.update(error.headers or {})
    return response


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of ``app`` come out in OpenAI's shape."""
    app.add_exception_handler(RouterError, _on_router_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
