"""The requests of POST /admin/…; see :mod:`mlx_router.api.schemas.base`."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mlx_router.api.schemas.base import Wire


class ModelAction(Wire):
    """A model to load or to unload. A misspelt field is an error: what it says is done at once."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Id, alias or short name.", min_length=1)


class PinAction(ModelAction):
    """A model to pin, or no longer."""

    pinned: bool = Field(True, description="False: it may go when its place is needed.")
