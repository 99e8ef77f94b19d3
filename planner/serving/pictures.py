"""Image URLs to pictures.

Data URLs are always taken. Files are taken from one folder that the server was given, web addresses only where it was
told to fetch them. A picture's size is read before its pixels are.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from planner.serving.fetch import fetch
from planner.serving.limits import Limits, Refused, Ticket

if TYPE_CHECKING:
    from PIL import Image

#: What browsers show. PIL reads more, some of it by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class Sources:
    """Where pictures may come from, besides the request.

    Attributes:
        files: folder below which ``file://`` URLs may be; None for none.
        web: fetch ``http://`` and ``https://`` URLs, from public addresses.
    """

    files: Path | None = None
    web: bool = False


async def fetched(urls: Sequence[str], sources: Sources, limits: Limits, ticket: Ticket, held: int) -> dict[str, bytes]:
    """The bodies of all web addresses among URLs.

    Args:
        held: bytes that the request holds already.

    Raises:
        Refused: web addresses are not fetched here, or one cannot be.
    """
    found: dict[str, bytes] = {}
    total = 0
    if len(urls) > limits.images:
        raise Refused(400, f"The request has {len(urls)} images, the server takes {limits.images}", "too_many_images")
    for url in urls:
        if url in found or not url[:8].lower().startswith(("http://", "https://")):
            continue
        if not sources.web:
            remedy = "Send the image as a data URL, or start the server with --allow-http"
            raise Refused(400, f"This server fetches no images. {remedy}", "invalid_image_url")
        # Reserved before it comes, since nobody knows how long it is.
        ticket.hold(held + limits.body_bytes)
        found[url] = await fetch(url, limits.body_bytes - total)
        total += len(found[url])
    ticket.hold(held + total)
    return found


def pictures(urls: Sequence[str], web: dict[str, bytes], sources: Sources, limits: Limits) -> list[Image.Image]:
    """The pictures of a request, decoded, in order.

    Args:
        web: what was fetched.

    Raises:
        Refused: 400, one cannot be read or all together are too large.
    """
    opened = [_opened(web[url] if url in web else _bytes(url, sources, limits)) for url in urls]
    pixels = sum(picture.width * picture.height for picture in opened)
    if pixels > limits.pixels:
        raise Refused(400, f"The images have {pixels:,} pixels, the server takes {limits.pixels:,}", "image_too_large")
    for picture in opened:
        try:
            picture.load()
        except Exception as error:  # decoders of broken files raise whatever they stumble over
            raise _unreadable() from error
    return opened


def _bytes(url: str, sources: Sources, limits: Limits) -> bytes:
    head, comma, data = url.partition(",") if url[:5].lower() == "data:" else ("", "", "")
    if comma:
        if not head.lower().endswith(";base64"):
            raise Refused(400, "A data URL must be base64: data:image/png;base64,...", "invalid_image_url")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "A data URL's base64 cannot be decoded", "invalid_image_url") from error
    if url[:7].lower() == "file://":
        return _file(url, sources, limits)
    raise Refused(400, "An image must be a data URL: data:image/png;base64,...", "invalid_image_url")


def _file(url: str, sources: Sources, limits: Limits) -> bytes:
    refused = Refused(400, "There is no such file that this server may read", "invalid_image_url")
    if sources.files is None:
        raise refused
    try:
        path = Path(unquote(urlsplit(url).path)).resolve(strict=True)  # links followed: where it really lies
        if not path.is_relative_to(sources.files.resolve()) or not path.is_file():
            raise refused
        if path.stat().st_size > limits.body_bytes:
            raise Refused(400, f"The file is larger than {limits.body_bytes:,} bytes", "image_too_large")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise refused from error


def _opened(data: bytes) -> Image.Image:
    """A picture whose size is known and whose pixels are not decoded yet."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(400, "The image has more pixels than any server takes", "image_too_large") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise _unreadable() from error


def _unreadable() -> Refused:
    return Refused(400, f"The image cannot be read. Send {', '.join(FORMATS)}", "invalid_image")
