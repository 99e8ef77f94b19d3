"""Random schedules, combinations nobody would choose: runtime equals reference, cost equals counter, all the same."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule
from tests import tiny
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import BATCH, cache_bytes, next_token
from tests.integration.test_runtime_counted import WIDE, predicted
from tests.integration.test_runtime_equality import BATCHES, FAMILIES, TOLERANCE, difference
from tests.reference import run
from tests.schedules import EDIT, LAYERS, static
from tests.strategies import schedules

EXAMPLES = int(os.environ.get("RANDOM_SCHEDULES", "20"))
quiet = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # shrinking takes minutes; an example is small enough to read
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@quiet
@given(
    schedules(LAYERS, EDIT),
    st.sampled_from(FAMILIES),
    st.sampled_from(sorted(BATCHES)),
    st.sampled_from(["sdpa", "eager"]),
)
def test_logits_equal_the_reference(schedule: Schedule, family: str, batch: str, attn: str) -> None:
    model, inputs = tiny.model(family, attn=attn, layers=LAYERS), tiny.inputs(family, **BATCHES[batch])
    generated = continuation(len(inputs["input_ids"]), steps=2)
    outcome = run(model, inputs, schedule, generated)
    with attach(model, schedule):
        found = logits(model, inputs, generated)
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE


@quiet
@given(schedules(LAYERS, EDIT), st.sampled_from(FAMILIES), st.sampled_from(["sdpa", "eager"]))
def test_predicted_equals_executed(schedule: Schedule, family: str, attn: str) -> None:
    assume(static(schedule))
    # These workloads do not say what images they are of.
    assume(schedule.entry is None or schedule.entry.per == "prompt")
    model = tiny.model(family, attn=attn, layers=LAYERS, window=WIDE)
    inputs = tiny.inputs(family, batch=BATCH)
    expected = predicted(model, family, inputs, schedule)
    with attach(model, schedule), torch.no_grad():
        with FlopCounter() as prefill:
            output = model(**inputs, use_cache=True, logits_to_keep=1)
        held = cache_bytes(output.past_key_values)
        with FlopCounter() as decode:
            model(**next_token(family, inputs, output))
    assert prefill.total == expected.prefill_flops
    assert held == expected.kv_cache_bytes
    assert decode.total == BATCH * expected.decode_flops_per_token
