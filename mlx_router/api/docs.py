"""The documentation pages, with all they need in the package: they work without the internet."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ASSETS = Path(fastapi_offline.__file__).parent / "static"
_URL = "/docs-assets"
_OPENAPI = "/openapi.json"


def install_docs(app: FastAPI) -> None:
    """Add /docs (Swagger UI) and /redoc (ReDoc) and their scripts."""

    @app.get("/docs", include_in_schema=False)
    async def swagger() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=_OPENAPI,
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{_URL}/swagger-ui-bundle.js",
            swagger_css_url=f"{_URL}/swagger-ui.css",
            swagger_favicon_url=f"{_URL}/favicon.png",
        )

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(
            openapi_url=_OPENAPI,
            title=f"{app.title} - ReDoc",
            redoc_js_url=f"{_URL}/redoc.standalone.js",
            redoc_favicon_url=f"{_URL}/favicon.png",
            with_google_fonts=False,
        )

    app.mount(_URL, StaticFiles(directory=_ASSETS), name="docs-assets")
