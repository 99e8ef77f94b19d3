"""Losses of schedules on a tiny model, against one sample at a time, generated step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrate.inputs.batches import Batches
from calibrate.inputs.encode import Encoder, to_device
from calibrate.running.losses import NLL_CAP, LossRunner, cut_off, suited
from calibrate.running.metrics import Metric
from planner.errors import InputError, RuntimeStateError
from planner.policies import parse
from planner.runtime import attach
from planner.schedule import dense
from planner.spec import ModelSpec
from tests.forced import generate as generate_forced
from tests.integration import calibrate_stub as stub
from tests.tiny.configs import IMAGE

TOKENS = 5


@pytest.fixture(scope="module")
def model():
    built = stub.model(dtype=torch.float64, fresh=True)
    built.generation_config.suppress_tokens = [IMAGE]  # an untrained model may answer with one
    return built


@pytest.fixture(scope="module")
def spec(model):
    return ModelSpec.from_config(model.config.to_dict())


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return stub.samples(tmp_path_factory.mktemp("losses"), 7)


@pytest.fixture(scope="module", autouse=True)
def an_end_that_some_answers_reach(model, samples):
    runner = make(model, samples)
    seen = [token for answer in runner.answers() for token in answer.ids[1:3]]
    model.generation_config.eos_token_id = seen[0]
    lengths = {answer.ended for answer in make(model, samples).answers()}
    assert lengths == {True, False}, "the fixture shows both kinds of answer"


def make(model, samples, loss="answer", **options):
    return LossRunner(Batches(samples, Encoder(stub.Processor(), (IMAGE,)), model, 3), loss, TOKENS, **options)


def alone(model, sample, schedule=None, given=None):
    """Logits ``[T, V]`` of one unpadded prompt, step by step, along the given tokens or greedily, and the tokens."""
    inputs = to_device(Encoder(stub.Processor(), (IMAGE,))([sample]), model)
    ends = model.generation_config.eos_token_id
    found, steps = [], [] if given is None else list(given)
    handle = None if schedule is None else attach(model, schedule)
    model.generation_config.eos_token_id = None  # the step after the end is looked at, too
    try:
        for step in range(TOKENS):
            if given is not None and step == len(given):
                break
            before = torch.tensor([steps[:step] or [0]])
            logits = generate_forced(model, inputs, before).logits[step][0]
            found.append(logits)
            if given is None:
                steps.append(int(logits.index_fill(0, torch.tensor([IMAGE]), -torch.inf).argmax()))
                if steps[-1] == ends:
                    break
    finally:
        model.generation_config.eos_token_id = ends
        if handle is not None:
            handle.detach()
    return torch.stack(found), tuple(steps)


@pytest.mark.parametrize(
    "spelling", ["fastv:k=1,ratio=0.75", "visipruner:filter=1,keep=2,exit=3", "random:k=0,ratio=0.9"]
)
def test_losses_are_those_of_each_sample_generated_alone(model, samples, spec, spelling):
    schedule = parse(spelling).schedule(spec)
    answer, tokens, nll = (make(model, samples, loss).losses(schedule) for loss in ("answer", "tokens", "nll"))
    for i, sample in enumerate(samples):
        whole, steps = alone(model, sample)
        _, other = alone(model, sample, schedule)
        assert answer[i] == (steps != other)
        forced, _ = alone(model, sample, schedule, steps)
        assert tokens[i] == pytest.approx((forced.argmax(-1) != whole.argmax(-1)).double().mean())
        chosen = torch.tensor(steps)[:, None]
        nats = (whole.log_softmax(-1) - forced.log_softmax(-1)).gather(1, chosen).mean()
        assert nll[i] == pytest.approx(float(nats.clamp(0, NLL_CAP)) / NLL_CAP, abs=1e-5)
    assert answer.mean() > 0 and 0 < tokens.mean() < 1 and nll.max() > 0.01, "the schedules change something"


def test_losses_along_an_answer_are_what_its_loss_is_made_of(model, samples, spec):
    schedule = parse("fastv:k=1,ratio=0.75").schedule(spec)
    for loss in ("tokens", "nll"):
        runner = make(model, samples, loss)
        along, dense = runner.along(schedule), runner.answers()
        assert [len(one) for one in along] == [len(one.ids) for one in dense]
        assert [runner.of_sample(one) for one in along] == pytest.approx(runner.losses(schedule).tolist())
    for i, sample in enumerate(samples):
        whole, steps = alone(model, sample)
        forced, _ = alone(model, sample, schedule, steps)
        nats = (whole.log_softmax(-1) - forced.log_softmax(-1)).gather(1, torch.tensor(steps)[:, None])[:, 0]
        assert along[i] == pytest.approx(nats.double().numpy(), abs=1e-5)


def test_a_subset_gives_the_same_losses_and_dense_loses_nothing(model, samples, spec):
    schedule = parse("fastv:k=1,ratio=0.75").schedule(spec)
    for loss in ("answer", "tokens", "nll"):
        runner = make(model, samples, loss)
        some = runner.losses(schedule, [5, 0, 6, 2])
        np.testing.assert_allclose(some, runner.losses(schedule)[[5, 0, 6, 2]], atol=1e-6)
        assert not runner.losses(dense(spec.layers)).any()
        assert runner.binary == (loss == "answer") and len(runner) == 7


def test_the_score_may_rise_as_well_as_fall(model, samples, spec):
    schedule = parse("fastv:k=1,ratio=0.9").schedule(spec)
    truth = make(model, samples)
    before, after = truth.answers(), truth.answers(schedule)

    def parity(answer, accepted):
        return len(answer) % 2

    found = make(model, samples, "score", metric=Metric("parity", parity)).losses(schedule)
    expected = [len(a.text) % 2 - len(b.text) % 2 for a, b in zip(before, after, strict=True)]
    assert found.tolist() == expected


def test_accuracy_needs_answers(model, tmp_path):
    bare = stub.samples(tmp_path, 3, answer=None)
    with pytest.raises(InputError, match="3 of 3 samples have no accepted answer"):
        make(model, bare, "score")


def test_dense_runs_once_whatever_the_loss(model, samples, spec, monkeypatch):
    runs = []
    original = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda self, **k: runs.append(1) or original(self, **k))
    runner = make(model, samples, "tokens")
    schedule = parse("fastv:k=1,ratio=0.5").schedule(spec)
    runner.losses(schedule)
    runner.losses(schedule, [0, 1])
    runner.judged_by("nll").losses(schedule)
    assert len(runs) == 3, "three batches of dense answers; what is forced generates nothing"


def test_a_refused_schedule_loses_everything_and_says_why(model, samples, spec, monkeypatch):
    runner = make(model, samples, "tokens")
    schedule = parse("fastv:k=1,ratio=0.5").schedule(spec)

    def refuse(*_, **__):
        raise RuntimeStateError("the window does not reach the image", "Choose another")

    monkeypatch.setattr("calibrate.running.execute.attach", refuse)
    assert runner.losses(schedule).tolist() == [1.0] * 7 and runner.losses(schedule, [4]).tolist() == [1.0]
    assert runner.refusals == ["the window does not reach the image"]


def test_a_loss_fits_the_length_of_answers(model, samples):
    answers = make(model, samples).answers()
    assert suited([one for one in answers if one.length <= 4]) == "answer"
    assert suited([one for one in answers if not one.ended]) == "tokens", f"{TOKENS} tokens are more than 4"


def test_answers_that_were_cut_off_are_told(model, samples):
    answers = make(model, samples).answers()
    open_ended = sum(not one.ended for one in answers)
    (note,) = cut_off(answers, TOKENS)
    assert note.startswith(f"{open_ended / 7:.0%} of the dense model's answers did not end within {TOKENS} tokens")
    assert cut_off([one for one in answers if one.ended], TOKENS) == []
