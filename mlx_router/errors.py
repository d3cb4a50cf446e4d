"""One tree of errors. Each class knows its HTTP status and OpenAI's type and code for it.

::

    RouterError                      500  server_error
    ├── ConfigError                       (exit code 2: a config file, a flag or the environment)
    ├── InvalidRequest               400  invalid_request_error
    │   ├── UnsupportedParameter     400    unsupported_parameter
    │   ├── ContextLengthExceeded    400    context_length_exceeded
    │   ├── ModelCorrupt             400    model_corrupt
    │   └── PayloadTooLarge          413    payload_too_large
    ├── AuthenticationFailed         401    invalid_api_key
    ├── PermissionDenied             403    permission_denied
    ├── NotFound                     404    not_found
    │   └── ModelNotFound            404    model_not_found
    ├── QueueFull                    429    queue_full                (Retry-After)
    ├── ModelLoadFailed              500    model_load_failed
    ├── EngineFailed                 500    engine_failed
    ├── Unavailable                  503    unavailable               (Retry-After)
    │   ├── InsufficientMemory       503    insufficient_memory
    │   ├── InsufficientStorage      503    insufficient_storage
    │   └── ShuttingDown             503    shutting_down
    └── RequestTimeout               504    timeout
"""

from __future__ import annotations

from typing import ClassVar

# What brings mlx-vlm, and all else that images, PDFs and embedding models need.
INSTALL_VISION = "`uv sync --extra vision` in a clone, or `uv tool install '.[vision]'`"


class RouterError(Exception):
    """Any error that MLX Router reports.

    ``message`` is for people: one or two sentences that say what to do next; it never holds a
    prompt, a key, or a path of this machine. ``param`` names the request field at fault.
    ``retry_after`` is in seconds.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI writes it on the wire."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class ConfigError(RouterError):
    code = "config_error"


class InvalidRequest(RouterError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelCorrupt(InvalidRequest):
    code = "model_corrupt"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class AuthenticationFailed(RouterError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(RouterError):
    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFound(RouterError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class QueueFull(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ModelLoadFailed(RouterError):
    code = "model_load_failed"


class EngineFailed(RouterError):
    code = "engine_failed"


class Unavailable(RouterError):
    status = 503
    code = "unavailable"


class InsufficientMemory(Unavailable):
    code = "insufficient_memory"


class InsufficientStorage(Unavailable):
    code = "insufficient_storage"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class RequestTimeout(RouterError):
    status = 504
    type = "timeout_error"
    code = "timeout"
