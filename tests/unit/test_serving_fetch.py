"""Images from public addresses only: what a name means is looked at, once, and the connection goes there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from planner.serving import fetch as fetching
from planner.serving.fetch import fetch, public
from planner.serving.limits import Refused

PRIVATE = (
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2002:c0a8:101::1",    "2001:db8::1",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert public(address)


@contextmanager
def answering(*responses: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server on this machine that gives these responses, one a connection; its port, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for response in responses:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(response)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names mean, in turn; this machine's address stands for a public one where it is asked for by 203.0.113.5."""
    known: dict[str, list[str]] = {}
    connect = anyio.connect_tcp

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        addresses = known.get(host, [host])
        return [(0, 0, 0, "", (one, port)) for one in (addresses if len(addresses) < 2 else [addresses.pop(0)])]

    async def to_here(address: str, port: int, **options: Any) -> Any:
        assert address == "203.0.113.5", "a connection to what was not checked"
        return await connect("127.0.0.1", port, **options)

    monkeypatch.setattr(fetching.anyio, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching.anyio, "connect_tcp", to_here)
    monkeypatch.setattr(fetching, "public", lambda address: address == "203.0.113.5" or public(address))
    return known


def get(url: str, most: int = 1000) -> bytes:
    return anyio.run(fetch, url, most)


def refused(url: str, most: int = 1000) -> str:
    with pytest.raises(Refused) as error:
        get(url, most)
    assert error.value.status == 400
    return error.value.message


def test_a_public_image_is_fetched_by_its_name(names: dict[str, list[str]]) -> None:
    names["pictures.example"] = ["203.0.113.5"]
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc") as (port, asked):
        assert get(f"http://pictures.example:{port}/a.png?x=1") == b"abc"
    assert asked[0].startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")
    assert f"host: pictures.example:{port}\r\n".encode() in asked[0].lower()


def test_a_name_that_changes_its_meaning_is_asked_once(names: dict[str, list[str]]) -> None:
    names["rebinding.example"] = ["203.0.113.5", "127.0.0.1"]
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na") as (port, _):
        assert get(f"http://rebinding.example:{port}/") == b"a"
    assert names["rebinding.example"] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
def test_this_machine_is_not_asked(host: str) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\nsecret") as (port, asked):
        assert "not public" in refused(f"http://{host}:{port}/") or "not known" in refused(f"http://{host}:{port}/")
    assert not asked


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (one, port)) for one in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(fetching.anyio, "getaddrinfo", resolve)
    assert "not public" in refused("http://both.example/")


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/", "//localhost:{port}/", "http://169.254.169.254/latest"])
def test_a_redirect_to_a_private_address_is_refused(names: dict[str, list[str]], target: str) -> None:
    names["pictures.example"], names["localhost"] = ["203.0.113.5"], ["127.0.0.1"]
    with answering(b"HTTP/1.1 200 OK\r\n\r\nsecret") as (inside, seen):
        head = f"HTTP/1.1 302 Found\r\nLocation: {target.format(port=inside)}\r\n\r\n".encode()
        with answering(head) as (port, _):
            assert "not public" in refused(f"http://pictures.example:{port}/")
    assert not seen


def test_redirects_end(names: dict[str, list[str]]) -> None:
    names["pictures.example"] = ["203.0.113.5"]
    with answering(*[b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"] * 9) as (port, asked):
        assert "redirects" in refused(f"http://pictures.example:{port}/")
    assert len(asked) == 4


@pytest.mark.parametrize("head", [b"Content-Length: 2000\r\n\r\n", b"\r\n"])
def test_a_long_body_is_not_read_to_its_end(names: dict[str, list[str]], head: bytes) -> None:
    names["pictures.example"] = ["203.0.113.5"]
    with answering(b"HTTP/1.1 200 OK\r\n" + head + b"x" * 2000) as (port, _):
        assert "more than 1,000 bytes" in refused(f"http://pictures.example:{port}/")


def test_a_slow_body_is_given_up(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    names["pictures.example"] = ["203.0.113.5"]
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://pictures.example:{listener.getsockname()[1]}/"
        assert "too long" in refused(url)


@pytest.mark.parametrize(
    "url",
    ["ftp://pictures.example/", "http://", "http://user@pictures.example/", "http://a:b@127.0.0.1/", "http://x:99999/",
     "http://[::1/", "http://pictures.example/ä", "file:///etc/passwd", "http://\x00/", "http://a b/"],
)  # fmt: skip
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    assert refused(url)


def test_errors_of_others_are_told_by_their_status_alone(names: dict[str, list[str]]) -> None:
    names["pictures.example"] = ["203.0.113.5"]
    with answering(b"HTTP/1.1 404 Not Found\r\n\r\nwhat lies there", b"garbage\r\n\r\n") as (port, _):
        assert refused(f"http://pictures.example:{port}/").endswith("it answers 404")
        assert refused(f"http://pictures.example:{port}/").endswith("it cannot be reached")
