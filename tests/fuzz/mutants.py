"""Mutants of a file: bytes that flip, go missing or come twice, and JSON with values that nobody expects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

#: Values that have broken readers somewhere.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(
        "",
        " ",
        "0",
        "\0",
        "\ud800",
        "../..",
        "\x1b[31m",
        "=1+1",
        "$x$",
        "é" * 50,
        "x" * 5000,
        "full_attention",
        "llama",
    ),
    *([], {}, [[]], [None], [1, 2, 3], [-1], ["x"], {"x": 1}, {"": None}, [[1, 2], [3]], [1e308] * 3, [{}], [10**400]),
)
#: Texts that are not JSON, or should not be.
RAW = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "[" * 3000 + "]" * 3000,
    '{"a":' * 500 + "1" + "}" * 500,
    "1" * 5000,
    '"\\ud800"',
)
_MARK = "@@raw@@"


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few places changed."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("flip", "set", "cut", "drop", "insert", "twice", "zero"))):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from(b'\x00\xff"{}[],:0-9eE\\'))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "twice":
                data[at:at] = data[at : at + draw(st.integers(1, 256))]
            case _:
                data[at : at + 8] = b"\0" * 8
    return bytes(data)


@st.composite
def rewritten(draw: st.DrawFn, content: Any, seal: Callable[[Any], Any] = lambda body: body) -> bytes:
    """JSON text with a few values exchanged, removed or added; `seal` sets a digest that fits."""
    body = json.loads(json.dumps(content))
    raw = None
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(body))
        holder, key = places[draw(st.integers(0, len(places) - 1))] if places else ([body], 0)
        match draw(st.sampled_from(("odd", "odd", "odd", "drop", "add", "swap", "nudge", "raw"))):
            case "drop":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(("x", "", "model_type", "schema_version")))] = copy.deepcopy(
                    draw(st.sampled_from(ODD))
                )
            case "swap":
                other, name = places[draw(st.integers(0, len(places) - 1))]
                if isinstance(other, dict) and name in other:
                    holder[key] = json.loads(json.dumps(other[name]))
            case "nudge" if isinstance(holder[key], (int, float)):
                holder[key] = holder[key] * draw(st.sampled_from((-1, 2, 1000, 0.5)))
            case "raw":
                holder[key], raw = _MARK, draw(st.sampled_from(RAW))
            case _:
                # A copy: the next change may be inside it.
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    text = json.dumps(seal(body))
    return (text if raw is None else text.replace(f'"{_MARK}"', raw)).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Every key of every object and every index of every list."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
