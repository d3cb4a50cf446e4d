"""Chat templates that ship with the router: for models without one, or whose own is broken.

Each is written from the format that its family's makers published.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

TEMPLATE_NAMES = ("llama3", "qwen", "deepseek", "phi4", "chatml", "gpt-oss", "generic")

_FOLDER = Path(__file__).parent / "templates"


@cache
def named_template(name: str) -> str:
    """The source of a built-in template; LookupError for a name that is none of
    :data:`TEMPLATE_NAMES`."""
    if name not in TEMPLATE_NAMES:
        raise LookupError(f"no chat template is named {name!r}: {', '.join(TEMPLATE_NAMES)}")
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
