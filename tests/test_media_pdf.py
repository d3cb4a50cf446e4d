"""PDFs become page images: the pages that were named, as sharp as the limits allow, and safely."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_router.domain import ChatPrompt, ImagePart, Message, Picture
from mlx_router.errors import InvalidRequest, Unavailable
from mlx_router.media.pages import select
from mlx_router.media.refusal import Refused
from tests.media_support import (
    COLOURS,
    data_uri,
    encoded,
    gradient,
    image_of,
    load,
    media_loader,
    page_of,
    pdf,
    raw_pdf,
    stream,
)
from tests.waiting import until


@pytest.fixture(params=["poppler", "pdfium"])
def renderer(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Each of them; poppler is there unless its programs cannot be found."""
    if request.param == "pdfium":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        assert shutil.which("pdftoppm"), "the tests need poppler-utils"
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No temporary file and no process outlives a request."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(psutil.Process().children(recursive=True))  # servers of other files' tests
    yield
    assert not list(folder.iterdir())
    assert not set(psutil.Process().children(recursive=True)) - before


async def read(content: bytes, pages: str | None = None, **settings: Any) -> tuple[Picture, ...]:
    return (await load(ImagePart(data_uri(content), pages=pages), **settings))[0]


async def refusal(content: bytes, pages: str | None = None, **settings: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await read(content, pages, **settings)
    assert caught.value.param == "messages.0.content.0"
    return caught.value


def colours(pictures: tuple[Picture, ...]) -> list[Any]:
    return [image_of(p).getpixel((p.width // 2, p.height // 2)) for p in pictures]


# --- pages ----------------------------------------------------------------------------------


async def test_pages_are_drawn_in_order_at_the_resolution(renderer: str) -> None:
    pictures = await read(pdf(3))
    assert [(p.width, p.height) for p in pictures] == [(150, 200)] * 3
    assert colours(pictures) == COLOURS[:3]
    larger = await read(pdf(1), pdf_dpi=300)
    assert (larger[0].width, larger[0].height) == (300, 400)


@pytest.mark.parametrize(
    "url",
    [
        data_uri(pdf(), "application/pdf"),
        data_uri(pdf(), "image/png"),
        data_uri(pdf()).partition(",")[2],
        data_uri(b"\n" * 500 + pdf()),
    ],
    ids=["pdf", "as-image", "bare", "late"],
)
async def test_a_pdf_is_known_by_its_content(url: str) -> None:
    assert colours((await load(ImagePart(url)))[0]) == COLOURS[:1]


async def test_pages_take_the_place_of_their_pdf_among_images() -> None:
    image = ImagePart(data_uri(encoded(gradient(40, 30))))
    pictures, _ = await load(image, ImagePart(data_uri(pdf(2))), image)
    assert [p.width for p in pictures] == [40, 150, 150, 40]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2", [2]),
        ("2-4,7", [2, 3, 4, 7]),
        ("7,2-4", [7, 2, 3, 4]),
        ("7-", [7, 8]),
        ("-3", [1, 2, 3]),
        ("3,1-4,3", [3, 1, 2, 4]),
        (" 1 , 3 - 4 ", [1, 3, 4]),
        ("1-8", [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
async def test_pages_are_read_as_they_are_named(spec: str, expected: list[int]) -> None:
    assert select(spec, 8, 2, 64) == expected


async def test_named_pages_are_drawn(renderer: str) -> None:
    pictures = await read(pdf(6), "5,1-2,4-")
    assert colours(pictures) == [COLOURS[page] for page in (4, 0, 1, 3, 5)]


@pytest.mark.parametrize(
    "spec",
    [
        *("", " ", "0", "9", "7-9", "9-", "4-2", "1,,2", "1-2-3", "a", "-", "--", "1;2", "-0"),
        *("1.5", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000, "1," * 900 + "1", "1-999999999", "-9"),
    ],
)
def test_pages_that_cannot_be_are_refused_with_the_page_count(spec: str) -> None:
    with pytest.raises(Refused, match="has 8 pages") as caught:
        select(spec, 8, 20, 64)
    assert caught.value.code == "invalid_pages"
    assert len(caught.value.message) < 300


async def test_only_the_first_pages_are_read_and_the_client_is_told(
    renderer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_router")
    part = ImagePart(data_uri(pdf(34)), name="secret.pdf")
    pictures, notices = await load(part, pdf_dpi=36)
    assert len(pictures) == 20
    assert notices == (
        'secret.pdf has 34 pages; the first 20 were read. Name others with "pages".',
    )
    assert "34 pages" in caplog.text
    assert "secret" not in caplog.text


async def test_a_pdf_without_a_name_is_called_the_pdf() -> None:
    _, notices = await load(ImagePart(data_uri(pdf(3))), pdf_pages=1)
    assert notices[0].startswith("The PDF has 3 pages; the first 1 ")


async def test_a_pdf_that_is_read_whole_needs_no_notice() -> None:
    assert (await load(ImagePart(data_uri(pdf(2))), pdf_pages=2))[1] == ()
    assert (await load(ImagePart(data_uri(pdf(3)), pages="1"), pdf_pages=2))[1] == ()


async def test_named_pages_may_be_more_than_are_read_by_default() -> None:
    assert len(await read(pdf(6), "1-5", pdf_pages=2)) == 5


async def test_pages_count_as_images() -> None:
    assert len(await read(pdf(4), "1-4", max_images=4)) == 4
    for pages in ("1-5", None):
        assert (await refusal(pdf(5), pages, max_images=4)).code == "too_many_images"
    part = ImagePart(data_uri(pdf(3)))
    assert len((await load(part, part, max_images=6))[0]) == 6
    with pytest.raises(InvalidRequest, match="at most 5 are taken"):
        await load(part, part, max_images=5)
    with pytest.raises(InvalidRequest, match="room for 2 more"):
        await load(ImagePart(data_uri(encoded(gradient()))), part, max_images=3)


async def test_pages_of_an_image_are_refused() -> None:
    assert (await refusal(encoded(gradient()), "1")).code == "invalid_pages"


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
async def test_a_page_stays_within_its_budget_of_pixels(detail: Any, renderer: str) -> None:
    part = ImagePart(data_uri(pdf(1, (3000, 2000))), detail)
    (page,) = (await load(part))[0]
    budget = 262_144 if detail == "low" else 2_359_296
    assert 0.99 * budget <= page.width * page.height <= budget
    assert page.width / page.height == pytest.approx(1.5, rel=0.01)
    assert colours((page,)) == COLOURS[:1]


async def test_a_page_of_a_mile_costs_no_more_than_another(renderer: str) -> None:
    (page,) = await read(page_of(b"1 0 0 rg 0 0 100000 100000 re f", box=b"0 0 100000 100000"))
    assert page.width == page.height
    assert page.width in (1535, 1536)
    assert colours((page,)) == COLOURS[:1]


async def test_a_page_that_is_a_line_is_refused(renderer: str) -> None:
    error = await refusal(page_of(b"", box=b"0 0 100000 10"))
    assert "200 times" in error.message


async def test_pages_are_seen_as_a_reader_shows_them(renderer: str) -> None:
    """Turned, and cut to the part that is shown."""
    content = b"1 0 0 rg 0 0 72 36 re f 0 0 1 rg 0 36 72 36 re f"
    (turned,) = await read(page_of(content, box=b"0 0 72 144", words=b"/Rotate 90"))
    assert (turned.width, turned.height) == (300, 150)
    assert image_of(turned).getpixel((10, 75)) == (255, 0, 0)
    (cut,) = await read(page_of(content, words=b"/CropBox[0 36 72 72]"))
    assert (cut.width, cut.height) == (150, 75)
    assert colours((cut,)) == [(0, 0, 255)]


async def test_pages_of_different_sizes_keep_them(renderer: str) -> None:
    boxes = [b"0 0 72 72", b"0 0 72 72", b"0 0 72 36", b"0 0 36.5 72", b"0 0 72 72"]
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 3 + len(boxes)))
    content = raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(boxes)),
        *[b"<</Type/Page/Parent 2 0 R/MediaBox[%s]>>" % box for box in boxes],
    )
    sizes = [(page.width, page.height) for page in await read(content)]
    assert sizes == [(150, 150), (150, 150), (150, 75), (77, 150), (150, 150)]


# --- what cannot be read --------------------------------------------------------------------


async def test_an_encrypted_pdf_is_refused(renderer: str) -> None:
    locked = pdf(1, owner_password="owner", user_password="user")
    assert "encrypted" in (await refusal(locked)).message


async def test_a_pdf_that_only_forbids_printing_is_read(renderer: str) -> None:
    assert colours(await read(pdf(2, owner_password="owner"))) == COLOURS[:2]


EMPTY_TREE = raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>")
BROKEN = {
    "header": b"%PDF-1.7\n",
    "noise": b"%PDF-1.7\n" + bytes(range(256)) * 500,
    "truncated": pdf(3)[:400],
    "no-pages": EMPTY_TREE,
    "no-root": b"%PDF-1.5\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n",
    "count-of-a-billion": raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 1000000000>>"
    ),
    "count-below-zero": raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count -5>>"
    ),
}
IN_ITSELF = {
    "catalogue": raw_pdf(b"<</Type/Catalog/Pages 1 0 R>>"),
    "tree": raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"),
    "page": raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 3/Parent 3 0 R>>",
        b"<</Type/Page/Parent 3 0 R/Kids[2 0 R]>>",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_pdf_is_refused(name: str, renderer: str) -> None:
    began = time.monotonic()
    error = await refusal(BROKEN[name], pdf_timeout=10.0)
    assert error.code == "invalid_pdf"
    assert "takes longer" not in error.message
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", IN_ITSELF)
async def test_a_pdf_that_holds_itself_is_read_or_refused_but_ends(
    name: str, renderer: str
) -> None:
    """What is in it is for the renderer to say; it must not go round for ever."""
    try:
        assert len(await read(IN_ITSELF[name], pdf_timeout=20.0)) <= 3
    except InvalidRequest as error:
        assert "takes longer" not in error.message  # noqa: PT017


async def test_a_form_that_draws_itself_ends(renderer: str) -> None:
    words = b"/Type/XObject/Subtype/Form/BBox[0 0 72 72]/Resources<</XObject<</A 5 0 R>>>>"
    content = page_of(
        b"1 0 0 rg 0 0 72 72 re f /A Do",
        stream(b"/A Do", words),
        words=b"/Resources<</XObject<</A 5 0 R>>>>",
    )
    assert colours(await read(content, pdf_timeout=20.0)) == COLOURS[:1]


async def test_ten_thousand_pages_cost_as_much_as_those_that_are_read(renderer: str) -> None:
    count = 10_000
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 3 + count))
    content = raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count),
        *[b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>"] * count,
    )
    pictures, notices = await load(ImagePart(data_uri(content)), pdf_timeout=30.0)
    assert len(pictures) == 20
    assert "10000 pages" in notices[0]
    assert len(await read(content, "9999-", pdf_timeout=30.0)) == 2
    assert (await refusal(content, "-10000")).code == "too_many_images"


