"""The order of the packages, as mlx_router/README.md draws it, holds in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_router

ROOT = Path(mlx_router.__file__).parent

# package -> the packages of ours that it may import. `domain`, `errors` and `version` are free to
# all; `config` is the typed settings, which the inner packages may know by type.
MAY_IMPORT = {
    "domain": set[str](),
    "errors": set[str](),
    "version": set[str](),
    "config": set[str](),
    "catalog": {"config"},
    "memory": {"config"},
    "scheduling": {"config"},
    "prompt": {"config"},
    "parsing": {"config"},
    "telemetry": {"config"},
    "downloads": {"catalog"},
    "media": {"config"},
    "engine": {"prompt"},
    "runtime": {
        "config",
        "catalog",
        "memory",
        "scheduling",
        "prompt",
        "parsing",
        "engine",
        "downloads",
        "media",
        "telemetry",
    },
    "api": {"runtime", "config", "telemetry", "memory"},
    "bench": {"runtime", "config"},
    "client": {"api", "runtime"},
}
EVERYWHERE = {"domain", "errors", "version"}

# library -> the packages that may import it.
ONLY_IN = {
    "mlx": {"engine"},
    "mlx_lm": {"engine"},
    "mlx_vlm": {"engine"},
    "llguidance": {"engine"},
    "transformers": {"engine"},
    "numpy": {"engine"},
    "fastapi": {"api", "cli"},
    "fastapi_offline": {"api"},
    "starlette": {"api", "cli", "client"},
    "uvicorn": {"api", "cli"},
    "psutil": {"memory"},
    "prometheus_client": {"api"},
    "jinja2": {"prompt"},
    "rich": {"cli"},
    "shtab": {"cli"},
    "packaging": {"cli"},
    "yaml": {"config"},
    "huggingface_hub": {"downloads"},
    "PIL": {"media", "engine"},
    "httpcore": {"media", "bench"},
    "openai": {"client"},
    "pdf2image": {"media"},
    "pypdfium2": {"media"},
}


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_its_place_allows(path: Path) -> None:
    package = package_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top in ONLY_IN:
            assert package in ONLY_IN[top], f"{name} belongs in {ONLY_IN[top]}"
        if top == "mlx_router" and rest and package in MAY_IMPORT:
            allowed = MAY_IMPORT[package] | EVERYWHERE | {package}
            assert rest[0] in allowed, f"{package} may not import mlx_router.{rest[0]}"


def test_every_package_has_its_rule() -> None:
    outermost = {"cli", "demo", "__init__", "__main__"}
    assert {package_of(path) for path in MODULES} <= set(MAY_IMPORT) | outermost


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_fit_on_a_few_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_public_names_are_importable() -> None:
    assert mlx_router.__all__
    for name in mlx_router.__all__:
        assert getattr(mlx_router, name) is not None


def test_a_server_starts_without_what_takes_seconds_to_import() -> None:
    """Models load it, on threads of their own."""
    code = (
        "import sys, mlx_router.cli.serve, mlx_router.engine.factory, mlx_router.api.app\n"
        "slow = {'transformers', 'mlx_lm', 'mlx_vlm', 'torch'} & sys.modules.keys()\n"
        "sys.exit(', '.join(slow) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
