"""Passes that go on from kept states against the slow reference, and bisected curves against whole ones."""

from __future__ import annotations

import pytest
import torch

from calibrate.probes.masking.curves import CURVES, point_of, points_of
from calibrate.probes.masking.replay import Replay
from calibrate.probes.masking.sight import Sight
from calibrate.running.execute import first_logits
from planner.errors import RuntimeStateError
from planner.runtime import attach
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


def rows_run(model, action):
    """Rows and samples that each decoder layer and the vision tower run during an action."""
    seen, hooks = [], []
    for index, layer in enumerate(model.get_decoder().layers):

        def look(_, args, kwargs, index=index):
            hidden = args[0] if args else kwargs["hidden_states"]
            seen.append((index, *hidden.shape[:2]))

        hooks.append(layer.mlp.register_forward_pre_hook(look, with_kwargs=True))
    tower = model.model.vision_tower.register_forward_pre_hook(lambda *_: seen.append("vision"))
    try:
        action()
    finally:
        for hook in (*hooks, tower):
            hook.remove()
    return seen


def test_nothing_is_computed_twice():
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=3, left_pad=2)
    length = inputs["input_ids"].shape[1]
    text = 7  # after the image, in every sample
    hidden, alone = Sight(text="none"), Sight("self", "none")
    with Replay(model, inputs) as replay:
        assert replay.shared and replay.states.start == length - text
        found = rows_run(model, lambda: replay.go_on(replay.states, 2, [None, None, hidden, None], samples=[0, 2]))
        assert found == [(2, 2, text), (3, 2, text)]
        assert rows_run(model, lambda: replay.rule([hidden] * LAYERS)) == [(n, 3, text) for n in range(LAYERS)]
        states = replay.rule([alone] * LAYERS)[1]
        assert rows_run(model, lambda: replay.go_on(states, 3)) == [(3, 3, length)]


@pytest.mark.parametrize(
    ("family", "shared"), [("llava", True), ("gemma3", True), ("paligemma", False), ("qwen3_vl", False)]
)
def test_rows_before_the_question_are_shared_where_they_stand_by_themselves(family, shared):
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=3, left_pad=2)
    dense = first_logits(model, inputs)
    with float64_throughout(), Replay(model, inputs) as replay:
        assert replay.shared is shared
        again = replay.go_on(replay.states, 1)
        assert float((replay.dense - again).abs().max()) < 1e-9
        some = replay.go_on(replay.states, 2, samples=[2, 0])
        assert float((replay.dense[[2, 0]] - some).abs().max()) < 1e-9
    assert torch.equal(first_logits(model, inputs), dense), "the model is as it was"


def test_the_model_is_put_back_after_an_error():
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    dense, names = first_logits(model, inputs), [sorted(vars(layer)) for layer in model.get_decoder().layers]
    with pytest.raises(ZeroDivisionError), Replay(model, inputs):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="Input image size"):
        Replay(model, {**inputs, "pixel_values": inputs["pixel_values"][:, :, :6]}).__enter__()
    assert [sorted(vars(layer)) for layer in model.get_decoder().layers] == names
    assert torch.equal(first_logits(model, inputs), dense)


def test_a_plan_in_place_is_refused():
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with attach(model, dropped(2)), pytest.raises(RuntimeStateError, match="a plan is attached"):
        Replay(model, inputs).__enter__()
