"""Requests that are malformed, too large or meant to harm are refused, and nothing of them stays."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, RateLimitError
from PIL import Image

from planner.serving.pictures import Sources
from tests.serving import LIMITS, Asked, alone, bomb, client, data_url, metric, plans, questions, served, shown

PIXELS = 4_000_000
MESSAGES = [{"role": "user", "content": "what is it?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that the server may read, beside one that it may not."""
    outside = tmp_path_factory.mktemp("outside")
    inside = outside / "inside"
    inside.mkdir()
    picture = questions(1)[0][0]
    for path in (inside / "a picture.png", outside / "secret.png"):
        picture.save(path)
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "words.txt").write_text("words")
    return inside


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    limits = replace(LIMITS, pixels=PIXELS, body_bytes=12 << 20, images=3)
    with served(limits=limits, sources=Sources(folder, web=True)) as found:
        yield found


@pytest.fixture(autouse=True)
def unharmed(address: str) -> Iterator[None]:
    """Whatever happens: afterwards a request is answered as ever, and nothing is left of the others."""
    yield
    picture, prompt = questions(1)[0]
    asked = Asked.of(picture, prompt)
    found = create(address, asked.messages())
    assert [found.choices[0].message.content] == alone("windowed", plans("windowed")["plan"], [asked])
    for name in ("plan_queue", "plan_running", "plan_admitted", "plan_pending_bytes"):
        assert metric(address, name) == 0, name


def create(address: str, messages: Any, **options: Any) -> Any:
    return client(address).chat.completions.create(
        **{"model": "plan", "messages": messages, "max_tokens": 8, **options}
    )


def refused(address: str, messages: Any, kind: type[APIStatusError] = BadRequestError, **options: Any) -> str:
    with pytest.raises(kind) as error:
        create(address, messages, **options)
    assert error.value.body and error.value.code  # type: ignore[attr-defined]
    return str(error.value)


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 9_000), (2_001, 2_000), (4_000_001, 1)])
def test_decompression_bombs(address: str, size: tuple[int, int]) -> None:
    assert "pixels" in refused(address, shown(bomb(*size)))


def test_many_pictures_that_are_too_large_together(address: str) -> None:
    half = data_url(Image.new("L", (1_500, 1_500)))
    assert create(address, shown(half)).choices
    assert "4,500,000 pixels" in refused(address, shown(half, half))
    assert "4 images" in refused(address, shown(*[half] * 4))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,@@@",
        "data:image/png;base64,",
        "data:image/png,abc",
        "data:image/png;base64," + base64.b64encode(b"no picture").decode(),
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        "data:application/postscript;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode(),
        data_url(questions(1)[0][0].convert("RGB"), "TIFF"),
        data_url(questions(1)[0][0])[:200],
        "javascript:alert(1)",
        "/etc/passwd",
        "",
    ],
)
def test_what_is_no_picture(address: str, url: str) -> None:
    assert "image" in refused(address, shown(url)).lower() or "base64" in refused(address, shown(url))


def test_files_below_the_folder_only(address: str, folder: Path) -> None:
    assert create(address, shown((folder / "a picture.png").as_uri())).choices
    for path in ("../secret.png", "link.png", "missing.png", "", "words.txt"):
        assert "read" in refused(address, shown(f"file://{folder}/{path}"))
    assert "read" in refused(address, shown("file:///etc/passwd"))
    assert "read" in refused(address, shown("file:///dev/zero"))


def test_the_servers_own_network_is_not_fetched_from(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.2)
        port = inside.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"):
            assert "cannot be fetched" in refused(address, shown(f"http://{host}:{port}/a.png"))
        with pytest.raises(TimeoutError):
            inside.accept()


