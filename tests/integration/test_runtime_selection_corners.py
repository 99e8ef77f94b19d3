"""Selections inside the shallow stage, where image streams end, and after a merge, where the cache holds one token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.cost import cost
from planner.runtime import ImageCache, attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule, Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation
from tests.forced import logits as forced_logits
from tests.integration.test_cost_counted import BATCH, cache_bytes, workload_of
from tests.integration.test_runtime_equality import TOLERANCE, difference
from tests.reference import run
from tests.schedules import LAYERS, select

#: Visual tokens see only themselves in layers 0 to 3; after layer 1 the question chooses among them.
STAIRS = Schedule(
    stages=(
        Stage(first=0, last=2, visual_attention="self", selects=(select("last_attention", 5),)),
        Stage(first=2, last=4, visual_attention="self"),
        Stage(first=4, last=LAYERS),
    )
)


def last_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), float64_throughout():
        return model(**inputs, logits_to_keep=1).logits


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen3_vl"])
def test_a_cached_image_stream_ends_where_the_question_chooses(family: str) -> None:
    """Other questions keep other tokens: what the first one kept must not be taken for the second's."""
    model, cache = tiny.model(family, layers=LAYERS), ImageCache()
    questions = [tiny.inputs(family, text=text) for text in (7, 11, 16)]
    expected, kept = [], []
    for inputs in questions:
        with attach(model, STAIRS) as handle:
            expected.append(last_logits(model, inputs))
            kept.append(handle.kept)
    assert kept[0] != kept[1], "the questions choose alike: nothing is tested"
    with attach(model, STAIRS, image_cache=cache):
        found = [last_logits(model, inputs) for inputs in questions]
    assert cache.hits == len(questions) - 1
    assert difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_the_cost_of_a_second_question_counts_the_layers_behind_the_choice(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = workload_of(family, spec, inputs).model_copy(update={"image_stream_cached": True})
    with attach(model, STAIRS, image_cache=ImageCache()), torch.no_grad():
        model(**inputs, logits_to_keep=1)
        with FlopCounter() as counter:
            model(**inputs, logits_to_keep=1)
    assert counter.total == cost(spec, workload, STAIRS).prefill_flops


#: The text reads one visual token for all in layers 0 to 2, and five go on: the cache holds the one, never the five.
MERGED = Schedule(
    stages=(
        Stage(
            first=0,
            last=3,
            visual_attention="self",
            text_to_visual="merge",
            cache_visual="kept",
            selects=(select("influence_l2", 5),),
        ),
        Stage(first=3, last=LAYERS),
    )
)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [{}, {"batch": 2, "left_pad": 2, "ragged": True}], ids=["single", "ragged"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_a_selection_after_a_merge_leaves_the_merged_token_in_the_cache(
    family: str, batch: dict[str, Any], attn: str
) -> None:
    model, inputs = tiny.model(family, attn=attn, layers=LAYERS, window=256), tiny.inputs(family, **batch)
    generated = continuation(len(inputs["input_ids"]))
    outcome = run(model, inputs, MERGED, generated)
    with attach(model, MERGED):
        found = forced_logits(model, inputs, generated)
        with torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE
    assert [layer.keys.shape[2] for layer in cache.layers] == [int(held.sum(1).max()) for held in outcome.cached]


def test_the_cache_after_a_merge_is_as_large_as_predicted() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("llava", spec, inputs), MERGED)
    with attach(model, MERGED), torch.no_grad(), FlopCounter() as counter:
        output = model(**inputs, use_cache=True, logits_to_keep=1)
    assert counter.total == expected.prefill_flops
    assert cache_bytes(output.past_key_values) == expected.kv_cache_bytes
