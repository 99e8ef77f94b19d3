"""A model with a schedule attached gives the logits of the slow reference, in the prefill and in every decode step.

By default five unlike families meet every schedule and the others every fifth, kernels and kinds of batch taking turns;
``FULL_MATRIX=1`` runs the whole product, families x schedules x kernels x batches.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

from planner.runtime import attach
from planner.schedule import Schedule
from tests import tiny
from tests.forced import continuation, logits
from tests.reference import run
from tests.schedules import LAYERS, PACKED, SCHEDULES

#: Families outside the runtime's contract: cross-attention.
REFUSED = ("mllama",)
#: Llama 4 ranks after its layers with full attention only: `test_families_equality` has it.
FAMILIES = [family for family in tiny.VISION if family not in (*REFUSED, "llama4")]
BATCHES: dict[str, dict[str, Any]] = {
    "single": {},
    "two images": {"images": 2},
    "left-padded": {"batch": 2, "left_pad": 3},
    "ragged": {"batch": 2, "left_pad": 2, "ragged": True},
}
#: Plain; sliding windows with bidirectional blocks; deepstack with multi-axis rotary positions; a bidirectional prefix;
#: capped scores and logits.
THOROUGH = ("llava", "gemma3", "qwen3_vl", "paligemma", "paligemma2")
#: Rows that break a picture's lines are equal tokens: ties of an order.
ALSO = (("llava_onevision", "cdpruner"),)
TOLERANCE = 1e-10


def matrix() -> list[tuple[str, str, str, str]]:
    """(family, schedule, kernel, batch)."""
    if os.environ.get("FULL_MATRIX"):
        return list(itertools.product(FAMILIES, SCHEDULES, ("sdpa", "eager"), BATCHES))
    modes = list(itertools.product(("sdpa", "eager"), reversed(BATCHES)))
    pairs = itertools.product(enumerate(FAMILIES), enumerate(SCHEDULES))
    chosen = [
        ((f, family), (s, name))
        for (f, family), (s, name) in pairs
        if family in THOROUGH or (f + s) % 5 == 0 or (family, name) in ALSO
    ]
    # Coprime strides, so that over families every schedule meets every mode and the other way round.
    return [(family, name, *modes[(3 * f + s) % len(modes)]) for (f, family), (s, name) in chosen]


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    assert len(found) == len(expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("family", "name", "attn", "batch"), matrix())
def test_logits_equal_the_reference(family: str, name: str, attn: str, batch: str) -> None:
    check_equal(family, SCHEDULES[name], attn, batch)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma", "llava_next"])
def test_packed_positions_equal_the_reference(family: str, name: str, batch: str) -> None:
    check_equal(family, PACKED[name], "sdpa", batch)


def check_equal(family: str, schedule: Schedule, attn: str, batch: str) -> None:
    model = tiny.model(family, attn=attn, layers=LAYERS)
    inputs = tiny.inputs(family, **BATCHES[batch])
    generated = continuation(len(inputs["input_ids"]))
    outcome = run(model, inputs, schedule, generated)
    handle = attach(model, schedule)
    try:
        found = logits(model, inputs, generated)
    finally:
        handle.detach()
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE
