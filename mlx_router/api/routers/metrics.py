"""GET /metrics."""

from __future__ import annotations

import asyncio
from importlib import import_module

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.service import service_of

router = APIRouter(tags=["health"])


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus's text format, or OpenMetrics if Accept names it.",
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/openmetrics-text": {"schema": {"type": "string"}},
            },
        },
        **errors(401, 403),
    },
)
async def metrics(request: Request) -> Response:
    """Requests, tokens, times, models and memory, since the start and now. Each metric is explained
    in docs/metrics.md."""
    # Prometheus's library is of no use before the first scrape, and streams go on meanwhile.
    await asyncio.to_thread(import_module, "mlx_router.api.metrics")
    from mlx_router.api.metrics import Snapshot

    snapshot = Snapshot(service_of(request))
    body, media_type = await asyncio.to_thread(snapshot.encode, request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
