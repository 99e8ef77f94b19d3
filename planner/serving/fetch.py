"""Images from the web, from public addresses only.

A server that fetches what strangers name can be made to fetch from its own network. Names are therefore resolved here,
every address that they stand for must be public, and the connection goes to the address that was checked: what the name
means a moment later does not matter. Each redirect is a new URL and goes the same way. Proxies are not used.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import anyio
import h11

from planner.serving.limits import Refused

REDIRECTS = 3
SECONDS = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class _Found:
    """A response: its body, or where to look instead."""

    body: bytes
    location: str = ""


async def fetch(url: str, most_bytes: int) -> bytes:
    """What lies at a URL.

    Args:
        url: http or https.
        most_bytes: a longer body is refused before it is read to its end.

    Raises:
        Refused: 400, with a reason that says nothing about the network here.
    """
    try:
        with anyio.fail_after(SECONDS):
            for _ in range(1 + REDIRECTS):
                found = await _get(url, most_bytes)
                if not found.location:
                    return found.body
                url = urljoin(url, found.location)
    except TimeoutError as error:
        raise _refused("it takes too long") from error
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise _refused("it cannot be reached") from error
    raise _refused(f"it redirects more than {REDIRECTS} times")


def public(address: str) -> bool:
    """Whether an address can be reached from anywhere: not this machine, its network, or a way into them."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner and not public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


async def _get(url: str, most_bytes: int) -> _Found:
    parts, port = _parts(url)
    host = str(parts.hostname)
    addresses = await _resolved(host, port)
    if not addresses or not all(map(public, addresses)):
        raise _refused("its address is not public")
    # The address, not the name: it is the one that was checked. The name is what the certificate must be for.
    secure = {"tls": True, "tls_hostname": host, "tls_standard_compatible": False} if parts.scheme == "https" else {}
    async with await anyio.connect_tcp(min(addresses), port, **secure) as stream:  # type: ignore[call-overload]
        return await _exchange(stream, parts, most_bytes)


async def _resolved(host: str, port: int) -> set[str]:
    try:
        return {str(one[4][0]) for one in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise _refused("its host is not known") from error


def _parts(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise _refused("it is no URL") from error
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or not url.isascii():
        raise _refused("only http:// and https:// with a plain host are fetched")
    return parts, port


async def _exchange(stream: anyio.abc.ByteStream, parts: SplitResult, most_bytes: int) -> _Found:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", parts.netloc), ("Accept", "image/*"), ("Accept-Encoding", "identity"), ("Connection", "close")]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        request = h11.Request(method="GET", target=target, headers=headers)
    except h11.LocalProtocolError as error:
        raise _refused("it is no URL") from error
    await stream.send((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(await stream.receive())
            except anyio.EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Response):
            if event.status_code in (301, 302, 303, 307, 308):
                locations = [value for name, value in event.headers if name == b"location"]
                if locations:
                    return _Found(b"", locations[0].decode("latin-1"))
            if event.status_code != 200:
                raise _refused(f"it answers {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most_bytes:
                raise _refused(f"it holds more than {most_bytes:,} bytes")
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return _Found(bytes(body))


def _refused(why: str) -> Refused:
    return Refused(400, f"The image cannot be fetched: {why}", "invalid_image_url")