def nested_forms(depth: int, width: int) -> bytes:
    """Each form draws the next one so many times."""
    words = b"/Type/XObject/Subtype/Form/BBox[0 0 72 72]/Resources<</XObject<</A %d 0 R>>>>"
    forms = [stream(b"/A Do " * width, words % (6 + level)) for level in range(depth)]
    last = stream(b"0 0 72 72 re f", b"/Type/XObject/Subtype/Form/BBox[0 0 72 72]")
    return page_of(b"/A Do", *forms, last, words=b"/Resources<</XObject<</A 5 0 R>>>>")


# --- limits of the process ------------------------------------------------------------------


async def test_a_pdf_that_takes_for_ever_is_given_up(renderer: str) -> None:
    began = time.monotonic()
    error = await refusal(nested_forms(9, 12), pdf_timeout=2.0)
    assert "takes longer than 2 s" in error.message
    assert time.monotonic() - began < 10


@pytest.fixture
def false_pdftoppm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a program that is run in place of poppler's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def write_program(folder: Path, script: str) -> None:
    program = folder / "pdftoppm"
    program.write_text(
        f"#!/usr/bin/env bash\nif [ $1 = -v ]; then echo version 24.0.0 >&2; exit; fi\n{script}\n"
    )
    program.chmod(0o755)


