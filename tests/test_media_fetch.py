"""URLs are fetched from the public internet only, and within limits of size and time."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore
import psutil
import pytest

from mlx_router.domain import ImagePart, Picture
from mlx_router.errors import InvalidRequest
from mlx_router.media.addresses import is_public
from tests.media_support import encoded, gradient, load, pdf
from tests.waiting import until

IMAGE = encoded(gradient())


class Site:
    """A server on this machine. ``seen``: the heads of requests; ``open``: connections now."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[str] = []
        self.open = self.most_open = 0
        self.pages: dict[str, bytes | Callable[[asyncio.StreamWriter], Any]] = {}

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.seen.append(head)
            page = self.pages.get(head.split()[1], answer(b"not here", status="404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def answer(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {to}", status=status)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as running:
        yield running


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await until(lambda: site.open == 0)


async def fetch(url: str, **settings: Any) -> Picture:
    settings.setdefault("allow_private_addresses", True)
    return (await load(ImagePart(url), **settings))[0][0]


async def refusal(url: str, **settings: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await fetch(url, **settings)
    error = caught.value
    assert (error.status, error.param) == (400, "messages.0.content.0")
    assert len(error.message) < 300
    return error


# --- what works -----------------------------------------------------------------------------


async def test_an_image_is_fetched(site: Site) -> None:
    site.pages["/a%20b.png?x=%C3%A9"] = answer(IMAGE)
    picture = await fetch(site.url("/a%20b.png?x=\N{LATIN SMALL LETTER E WITH ACUTE}"))
    assert picture.rgb == gradient().tobytes()
    (head,) = site.seen
    assert f"Host: 127.0.0.1:{site.port}\r\n" in head
    assert "User-Agent: mlx-router/" in head
    assert "Cookie" not in head


async def test_a_pdf_is_fetched(site: Site) -> None:
    site.pages["/"] = answer(pdf(2))
    pictures, _ = await load(ImagePart(site.url()), allow_private_addresses=True)
    assert len(pictures) == 2


async def test_a_body_without_a_length_is_read_to_its_end(site: Site) -> None:
    site.pages["/"] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + IMAGE
    assert (await fetch(site.url())).rgb == gradient().tobytes()
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, IMAGE[i : i + 1]) for i in range(len(IMAGE)))
    site.pages["/"] = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    assert (await fetch(site.url())).rgb == gradient().tobytes()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
async def test_redirects_are_followed(site: Site, status: str) -> None:
    site.pages["/"] = redirect("b", status)
    site.pages["/b"] = redirect(site.url("/c"), status)
    site.pages["/c"] = answer(IMAGE)
    assert (await fetch(site.url())).width == 64


async def test_images_are_fetched_together_but_only_a_few(site: Site) -> None:
    held = asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.write(answer(IMAGE))

    for number in range(9):
        site.pages[f"/{number}"] = wait
    parts = [ImagePart(site.url(f"/{number}")) for number in range(9)]
    loading = asyncio.create_task(load(*parts, allow_private_addresses=True))
    await until(lambda: site.open == 4)
    held.set()
    pictures, _ = await loading
    assert len(pictures) == 9
    assert site.most_open == 4


async def test_the_same_url_is_fetched_once(site: Site) -> None:
    site.pages["/"] = answer(IMAGE)
    part = ImagePart(site.url())
    await load(part, part, part, allow_private_addresses=True)
    assert len(site.seen) == 1


async def test_one_url_with_several_details_is_fetched_once(site: Site) -> None:
    pages = [f"/{number}" for number in range(6)]
    site.pages = {path: answer(encoded(gradient(300, 300 + len(path)))) for path in pages}
    parts = [ImagePart(site.url(path), d) for d in ("low", "high", "low") for path in pages]
    limits = {"low_detail_pixels": 4096, "allow_private_addresses": True}
    pictures, _ = await load(*parts, **limits)
    assert [picture.width for picture in pictures] == [63] * 6 + [300] * 6 + [63] * 6
    assert sorted(head.split()[1] for head in site.seen) == pages


async def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.pages["/"] = answer(IMAGE)
    assert (await fetch(site.url())).width == 64


# --- what a server may do -------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "206 Part"])
async def test_another_status_is_named(site: Site, status: str) -> None:
    site.pages["/"] = answer(b"secret" if status[0] != "2" else b"", status=status)
    error = await refusal(site.url())
    assert f"status {status[:3]}" in error.message
    assert "secret" not in error.message


