"""`python -m tests.compatibility` on the installed release, for the kinds of layers that its checks must tell apart."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.compatibility.checks import generation, predicted

#: Chunks shorter than a prompt, states without keys, and pictures that are filled up.
FAMILIES = [name for name in ("llama4", "qwen3_5", "lfm2_vl") if tiny.transformers_has(name)]


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_every_kind_of_layer(family: str) -> None:
    assert predicted(family).status == "ok"


@pytest.mark.skipif("lfm2_vl" not in FAMILIES, reason="this release of transformers has no lfm2_vl")
def test_convolutions_take_tokens_back() -> None:
    """Assisted decoding among others: it asks for that before the prompt, whose cache a plan makes anew."""
    assert generation("lfm2_vl").status == "ok"
