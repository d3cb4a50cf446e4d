"""Which pages of a PDF are read. Pure."""

from __future__ import annotations

import re

from mlx_router.media.refusal import Refused

_ITEM = re.compile(r"\s*(?:(\d{1,9})|(\d{1,9})?\s*-\s*(\d{1,9})?)\s*", re.ASCII)
_MAX_LENGTH = 1000


def select(spec: str | None, count: int, first: int, room: int) -> list[int]:
    """The pages of ``count``, from 1, that ``spec`` names ("2-4,7", "5-", "-3"), as it orders them
    and each once; without one the first ``first``. Raises Refused if they are more than ``room``.
    """
    if spec is None:
        chosen = list(range(1, min(count, first) + 1))
        _check_room(len(chosen), room)
        return chosen
    pages: dict[int, None] = {}
    for item in spec[: _MAX_LENGTH + 1].split(","):
        found = _ITEM.fullmatch(item)
        if found is None or item.strip() == "-" or len(spec) > _MAX_LENGTH:
            raise _refused("is not a list of pages", spec, count)
        single, start, end = found.groups()
        low, high = int(single or start or 1), int(single or end or count)
        if not 1 <= low <= count or high > count:
            raise _refused("names pages that the PDF does not have", spec, count)
        if high < low:
            raise _refused("has a range that runs backwards", spec, count)
        _check_room(high - low + 1, room)
        pages.update(dict.fromkeys(range(low, high + 1)))
    _check_room(len(pages), room)
    return list(pages)


def _check_room(wanted: int, room: int) -> None:
    if wanted > room:
        raise Refused(
            f"{wanted} pages are to be read, and the request has room for {room} more images. "
            'Name fewer with "pages", such as "1-4,7".',
            "too_many_images",
        )


def _refused(what: str, spec: str, count: int) -> Refused:
    shown = spec if len(spec) <= 40 else f"{spec[:40]}..."
    return Refused(
        f"'pages' {what}: {shown!r}. The PDF has {count} page{'s' * (count != 1)}; write them as "
        'in "2-4,7", "5-" or "-3".',
        "invalid_pages",
    )
