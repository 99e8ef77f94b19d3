"""The slow reference against itself and the plain model: what it must get right before it may judge the runtime."""

from __future__ import annotations

import pytest
import torch

from planner.schedule import Count, Schedule, Select, Stage, dense
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.reference import run

#: Cross-attention keeps the image out of the decoder's sequence, and Llama 4 tunes queries by cache position.
FAMILIES = [family for family in tiny.VISION if family not in ("mllama", "llama4")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_schedule_is_the_plain_model(family: str) -> None:
    """Prefill and decode steps of a ragged left-padded batch, as `generate` runs them."""
    model, inputs = tiny.model(family), tiny.inputs(family, batch=2, left_pad=3, ragged=True)
    generated = continuation(2)
    outcome = run(model, inputs, dense(4), generated)
    found = logits(model, inputs, generated)
    expected = [outcome.prefill, *outcome.steps]
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-12


def test_dropping_everything_is_a_prompt_without_an_image() -> None:
    """Dropped at the entry in front of the text, visual tokens leave no trace: rotary attention sees differences."""
    model = tiny.model("llava")
    inputs = tiny.inputs("llava", system=0)
    entry = Select(rank_by="random", keep=Count(count=0))
    outcome = run(model, inputs, Schedule(stages=(Stage(first=0, last=4),), entry=entry), continuation(1))
    text = {name: inputs[name][:, 16:] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), float64_throughout():
        plain = model(**text).logits[:, -1]
    assert (outcome.prefill - plain).abs().max() < 1e-12


def test_every_token_kept_changes_nothing() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava")
    everything = Select(rank_by="last_attention", keep=Count(count=16))
    stage = Stage(first=0, last=2, cache_visual="kept", selects=(everything,))
    kept = run(model, inputs, Schedule(stages=(stage, Stage(first=2, last=4))), continuation(1))
    plain = run(model, inputs, dense(4), continuation(1))
    assert torch.equal(kept.logits, plain.logits)


def test_a_selection_bites() -> None:
    """If dropping tokens did not change the logits, the equality tests would prove nothing."""
    model, inputs = tiny.model("llava"), tiny.inputs("llava")
    plain = run(model, inputs, dense(4), continuation(1))
    for rank_by in ("random", "last_attention", "influence_l2"):
        stage = Stage(first=0, last=2, selects=(Select(rank_by=rank_by, keep=Count(count=4)),))
        outcome = run(model, inputs, Schedule(stages=(stage, Stage(first=2, last=4))), continuation(1))
        assert (outcome.prefill - plain.prefill).abs().max() > 1e-3
        assert [int(alive.sum()) for alive in outcome.alive] == [26, 26, 14, 14, 14]
