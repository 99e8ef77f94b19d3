"""Which requests are understood."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from planner.serving.limits import Refused
from planner.serving.protocol import read_request

MESSAGES = [{"role": "user", "content": "hello"}]


def read(values: int = 10_000, **fields: Any) -> Any:
    return read_request(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode(), values)


def test_what_clients_send_is_read() -> None:
    asked = read(max_completion_tokens=5, max_tokens=9, stop="x", temperature=None, tools=None, user="me", n=1)
    assert (asked.limit, asked.stops, asked.temperature, asked.stream) == (5, ("x",), 0.0, False)


def test_an_answer_goes_back_as_it_came() -> None:
    returned = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [], "tool_calls": None}
    asked = read(messages=[*MESSAGES, returned, *MESSAGES])
    assert [one.role for one in asked.messages] == ["user", "assistant", "user"]


def test_pictures_are_found_in_order() -> None:
    def picture(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}

    content = [picture("a"), {"type": "text", "text": "and"}, picture("b")]
    assert read(messages=[{"role": "user", "content": content}, *MESSAGES]).urls == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "tool_calls"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused) as refused:
        read(**fields)
    assert refused.value.status == 400 and named in refused.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5_000, b'{"model": "m"}', b'{"a":' * 3_000 + b"1" + b"}" * 3_000],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_request(body, 10_000)
    assert refused.value.status == 400 and len(refused.value.message) <= 500


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b"{}," * 300_000 + b"{}]}",
        b'{"model":"m",' + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}",
        b'{"model":"m","metadata":{' + b",".join(b'"%d":"1"' % n for n in range(300_000)) + b"}}",
    ],
)
def test_a_body_of_many_values_makes_no_objects(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(Refused, match="values"):
        read_request(body, 10_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100_000