async def test_redirects_have_an_end(site: Site) -> None:
    site.pages["/"] = redirect("/")
    assert "more than 3 redirects" in (await refusal(site.url())).message
    assert len(site.seen) == 4
    assert "more than 0 redirects" in (await refusal(site.url(), max_redirects=0)).message


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA", "gopher://a"]
)
async def test_redirects_lead_to_http_only(site: Site, to: str) -> None:
    site.pages["/"] = redirect(to)
    assert (await refusal(site.url())).code == "invalid_image_url"


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(100_000))
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: " + b"a" * 1000 + b"\r\n")
        await writer.drain()


async def drop_by_drop(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.01)


async def early_hints(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (endless, "image_too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "image_too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", None),
        (endless_headers, "failed_to_download_image"),
        (drop_by_drop, "failed_to_download_image"),
        (early_hints, "failed_to_download_image"),
        (b"", "failed_to_download_image"),
        (b"SSH-2.0-OpenSSH_9.0\r\n", "failed_to_download_image"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "failed_to_download_image"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "failed_to_download_image"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "failed_to_download_image"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "failed_to_download_image"),
        (redirect("http://[::1"), "failed_to_download_image"),
        (redirect("http://\xff\xfe/\x80"), None),
        (answer(b""), "empty_image_file"),
        (answer(b"<html></html>"), "unsupported_image_media_type"),
        (answer(gzip.compress(IMAGE), "Content-Encoding: gzip"), "failed_to_download_image"),
    ],
)
async def test_a_strange_server_is_a_clear_refusal(site: Site, page: Any, code: str | None) -> None:
    site.pages["/"] = page
    began = time.monotonic()
    error = await refusal(site.url(), fetch_timeout=1.0, max_file_mb=2)
    assert error.code == (code or error.code)
    assert time.monotonic() - began < 5


async def test_a_silent_server_is_left_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        error = await refusal(f"http://127.0.0.1:{port}/", fetch_timeout=0.3)
    assert "within 0.3 s" in error.message


async def test_a_closed_port_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert "connection failed" in (await refusal(f"http://127.0.0.1:{port}/")).message