def test_a_prompt_of_ten_megabytes(address: str) -> None:
    words = "what is the red shape? " * (10_000_000 // 23)
    assert "characters" in refused(address, [{"role": "user", "content": words}])
    assert "characters" in refused(address, [{"role": "user", "content": "x" * 10_000_000}])


def test_a_prompt_that_is_longer_than_the_context(address: str) -> None:
    assert "tokens" in refused(address, [{"role": "user", "content": "red " * 600}])


def test_bodies_that_are_too_large(address: str) -> None:
    refused(address, [{"role": "user", "content": "x" * (13 << 20)}], APIStatusError)
    parts = (b"[" * 65536 for _ in range(300))  # no length is told
    sent = httpx2.post(
        f"{address}/v1/chat/completions", content=parts, headers={"content-type": "application/json"}, timeout=30
    )
    assert sent.status_code == 413


@pytest.mark.parametrize("parts", [("an <image> here",), ("<ima", "ge>"), ("<IMAGE>",)])
def test_words_that_stand_for_an_image(address: str, parts: tuple[str, ...]) -> None:
    text = [{"type": "text", "text": part} for part in parts]
    for picture in ([], shown(data_url(questions(1)[0][0]))[0]["content"][:1]):
        assert "stands for an image" in refused(address, [{"role": "user", "content": [*picture, *text]}])


def test_conversations_that_make_no_sense(address: str) -> None:
    picture = shown(data_url(questions(1)[0][0]))[0]["content"][0]
    user = {"role": "user", "content": "what?"}
    assert "last message" in refused(address, [user, {"role": "assistant", "content": "yes"}])
    assert "user's messages" in refused(address, [{"role": "system", "content": [picture]}, user])


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b"{", "application/json"),
        (400, b"[" * 100_000, "application/json"),
        (400, b'{"model": "plan", "messages": [' + b"{}," * 100_000 + b"{}]}", "application/json"),
        (415, json.dumps({"model": "plan", "messages": MESSAGES}).encode(), "text/plain"),
        (
            404,
            json.dumps({"model": "x" * 5000, "messages": [{"role": "user", "content": "x"}]}).encode(),
            "application/json",
        ),
    ],
)
def test_malformed_bodies(address: str, status: int, body: bytes, kind: str) -> None:
    sent = httpx2.post(f"{address}/v1/chat/completions", content=body, headers={"content-type": kind})
    assert sent.status_code == status and sent.json()["error"]["message"] and len(sent.text) < 1000


def test_places_that_are_not_there(address: str) -> None:
    assert httpx2.get(f"{address}/v1/nothing").status_code == 404
    assert httpx2.get(f"{address}/v1/chat/completions").json()["error"]["code"] == "not_found"
    with pytest.raises(NotFoundError):
        client(address).models.retrieve("nothing")


def test_bad_requests_spoil_no_batch(address: str) -> None:
    """Good and bad ones at once: every good one is answered as alone."""
    good = [Asked.of(picture, prompt) for picture, prompt in questions(16)]
    expected = alone("windowed", plans("windowed")["plan"], good)

    def ask(number: int) -> str:
        if number % 2:
            return create(address, good[number // 2].messages()).choices[0].message.content
        bad = (bomb(9_000, 9_000), "data:,", "http://127.0.0.1/")[number // 2 % 3]
        return refused(address, shown(bad))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(32)))
    assert found[1::2] == expected


def test_more_than_fit_are_told_to_come_back() -> None:
    """Two that send nothing hold both places; they are let go when their time is over."""
    with served(limits=replace(LIMITS, requests=2, seconds=3)) as address:
        host, port = address.removeprefix("http://").split(":")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        idle = [socket.create_connection((host, int(port))) for _ in range(2)]
        for one in idle:
            one.sendall(head + b"Content-Length: 50\r\n\r\n")
        entered = threading.Event()
        while metric(address, "plan_admitted") < 2:
            entered.wait(0.01)
        with pytest.raises(RateLimitError) as full:
            create(address, [{"role": "user", "content": "what?"}])
        assert full.value.response.headers["retry-after"] == "1"
        for one in idle:
            one.settimeout(30)
            assert b" 504 " in one.recv(65536).splitlines()[0]
            one.close()
        assert create(address, [{"role": "user", "content": "what?"}]).choices


def test_the_key_is_asked_for() -> None:
    with served(api_key="sesame") as address:
        for wrong in ("none", "sesame2", ""):
            with pytest.raises((AuthenticationError, httpx2.LocalProtocolError)):
                client(address, api_key=wrong or "sesam").models.list()
        assert httpx2.get(f"{address}/metrics").status_code == 401
        assert httpx2.get(f"{address}/health").status_code == 200
        assert client(address, api_key="sesame").models.list().data
