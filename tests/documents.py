"""The documents of this repository, taken apart: blocks, code spans, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", *(f"{folder}/**/*.md" for folder in ("docs", "mlx_router")))
    for path in ROOT.glob(pattern)
) + sorted(
    path for folder in ("benchmarks", "helper_tools") for path in (ROOT / folder).glob("*.md")
)
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\]]|\]\()*?\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"\s]+)\"")


@dataclass(frozen=True)
class Block:
    """A code block: ``where`` is its file and line, ``kind`` what stands after the backticks."""

    where: str
    kind: str
    text: str


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path, *kinds: str) -> list[Block]:
    """The blocks of a document, of these kinds or of all."""
    text = document.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        indent, kind, content = match.groups()
        lines = (line.removeprefix(indent) for line in content.splitlines(keepends=True))
        where = f"{name_of(document)}:{text[: match.start()].count(chr(10)) + 1}"
        if not kinds or kind in kinds:
            found.append(Block(where, kind, "".join(lines)))
    return found


def examples(document: str) -> list[tuple[str, str]]:
    """Where the Python blocks of a document are, and what they hold."""
    return [(block.where, block.text) for block in blocks(ROOT / document, "python")]


def prose(document: Path) -> str:
    """A document without its blocks."""
    return _BLOCK.sub("", document.read_text())


def spans(document: Path) -> list[str]:
    """What stands between backticks in the prose."""
    return _SPAN.findall(prose(document))


def links(document: Path) -> list[str]:
    return [one or other for one, other in _LINK.findall(_SPAN.sub("", prose(document)))]


def anchors(document: Path) -> set[str]:
    """What a link may have after its ``#``, as GitHub makes it of the headings."""
    found: set[str] = set()
    for _, heading in _HEADING.findall(prose(document)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", text).lower().replace(" ", "-")
        count = 1
        while (new := anchor if count == 1 else f"{anchor}-{count - 1}") in found:
            count += 1
        found.add(new)
    return found


def sections(document: Path, level: int) -> dict[str, str]:
    """Heading of this level to the text below it, up to the next heading of this level or above."""
    text = document.read_text()
    heads = [match for match in _HEADING.finditer(text) if len(match[1]) <= level]
    ends = [match.start() for match in heads[1:]] + [len(text)]
    return {
        match[2]: text[match.end() : end]
        for match, end in zip(heads, ends, strict=True)
        if len(match[1]) == level
    }


def commands(script: str) -> Iterator[str]:
    """The commands of a shell block, each with its continuation lines, without comments."""
    command = ""
    for line in script.splitlines():
        command += line + "\n"
        if line.endswith("\\"):
            continue
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # within quotes
            continue
        if words:
            yield command.strip()
        command = ""
    assert not command.strip(), command