async def test_https_is_not_spoken_with_a_server_that_cannot(site: Site) -> None:
    """It waits for the end of a request that it never understands."""
    error = await refusal(site.url().replace("http", "https"), fetch_timeout=0.5)
    assert error.code == "failed_to_download_image"
    await until(lambda: site.open == 0)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A key, and a certificate for the name that nobody else has signed."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name}"
    names = ["-addext", f"subjectAltName=DNS:{name}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return key, certificate


async def test_https_goes_to_the_name_though_an_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is told the name, and its certificate must be for it."""
    key, certificate = make_certificate(tmp_path, "pictures.example")
    told: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, name, _context: told.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(socket, "getaddrinfo", resolver(["127.0.0.1"])[0])
    async with serving(context) as site:
        site.pages["/"] = answer(IMAGE)
        url = site.url(host="pictures.example").replace("http", "https")
        assert (await refusal(url)).code == "failed_to_download_image"  # nobody vouches for it
        monkeypatch.setattr(httpcore, "default_ssl_context", lambda: trusting)
        assert (await fetch(url)).rgb == gradient().tobytes()
        other = url.replace("pictures", "others")
        assert (await refusal(other)).code == "failed_to_download_image"
    assert told == ["pictures.example", "pictures.example", "others.example"]
    (head,) = site.seen
    assert f"Host: pictures.example:{site.port}\r\n" in head


async def test_fifty_bad_fetches_leave_no_descriptors(site: Site) -> None:
    site.pages = {"/endless": endless, "/cut": b"HTTP/1.1 200", "/hop": redirect("file:///")}
    await refusal(site.url("/missing"))
    await until(lambda: site.open == 0)
    before = psutil.Process().num_fds()
    for number in range(50):
        path = ("/endless", "/cut", "/hop", "/missing")[number % 4]
        await refusal(site.url(path), max_file_mb=0.2)
    await until(lambda: psutil.Process().num_fds() <= before)


async def test_cancelling_a_request_ends_its_fetches(site: Site) -> None:
    site.pages["/"] = drop_by_drop
    task = asyncio.create_task(fetch(site.url()))
    await until(lambda: site.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: site.open == 0)


async def test_a_bad_image_ends_the_fetches_after_it(site: Site) -> None:
    site.pages = {"/bad": answer(b"nothing"), "/slow": drop_by_drop}
    with pytest.raises(InvalidRequest, match=r"messages\.0\.content\.0: "):
        await load(
            ImagePart(site.url("/bad")), ImagePart(site.url("/slow")), allow_private_addresses=True
        )
    await until(lambda: site.open == 0)


# --- addresses ------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "100::1", "not an address", ""),
]
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST.", "2130706433", "0x7f000001", "0177.0.0.1"),
        *("127.1", "0", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]"),
        *("169.254.169.254", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[fe80::1]"),
        "\N{FULLWIDTH DIGIT ONE}27.0.0.1",
        "\N{CIRCLED DIGIT ONE}27.0.0.1",
    ],
)
async def test_this_machine_is_not_reached_by_any_spelling(site: Site, host: str) -> None:
    error = await refusal(site.url(host=host), allow_private_addresses=False)
    assert not site.seen
    assert not site.most_open
    assert "127.0.0.1" not in error.message.replace(host, "")


@pytest.mark.parametrize(
    "url",
    [
        "http://user:password@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com\\@127.0.0.1/",
        "http:\\\\127.0.0.1/",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: localhost",
        "http://example.com/\x00",
        "http://example.com/\x7f",
        "http://",
        "http:///a",
        "http:example.com",
        "http://:80/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://example.com:a/",
        "http://[::1/",
        "http://[example.com]/",
        "http://a..b/",
        f"http://{'a' * 300}.com/",
        f"http://example.com/{'a' * 9000}",
        "https:",
    ],
)
async def test_a_twisted_url_is_refused_before_anything_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it was asked for"))
    error = await refusal(url)
    assert error.code == "invalid_image_url"
    assert "password" not in error.message or "user name" in error.message


Answers = list[tuple[Any, ...]]


def resolver(*answers: list[str]) -> tuple[Callable[..., Answers], list[str]]:
    """A stand-in for the system's, whose answers change from one question to the next."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> Answers:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo, asked


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where connections went to; none is made."""
    hosts: list[str] = []

    async def connect(_: Any, host: str, *__: Any, **___: Any) -> Any:
        hosts.append(host)
        raise httpcore.ConnectError

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    return hosts


async def test_a_name_that_flips_is_connected_to_where_it_was_checked(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, asked = resolver(["93.184.216.34", "93.184.216.35"], ["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    await refusal("http://flips.example/", allow_private_addresses=False)
    assert asked == ["flips.example"]
    assert connected == ["93.184.216.34", "93.184.216.35"]


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"]])
async def test_a_name_with_any_private_address_is_refused(
    addresses: list[str], connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver(addresses)[0])
    error = await refusal("http://inside.example/", allow_private_addresses=False)
    assert "private network" in error.message
    assert not any(address in error.message for address in addresses)
    assert not connected


async def test_an_unknown_name_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Answers:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await refusal("http://nowhere.example/", allow_private_addresses=False)
    assert "host is not known" in error.message


async def test_a_redirect_to_a_private_address_is_not_followed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 plays the public server here."""
    monkeypatch.setattr("mlx_router.media.fetch.is_own", lambda stream: False)
    monkeypatch.setattr(
        "mlx_router.media.fetch.is_public", lambda a: a == "127.0.0.1" or is_public(a)
    )
    site.pages["/"] = redirect(site.url("/inside", host="127.0.0.2"))
    site.pages["/inside"] = answer(IMAGE)
    error = await refusal(site.url(), allow_private_addresses=False)
    assert "private network" in error.message
    assert len(site.seen) == 1


async def test_this_machine_is_not_asked_by_its_public_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 plays an address that is everybody's and this machine's own."""
    monkeypatch.setattr("mlx_router.media.fetch.is_public", lambda address: True)
    site.pages["/"] = answer(IMAGE)
    error = await refusal(site.url(), allow_private_addresses=False)
    assert "private network" in error.message
    assert not site.seen
    assert (await fetch(site.url(), allow_private_addresses=True)).width == 64


async def test_fetching_can_be_switched_off(site: Site) -> None:
    error = await refusal(site.url(), fetch_urls=False)
    assert "fetches no URLs" in error.message
    assert not site.seen
