"""Further families that a plan can be attached to: logits of the slow reference, and FLOPs that are executed.

Three unlike schedules each, kernels and kinds of batch taking turns; ``FULL_MATRIX=1`` runs the whole product for those
whose layers are unlike any of the core matrix: recurrent layers, inputs per layer, keys of other layers.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from planner.cost import cost
from planner.errors import PlannerError
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec
from tests import tiny
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import BATCH, workload_of
from tests.integration.test_runtime_equality import BATCHES, TOLERANCE, difference
from tests.reference import run
from tests.schedules import LAYERS, ON_HYBRIDS, SCHEDULES, static
from tests.tiny.extra import EXTRA

#: Families with layers, attention or inputs that the runtime refuses by name.
REFUSED = (
    "blip-2", "ernie4_5_vl_moe", "granite4_vision", "instructblip", "instructblipvideo", "janus", "kimi_k25",
    "kosmos-2", "kosmos-2.5", "minimax_m3_vl", "mistral_large4", "step3p7", "unlimited_ocr",
)  # fmt: skip
ATTACHED = [name for name in ("llama4", *EXTRA) if name not in REFUSED and tiny.transformers_has(name)]
#: Most layers keep a state: linear attention, short convolutions.
HYBRIDS = ("lfm2_vl", "lfm3_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "qwen3_5", "qwen3_5_moe")
CHOSEN = ("visipruner", "fastv", "prefix-mixed")
CHOSEN_HYBRID = ("hybrid-visipruner", "hybrid-fastv", "hybrid-entry")
#: Layers 4 and 5 read the keys and values of layers 3 and 2.
SHARING = ("gemma3n-sharing", "gemma4-sharing")
CHOSEN_SHARING = ("hybrid-visipruner", "hybrid-fastv", "pyramiddrop")


def schedules_of(name: str) -> dict[str, Schedule]:
    """What a family runs: three schedules, or everything."""
    able, chosen = (ON_HYBRIDS, CHOSEN_HYBRID) if name in HYBRIDS else (SCHEDULES, CHOSEN)
    if name in SHARING:
        both = {**SCHEDULES, **ON_HYBRIDS}
        able, chosen = {key: schedule for key, schedule in both.items() if leaves_lenders(schedule)}, CHOSEN_SHARING
    if not thorough(name):
        return {key: able[key] for key in chosen}
    gridded = "image_grid_thw" in tiny.inputs(name)
    return {key: schedule for key, schedule in able.items() if gridded or not needs_grid(schedule)}


def leaves_lenders(schedule: Schedule) -> bool:
    """From layer 2 on visual rows are in the main stream, and layers 2 and 3 cache them."""
    return all(
        stage.last <= 2
        or not (
            stage.isolated
            or any(select.probe for select in stage.selects)
            or (stage.first <= 3 and stage.cache_visual == "none")
        )
        for stage in schedule.stages
    )


def thorough(name: str) -> bool:
    """The family meets the whole product."""
    return bool(os.environ.get("FULL_MATRIX")) and name in (*HYBRIDS, *SHARING, "gemma3n", "gemma4")


def needs_grid(schedule: Schedule) -> bool:
    """It asks how tokens lie in their picture."""
    entry = schedule.entry
    return entry is not None and (entry.rank_by == "grid" or entry.per != "prompt")


def matrix() -> list[tuple[str, str, str, str]]:
    """(family, schedule, kernel, batch)."""
    modes = list(itertools.product(BATCHES, ("sdpa", "eager")))
    found = []
    for number, name in enumerate(ATTACHED):
        if thorough(name):
            found += [(name, key, attn, batch) for key in schedules_of(name) for batch, attn in modes]
            continue
        for turn, key in enumerate(schedules_of(name), number):
            batch, attn = list(BATCHES)[turn % len(BATCHES)], ("sdpa", "eager")[turn % 2]
            found.append((name, key, attn, batch))
    return found


@pytest.mark.parametrize(("name", "schedule", "attn", "batch"), matrix())
def test_logits_equal_the_reference(name: str, schedule: str, attn: str, batch: str) -> None:
    wanted = {**SCHEDULES, **ON_HYBRIDS}[schedule]
    model = tiny.model(name, attn=attn, layers=LAYERS).requires_grad_(False)
    inputs = tiny.inputs(name, **BATCHES[batch])
    generated = continuation(len(inputs["input_ids"]))
    outcome = run(model, inputs, wanted, generated)
    handle = attach(model, wanted)
    try:
        found = logits(model, inputs, generated)
    finally:
        handle.detach()
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE


def counted() -> list[tuple[str, str]]:
    """(family, schedule)."""
    return [(name, key) for name in ATTACHED for key, schedule in schedules_of(name).items() if static(schedule)]


@pytest.mark.parametrize(("name", "schedule"), counted())
def test_counted_is_predicted(name: str, schedule: str) -> None:
    wanted = {**SCHEDULES, **ON_HYBRIDS}[schedule]
    model = tiny.model(name, layers=LAYERS).requires_grad_(False)
    inputs = tiny.inputs(name, batch=BATCH)
    processor = EXTRA[name].processor if name in EXTRA else None
    spec = ModelSpec.from_config(model.config.to_dict(), {"image_processor": processor or {}})
    expected = cost(spec, workload_of(name, spec, inputs), wanted, head="all")
    with attach(model, wanted), torch.no_grad(), FlopCounter() as counter:
        model(**inputs)
    assert counter.total == expected.prefill_flops


@pytest.mark.parametrize("name", [name for name in REFUSED if tiny.transformers_has(name)])
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(PlannerError, match=rf"{name}|layer"):
        attach(tiny.model(name), dense(4))
