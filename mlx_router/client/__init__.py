"""The openai package bound to a manager of this process: no server, no socket, no port.

::

    from mlx_router import MLXModelManager, openai_client

    with MLXModelManager(demo=True) as manager, openai_client(manager) as client:
        answer = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hello!"}]
        )

The clients are the package's own, and what they send goes through the same API as over HTTP. What
takes a client of httpx instead gets one with :class:`Transport` or :class:`AsyncTransport`, which
are imported when they are first used, as openai is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from mlx_router.client.transport import AsyncTransport, Transport
    from mlx_router.runtime.manager import MLXModelManager

__all__ = ["BASE_URL", "AsyncTransport", "Transport", "async_openai_client", "openai_client"]

# Nothing listens there: it is what the guard sees as Host, and what error messages show.
BASE_URL = "http://mlx-router.internal/v1"


def openai_client(manager: MLXModelManager, **options: Any) -> OpenAI:
    """An ``openai.OpenAI`` that asks ``manager``, from any thread, and from several at once.

    ``options`` are those of ``openai.OpenAI`` but for ``http_client``, such as ``timeout``
    (seconds); ``max_retries`` is 0 unless given. No API key is needed. On the event loop that the
    manager lives on (inside ``async with``) its calls raise RuntimeError: use
    :func:`async_openai_client` there. Closing it leaves the manager open.

    Raises ImportError if the openai package is not installed.
    """
    openai = _openai()
    transport = _transports().Transport(manager)
    return openai.OpenAI(  # type: ignore[no-any-return]
        **_defaults(options), http_client=openai.DefaultHttpxClient(transport=transport)
    )


def async_openai_client(manager: MLXModelManager, **options: Any) -> AsyncOpenAI:
    """An ``openai.AsyncOpenAI`` that asks ``manager``, on the manager's event loop or another one.

    ``options`` and errors are those of :func:`openai_client`.
    """
    openai = _openai()
    transport = _transports().AsyncTransport(manager)
    return openai.AsyncOpenAI(  # type: ignore[no-any-return]
        **_defaults(options), http_client=openai.DefaultAsyncHttpxClient(transport=transport)
    )


def __getattr__(name: str) -> object:
    if name not in ("Transport", "AsyncTransport"):
        raise AttributeError(f"module 'mlx_router.client' has no attribute {name!r}")
    _openai()
    return getattr(_transports(), name)


def _defaults(options: dict[str, Any]) -> dict[str, Any]:
    # Nothing gets lost on the way, and a retry would start a manager anew that was just closed.
    return {"base_url": BASE_URL, "api_key": "none", "max_retries": 0, **options}


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "This needs the openai package, which is not installed. In the clone: "
            "uv sync --extra client. Elsewhere: uv pip install openai."
        ) from error
    return openai


def _transports() -> Any:
    from mlx_router.client import transport

    return transport
