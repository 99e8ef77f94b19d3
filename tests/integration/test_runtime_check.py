"""A prediction beside two counters, component by component, and that a wrong prediction is called wrong."""

from __future__ import annotations

import pytest

from calibrate.running.check import COUNTED_PARTS, Check, check
from planner.spec import ModelSpec
from tests import tiny
from tests.integration.test_cost_counted import BATCH, workload_of
from tests.schedules import LAYERS, SCHEDULES, static

NAMES = [name for name, schedule in SCHEDULES.items() if static(schedule)]

#: Families in which tracing finds every layer used.
TRACED = ("internvl", "paligemma", "smolvlm")


def checked(family: str, *names: str, head: str = "last", **changes: int) -> list[Check]:
    model, inputs = tiny.model(family, layers=LAYERS, window=256), tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = workload_of(family, spec, inputs).model_copy(update=changes)
    return check(model, inputs, workload, [(name, SCHEDULES[name]) for name in names], head)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", TRACED)
def test_both_counters_equal_the_prediction_in_every_component(family: str) -> None:
    """Shallow stages, selections before and after layers, a probe; the other schedules in turns."""
    turns = NAMES[TRACED.index(family) :: 3 * len(TRACED)]
    for found in checked(family, *dict.fromkeys(("prellm-visipruner", "probe", *turns))):
        assert tuple(found.predicted) == COUNTED_PARTS and min(found.predicted.values()) > 0
        assert found.torch == found.predicted, found.policy
        assert found.torch_equal
        if any(select.probe for select in SCHEDULES[found.policy].selects):
            assert found.fvcore is None and found.fvcore_equal is None and "probes" in found.note
        elif found.policy == "prefix-late":  # its visual tokens run through the last layer for nobody
            assert found.fvcore is not None and found.fvcore_equal is False and "no output depends on" in found.note
            assert all(found.fvcore[name] <= found.predicted[name] for name in COUNTED_PARTS)
        else:
            assert found.fvcore == found.predicted and found.fvcore_equal and not found.note


def test_selections_before_the_decoder_are_counted_where_they_run() -> None:
    """Those that multiply: inside the text tower, and beside its FFN."""
    dense, *found = checked("internvl", "dense", "dart", "cdpruner", "merge-nearest")
    for one in found:
        assert one.torch_equal and one.fvcore_equal, one.policy
        assert one.torch["vision"] == dense.torch["vision"]


@pytest.mark.parametrize("family", ["llava", "qwen3_vl_moe", "gemma3", "aya_vision"])
def test_torch_equals_the_prediction_where_tracing_falls_short(family: str) -> None:
    for found in checked(family, "dense", "visipruner"):
        assert found.torch == found.predicted, found.policy
        if family == "gemma3":
            assert found.fvcore is None and "cannot trace this model" in found.note
        elif family == "llava":
            assert found.fvcore is not None and not found.fvcore_equal and "no output depends on" in found.note
            assert {**found.fvcore, "vision": 0} == {**found.predicted, "vision": 0}


def test_the_head_on_all_positions() -> None:
    last, everywhere = (checked("internvl", "dense", head=head)[0] for head in ("last", "all"))
    assert everywhere.torch_equal and everywhere.fvcore_equal
    assert everywhere.torch["lm_head"] > last.torch["lm_head"]
    assert {**everywhere.torch, "lm_head": 0} == {**last.torch, "lm_head": 0}


def test_a_wrong_prediction_is_called_wrong() -> None:
    """One text token more than the prompt has."""
    (found,) = checked("internvl", "dense", text_tokens=8)
    assert not found.torch_equal and found.fvcore_equal is False
    assert found.torch["vision"] == found.predicted["vision"] and found.torch["ffn"] < found.predicted["ffn"]
