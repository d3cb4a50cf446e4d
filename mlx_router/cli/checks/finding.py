"""What a check found, and what checks look at."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_router.catalog import Catalog
    from mlx_router.config.settings import Settings


class Level(StrEnum):
    """Good; worth a look; or nothing works, or not as it should, until it is fixed."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line: ``text`` says what is so, ``fix`` what to do about it (empty if nothing)."""

    name: str
    level: Level
    text: str
    fix: str = ""


@dataclass
class Patient:
    """The config as the server would have it. ``faults`` are the lines of what is wrong with it;
    ``settings`` are the defaults then."""

    arguments: argparse.Namespace
    settings: Settings
    config: Path | None = None
    faults: tuple[str, ...] = ()

    @cached_property
    def catalog(self) -> Catalog:
        """The models of this machine, read once."""
        from mlx_router.runtime.build import adapted, make_catalog

        settings = adapted(
            self.settings, folders=None, demo=bool(self.arguments.demo), engine="mlx"
        )
        catalog = make_catalog(settings, "mlx")
        catalog.refresh()
        return catalog
