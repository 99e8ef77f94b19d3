"""What a plan's evidence changes when it is attached: an image cache that it counts on, and a warning it lacks."""

from __future__ import annotations

import logging

import pytest
import torch

from calibrate.inputs.identity import identify
from planner import ImageCache, VisiPruner
from planner.evidence import Evidence, Measured, Row
from planner.plan import Decision, Plan
from planner.policies import Policy, parse
from tests import tiny

LAYERS = 8


@pytest.fixture(scope="module")
def model():
    return tiny.model("llava", layers=LAYERS)


def plan(model, policy: Policy, questions: int = 1, measured: bool = False) -> Plan:
    known = identify(model, "tiny")
    share = Measured(value=1.0, low=0.9, high=1.0, n=8)
    row = Row(
        policy=str(policy), role="plan", accuracy=None, agreement=share, decoder_flops=None, decoder_flops_ratio=None,
        visual_attention_ratio=None, kv_cache_bytes=None, kv_cache_ratio=None, prefill_ms=None,
    )  # fmt: skip
    evidence = Evidence(
        profile_sha256="p", calibration_digest="c", calibration_n=8, evaluation_digest=None, questions=questions,
        rows=(row,) if measured else (),
    )  # fmt: skip
    decision = Decision(policy=str(policy), schedule=policy.schedule(known.spec))
    return Plan(model=known.identity, decision=decision, evidence=evidence).sealed()


def cached(handle) -> ImageCache | None:
    return handle._execution.lookup.cache


SHALLOW = VisiPruner(filter=3, keep=5, exit=6)


def test_a_plan_for_several_questions_has_an_image_cache(model, caplog):
    with plan(model, SHALLOW, questions=3).apply(model) as handle, torch.no_grad():
        for _ in range(2):
            model(**tiny.inputs("llava"))
        assert (cached(handle).misses, cached(handle).hits) == (1, 1)
    assert "3 questions about each image" in caplog.text and "image_cache=None" in caplog.text


@pytest.mark.parametrize("questions, policy", [(1, SHALLOW), (3, parse("prellm:keep=0.5"))], ids=["one", "no stream"])
def test_others_have_none(model, questions, policy, caplog):
    with plan(model, policy, questions).apply(model) as handle:
        assert cached(handle) is None
    assert not caplog.records


def test_what_is_asked_for_is_used_in_its_place(model, caplog):
    own = ImageCache(max_bytes=1 << 20)
    for given in (own, None):
        with plan(model, SHALLOW, questions=3).apply(model, image_cache=given) as handle:
            assert cached(handle) is given
    assert not caplog.records


def test_a_filtering_layer_that_decoding_sees_less_of_warns_unless_it_was_measured(model, caplog):
    kept = VisiPruner(filter=3, keep=5, exit=6, filter_cache="kept")
    for attached in (kept, plan(model, kept)):
        caplog.clear()
        attached.attach(model).detach()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "filter_cache=all" in caplog.text
    caplog.clear()
    for silent in (plan(model, kept, measured=True), SHALLOW, plan(model, SHALLOW)):
        silent.attach(model).detach()
    assert not caplog.records
