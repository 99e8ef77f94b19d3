"""Passes that go on from kept states against the slow reference, and bisected curves against whole ones."""

from __future__ import annotations

import pytest
import torch

from calibrate.probes.masking.curves import CURVES, point_of, points_of
from calibrate.probes.masking.replay import Replay
from planner.schedule import Count, Schedule, Select, Stage
from tests import tiny
from tests.float64 import float64_throughout
from tests.reference import run

LAYERS = 4
#: Plain; sliding windows with bidirectional blocks; deepstack with multi-axis positions; a bidirectional prefix; capped
#: scores; several images per row.
FAMILIES = ("llava", "gemma3", "qwen3_vl", "qwen2_vl", "paligemma", "paligemma2", "mistral3", "internvl")
BATCHES = {"single": {}, "padded": {"batch": 3, "left_pad": 2, "ragged": True}, "two images": {"batch": 2, "images": 2}}


def dense_to_the_end(*stages):
    last = stages[-1].last
    return Schedule(stages=(*stages, *((Stage(first=last, last=LAYERS),) if last < LAYERS else ())))


def before(k, visual, text):
    cached = "none" if text == "none" else "all"
    return dense_to_the_end(Stage(first=0, last=k, visual_attention=visual, text_to_visual=text, cache_visual=cached))


def merged(k):
    first = Stage(first=0, last=1, visual_attention="self", text_to_visual="merge", cache_visual="none")
    rest = Stage(first=1, last=max(k, 2), visual_attention="self", text_to_visual="none", cache_visual="none")
    return dense_to_the_end(first, *([rest] if k > 1 else []))


def dropped(k):
    if k == 0:
        return before(LAYERS, "full", "none")
    nothing = Select(rank_by="none", keep=Count(count=0))
    return dense_to_the_end(Stage(first=0, last=k, selects=(nothing,)))


def skipped(k):
    dense = [Stage(first=0, last=k)] if k else []
    return dense_to_the_end(*dense, Stage(first=k, last=k + 1, text_to_visual="none", cache_visual="none"))


#: What each curve means as a schedule that a plan could execute.
MEANT = {
    "prefix_before": lambda k: before(k, "prefix", "none"),
    "prefix_open_before": lambda k: before(k, "prefix", "full"),
    "alone_before": lambda k: before(k, "self", "none"),
    "self_before": lambda k: before(k, "self", "full"),
    "merged_before": merged,
    "masked_before": lambda k: before(k, "full", "none"),
    "masked_from": dropped,
    "skipped": skipped,
}


def expected(model, inputs, schedule):
    """Log-probabilities of the first answer token by the slow reference."""
    nothing = torch.zeros(len(inputs["input_ids"]), 0, dtype=torch.long)
    return run(model, inputs, schedule, nothing).prefill.log_softmax(-1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_of_every_curve_is_what_its_schedule_means(family, batch):
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, **BATCHES[batch])
    count = len(inputs["input_ids"])
    with float64_throughout(), Replay(model, inputs) as replay:
        found = {}
        for name in CURVES:
            execute = point_of(name, replay)
            found[name] = {k: execute(k, range(count)) for k in points_of(name, LAYERS)}
    assert set(MEANT) == set(found)
    for name, points in found.items():
        for k, logits in points.items():
            wanted = expected(model, inputs, MEANT[name](k))
            assert float((logits - wanted).abs().max()) < 1e-9, (name, k)
