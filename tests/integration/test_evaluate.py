"""Policies and controls on the shipped plain model: what a row holds, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrate.deciding.evaluate import BLIND, evaluate
from calibrate.inputs.batches import Batches
from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.samples import Sample, SampleSet, load_samples
from calibrate.running import controls, forced
from calibrate.running.controls import beyond_floor, blind_answers, floor_answers, floor_losses, floor_name
from calibrate.running.losses import LossRunner
from calibrate.running.metrics import metric
from planner.errors import RuntimeStateError, UnsupportedModelError
from planner.policies import VisiPruner, parse
from planner.schedule import dense

PLAIN, DATA = reference_path("plain"), reference_path("easy_vqa")
PLAN = VisiPruner(filter=3, keep=20, exit=7)


@pytest.fixture(scope="module")
def plain():
    return load(str(PLAIN))


@pytest.fixture(scope="module")
def spec(plain):
    return identify(plain.model, plain.id).spec


@pytest.fixture(scope="module")
def batches(plain):
    encoder = Encoder(plain.processor, identify(plain.model, plain.id).visual_ids)
    return Batches(load_samples(DATA / "evaluation.jsonl").choose(10), encoder, plain.model, 4)


@pytest.fixture(autouse=True)
def half_precision(monkeypatch):
    """Another CPU gives the floor another number format."""
    monkeypatch.setattr(controls, "emulated", lambda device, dtype: False)


def evaluated(runner, spec, **options):
    return evaluate(runner, spec, (PLAN, PLAN.schedule(spec)), rounds=0, **options)


def test_controls_stand_in_the_table_without_being_asked(batches, spec):
    found = evaluated(LossRunner(batches, answer_tokens=4), spec, against=["fastv"])
    assert [row.role for row in found.rows][:4] == ["dense", "plan", "floor", "blind"]
    names = [row.policy.partition(":")[0] for row in found.rows[4:]]
    assert names[0] == "fastv" and "random" in names
    whole, plan, floor, blind = found.rows[:4]
    assert whole.agreement.value == 1 and whole.runaway.value == 0 and whole.loss is None
    assert floor.policy == "dense again, batches of 3, bfloat16" and floor.decoder_flops is None
    assert blind.policy == BLIND and blind.accuracy.value < whole.accuracy.value - 0.3
    assert blind.runaway.value > 0.5, "without a picture this model finds no end"
    assert plan.decoder_flops < whole.decoder_flops
    assert found.metric == "exact" and {kind.kind for kind in found.kinds} == set(found.by_kind["dense"])
    assert sum(kind.agreement.n for kind in found.kinds) == 10


def test_rows_count_what_the_answers_say(batches, spec):
    """Accuracy, agreement and drop counted again from the answers."""
    runner = LossRunner(batches, "score", 4, metric("leading"))
    found = evaluated(runner, spec)
    right = {
        name: [metric("leading")(answer, sample) for answer, sample in zip(answers, batches.samples, strict=True)]
        for name, answers in found.answers.items()
    }
    for row in found.rows:
        assert row.accuracy.value == pytest.approx(sum(right[row.policy]) / 10)
        drop = [a - b for a, b in zip(right["dense"], right[row.policy], strict=True)]
        assert row.loss.value == pytest.approx(sum(drop) / 10)
        same = [a == b for a, b in zip(found.answers["dense"], found.answers[row.policy], strict=True)]
        assert row.agreement.value <= sum(same) / 10


def test_losses_along_the_answer_stand_beside_agreement(batches, spec):
    found = evaluated(LossRunner(batches, "tokens", 4), spec, against=["visipruner:filter=2,keep=1"])
    losses = {row.policy: row.loss for row in found.rows}
    assert losses["dense"].value == 0 and losses[BLIND] is None
    assert 0 <= losses["dense again, batches of 3, bfloat16"].value < 0.1
    assert losses["visipruner:filter=2,keep=1"].value > 0
    along = {row.policy: row.along for row in found.rows}
    assert [(one.first, one.last) for one in along["dense"]] == [(1, 1), (2, 2)], "a word and its end"
    assert not any(one.loss.value for one in along["dense"]) and along[BLIND] == ()
    pruned = along["visipruner:filter=2,keep=1"]
    assert pruned[0].loss.n == 10 and any(one.loss.value > 0 for one in pruned)


def test_the_floor_is_the_dense_model_in_other_batches_and_another_number_format(batches):
    seen = []
    original = type(batches.model).generate

    def generate(self, **kwargs):
        seen.append((len(kwargs["input_ids"]), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return original(self, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(batches.model), "generate", generate)
        found = floor_answers(batches, 4)
    assert seen == [(3, True, torch.bfloat16)] * 3 + [(1, True, torch.bfloat16)]
    truth = LossRunner(batches, answer_tokens=4).answers()
    assert sum(a.text == b.text for a, b in zip(found, truth, strict=True)) >= 9, "in the samples' order"
    assert floor_name(batches) == "dense again, batches of 3, bfloat16"


def test_where_half_precision_is_emulated_the_floor_is_in_other_batches_alone(batches, monkeypatch):
    monkeypatch.setattr(controls, "emulated", lambda device, dtype: (device.type, dtype) == ("cpu", torch.bfloat16))
    monkeypatch.setattr(torch.autocast, "__enter__", lambda self: pytest.fail("autocast") if self._enabled else self)
    monkeypatch.setattr(torch.autocast, "__exit__", lambda self, *error: None)
    assert floor_name(batches) == "dense again, batches of 3"
    truth = LossRunner(batches, answer_tokens=4).answers()
    assert [a.text for a in floor_answers(batches, 4)] == [a.text for a in truth]


def test_the_floor_of_half_precision_weights_keeps_their_format(batches):
    """Autocast cannot mix two half-precision formats."""
    half = load(str(PLAIN), LoadOptions(dtype="bfloat16")).model
    again = Batches(batches.samples, batches.encoder, half, batches.batch_size)
    assert floor_name(again) == "dense again, batches of 3"
    assert len(floor_answers(again, 2)) == len(batches.samples)
    assert floor_losses(LossRunner(again, answer_tokens=2)).mean() <= 0.5


def test_the_floor_s_losses_are_those_of_its_answers(batches):
    """Noise that flips answers: the same samples lose, in their order."""
    bench, again = LossRunner(batches, answer_tokens=4), floor_answers(batches, 4)
    flipped = [forced.Answer("other", answer.ids, True) if i in (2, 7) else answer for i, answer in enumerate(again)]
    original = forced.answers

    def answers(batch, longest, schedule=None, seed=0):
        noisy = torch.is_autocast_enabled("cpu")
        return [flipped[i] for i in batch.ids] if noisy else original(batch, longest, schedule, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibrate.running.losses.answers", answers)
        found = floor_losses(bench)
    truth = bench.answers()
    assert found.tolist() == [
        float((a.text, a.ended) != (b.text, b.ended)) for a, b in zip(flipped, truth, strict=True)
    ]
    assert found[2] == found[7] == 1


def test_less_than_the_floor_is_told(batches, monkeypatch):
    bench = LossRunner(batches, answer_tokens=4)
    monkeypatch.setattr("calibrate.running.controls.floor_losses", lambda _: np.array([0.0, 0.0, 0.0, 1.0]))
    (note,) = beyond_floor(bench, 0.2)
    assert "the dense model loses 0.250 (answer)" in note and "batches of 3, bfloat16" in note
    assert beyond_floor(bench, 0.25) == []


def test_blind_prompts_hold_no_picture(batches, plain):
    seen = []
    original = type(plain.model).generate

    def generate(self, **kwargs):
        seen.append(kwargs)
        return original(self, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(plain.model), "generate", generate)
        blind_answers(batches, 2)
    visual = batches.encoder.visual_ids
    for kwargs in seen:
        assert "pixel_values" not in kwargs and not torch.isin(kwargs["input_ids"], visual).any()
        texts = batches.encoder.tokenizer.batch_decode(kwargs["input_ids"], skip_special_tokens=True)
        assert all("ASSISTANT" in text for text in texts)


def test_a_model_that_needs_a_picture_has_no_blind_row(batches, spec, monkeypatch):
    def without(encoder, samples):
        raise ValueError("no images given\nand more")

    monkeypatch.setattr("calibrate.running.controls._without_pictures", without)
    with pytest.raises(UnsupportedModelError, match=r"takes no prompt without a picture \(ValueError: no images given"):
        blind_answers(batches, 2)
    told = []
    found = evaluated(LossRunner(batches, answer_tokens=2), spec, progress=told.append)
    assert all(row.role != "blind" for row in found.rows) and any("left out no picture" in line for line in told)


def test_beside_a_dense_plan_stand_controls_alone(batches, spec):
    found = evaluate(LossRunner(batches, answer_tokens=2), spec, (parse("dense"), dense(spec.layers)), rounds=0)
    assert [row.role for row in found.rows] == ["dense", "floor", "blind"] and found.kinds == ()


@pytest.fixture
def refusing(monkeypatch):
    """The model refuses to rank by attention, as a sliding window that does not reach the image makes it do."""
    original = forced.generate

    def generate(model, inputs, longest, schedule=None, seed=0):
        if schedule is not None and any(select.rank_by == "last_attention" for select in schedule.selects):
            raise RuntimeStateError("layer 0 does not see the image")
        return original(model, inputs, longest, schedule, seed)

    monkeypatch.setattr(forced, "generate", generate)


def test_what_the_model_refuses_has_no_row(batches, spec, refusing):
    told = []
    found = evaluated(LossRunner(batches, answer_tokens=2), spec, progress=told.append)
    assert not any(row.policy.startswith("fastv") for row in found.rows)
    assert any("left out fastv" in line and "layer 0 does not see the image" in line for line in told)
    policy = VisiPruner(filter=3, keep=5, rank_by="attention")
    with pytest.raises(RuntimeStateError, match="layer 0"):
        evaluate(LossRunner(batches, answer_tokens=2), spec, (policy, policy.schedule(spec)), rounds=0)


def test_a_batch_is_answered_like_its_samples_alone(batches, plain):
    alone = Batches(batches.samples, batches.encoder, plain.model, 1)
    assert LossRunner(alone, answer_tokens=4).answers() == LossRunner(batches, answer_tokens=4).answers()
    assert batches.shapes() == alone.shapes()


def test_samples_without_answers_are_evaluated_by_agreement(batches, spec, plain):
    bare = SampleSet(tuple(Sample(s.images, s.prompt) for s in batches.samples[:4]), "bare")
    found = evaluated(LossRunner(Batches(bare, batches.encoder, plain.model, 4)), spec)
    assert all(row.accuracy is None and row.prefill_ms is None for row in found.rows)
    assert found.rows[0].agreement.value == 1 and found.by_kind == {}