async def test_a_hanging_renderer_is_killed_with_its_children(
    false_pdftoppm: Path, tmp_path: Path
) -> None:
    write_program(false_pdftoppm, f"sleep 1000 &\necho $! >{tmp_path}/pid\nwait")
    error = await refusal(pdf(), pdf_timeout=2.0)
    assert "takes longer" in error.message
    child = int((tmp_path / "pid").read_text())
    await until(lambda: not is_running(child))


async def test_cancelling_a_request_kills_its_renderer(
    false_pdftoppm: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    write_program(false_pdftoppm, f"echo $$ >{tmp_path}/new\nmv {tmp_path}/new {pid}\nsleep 1000")
    task = asyncio.create_task(read(pdf()))
    await until(pid.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    renderer = int(pid.read_text())
    await until(lambda: not is_running(renderer))


async def test_a_renderer_that_wants_all_memory_gets_none(false_pdftoppm: Path) -> None:
    write_program(false_pdftoppm, "exec /usr/bin/env python3 -c 'bytearray(4 << 30)'")
    error = await refusal(pdf(), pdf_memory_mb=500.0)
    assert error.code == "invalid_pdf"


async def test_a_limit_too_low_for_any_pdf_is_an_error_like_others() -> None:
    assert (await refusal(pdf(), pdf_memory_mb=1.0)).code == "invalid_pdf"


async def test_a_renderer_that_lies_about_its_pages_is_not_believed(false_pdftoppm: Path) -> None:
    write_program(false_pdftoppm, "printf 'P6\\n3000 3000\\n255\\n'; head -c 27000000 /dev/zero")
    assert (await refusal(pdf())).code == "invalid_pdf"
    write_program(false_pdftoppm, "yes | head -c 3000")
    assert (await refusal(pdf())).code == "invalid_pdf"


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_at_most_two_pdfs_are_drawn_at_once(false_pdftoppm: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    write_program(
        false_pdftoppm, f"touch {marks}/$$; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    )
    parts = [ImagePart(data_uri(pdf(1, (72, 72 + n)))) for n in range(4)]

    before = set(psutil.Process().children())
    with media_loader() as loader:
        tasks = [
            asyncio.create_task(loader.load(ChatPrompt((Message("user", (part,)),))))
            for part in parts
        ]
        await until(lambda: len(list(marks.iterdir())) == 2)
        assert len(set(psutil.Process().children()) - before) == 2
        (tmp_path / "go").touch()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, InvalidRequest) for error in done)  # it drew nothing


async def test_a_server_that_cannot_draw_pdfs_says_so(
    renderer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PDF is not called damaged."""
    packages = tmp_path / "packages"
    (packages / "PIL").mkdir(parents=True)
    (packages / "PIL" / "__init__.py").write_text("raise ImportError('no Pillow')")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    error = await refusal(pdf())
    assert error.code == "vision_not_installed"
    assert "uv sync --extra vision" in error.message


async def test_a_machine_without_processes_to_spare_asks_for_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlx_router.media.pdf.sys.executable", "/nonexistent")
    with pytest.raises(Unavailable):
        await read(pdf())


async def test_twenty_bad_pdfs_leave_no_descriptors() -> None:
    bad = [*BROKEN.values(), pdf(1, owner_password="a", user_password="b")]
    await refusal(bad[0])
    before = psutil.Process().num_fds()
    for number in range(20):
        await refusal(bad[number % len(bad)], "99" if number % 2 else None)
    await until(lambda: psutil.Process().num_fds() <= before)
