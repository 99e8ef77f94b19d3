"""`python -m tests.compatibility` on the installed release, for the kinds of layers that its checks must tell apart."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.compatibility.checks import generation, predicted

#: Chunks shorter than a prompt, states without keys, pictures that are filled up, keys of others.
FAMILIES = [name for name in ("llama4", "qwen3_5", "lfm2_vl", "gemma3n-sharing") if tiny.transformers_has(name)]


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_every_kind_of_layer(family: str) -> None:
    assert predicted(family).status == "ok"


@pytest.mark.parametrize("family", [name for name in ("lfm2_vl", "gemma3n-sharing") if name in FAMILIES])
def test_convolutions_and_layers_without_keys_take_tokens_back(family: str) -> None:
    """Assisted decoding among others: it asks for that before the prompt, whose cache a plan makes anew."""
    assert generation(family).status == "ok"
