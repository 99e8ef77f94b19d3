"""The masking probe: bisected curves against whole ones, answers without visual cache against generated ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.masking import MaskingProbe
from calibrate.probes.masking import uncached as without_cache
from calibrate.probes.masking.depths import anchors
from calibrate.running.execute import generate
from planner.profile import ProbeResult
from planner.report.probes.masking import section
from planner.report.section import Subject
from tests import tiny
from tests.float64 import float64_throughout

LAYERS, BATCH = 12, 3
CURVES = ("prefix_before", "self_before", "masked_from")


class NoEncoder:
    """Samples without answers need no tokens."""

    @staticmethod
    def tokenizer(text, add_special_tokens=False):
        return {"input_ids": []}


def batch_of(built, given, ids=range(BATCH)):
    samples = tuple(Sample((), "x") for _ in ids)
    return Batch(tuple(ids), samples, given, built, NoEncoder(), SampleSet(samples, "test"))


def measured(**settings):
    built, given = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=BATCH, left_pad=2)
    probe = MaskingProbe(samples=BATCH, curves=CURVES, **settings)
    with float64_throughout(), torch.inference_mode():
        probe.run(batch_of(built, given))
    return probe


@pytest.fixture(scope="module")
def whole():
    return measured()


@pytest.fixture(scope="module")
def bisected():
    return measured(every_point=False)


def test_few_layers_are_measured_at_every_point(whole):
    values = whole.result().values
    assert values["prefix_before"]["k"] == [*range(1, LAYERS + 1)]
    assert values["prefix_before"]["measured"] == [BATCH] * LAYERS


def test_bisected_points_are_those_of_the_whole_curve(whole, bisected):
    for name in CURVES:
        for what in ("agree", "kl"):
            full, part = (probe.table.column(f"{name}.{what}") for probe in (whole, bisected))
            there = ~np.isnan(part)
            np.testing.assert_allclose(part[there], full[there], atol=1e-6, err_msg=f"{name} {what}")
        executed = (~np.isnan(bisected.table.column(f"{name}.agree"))).sum(axis=1)
        if name == "masked_from":  # costs little
            assert executed.tolist() == [LAYERS] * BATCH
        else:
            assert executed.max() < LAYERS and executed.min() >= len(anchors(LAYERS))
    assert np.isnan(bisected.table.column("self_before.agree")).any()


def test_what_was_not_measured_is_absent(bisected):
    values = bisected.result().values["self_before"]
    agree = bisected.table.column("self_before.agree")
    executed = (~np.isnan(agree)).sum(axis=0)
    assert values["k"] == [k + 1 for k in range(LAYERS) if executed[k]] and len(values["k"]) < LAYERS
    assert values["measured"] == [count for count in executed if count]
    everywhere = {anchor + 1 for anchor in anchors(LAYERS)}
    for k, count, kl, right in zip(
        values["k"], values["measured"], values["kl"]["value"], values["first_token_accuracy"], strict=True
    ):
        assert (kl is not None) == (right is not None) == (count == BATCH)
        assert k not in everywhere or count == BATCH
    result = ProbeResult(n=BATCH, settings=bisected.settings, values=bisected.result().values)
    found = section(Subject(probe=result, prompt=None, layers=LAYERS, heads=4))
    assert "bisected, sample by sample" in found.about
    (counts,) = [table for table in found.tables if table.title == "Samples executed"]
    row = next(row for row in counts.rows if row[0] == f"k = {values['k'][0]}")
    assert row[2] == str(values["measured"][0])
    assert all(picture.draw().lstrip().startswith("<") for picture in found.pictures)


def generated(built, given, answers):
    """Whether whole answers stay the same, generated under each schedule."""
    layers = built.config.get_text_config().num_hidden_layers
    same = []
    for first, last in without_cache.cache_ranges(layers):
        other = generate(built, given, answers.shape[1], without_cache.schedule(first, last, layers))
        same.append([a == b for a, b in zip(answers.tolist(), other.tolist(), strict=True)])
    return np.array(same, float).T


#: 24 tokens of an untrained LLaVA hold an image token.
@pytest.mark.parametrize(
    ("family", "tokens"), [("llava", 6), ("llava", 24), ("qwen2_vl", 6), ("gemma3", 6), ("paligemma", 6)]
)
def test_answers_without_visual_cache_are_the_generated_ones(family, tokens):
    built, given = tiny.model(family, layers=4), tiny.inputs(family, batch=BATCH, left_pad=2)
    with float64_throughout():
        answers = generate(built, given, tokens)
        found, decoded = without_cache.uncached(batch_of(built, given), tokens)
        expected = generated(built, given, answers)
    assert decoded.tolist() == [tokens - 1] * BATCH
    np.testing.assert_array_equal(found, expected)
    assert (family, tokens) not in (("llava", 6), ("qwen2_vl", 6)) or set(expected.flatten()) == {0.0, 1.0}


def test_an_answer_of_one_token_says_nothing_of_the_cache():
    built, given = copy.deepcopy(tiny.model("llava", layers=4)), tiny.inputs("llava", batch=BATCH, left_pad=2)
    first = generate(built, given, 1)[:, 0].tolist()
    built.generation_config.eos_token_id = first[0]
    probe = MaskingProbe(samples=BATCH, curves=("uncached",), answer_tokens=4)
    probe.run(batch_of(built, given))
    values = probe.result().values["uncached"]
    silent = first.count(first[0])
    assert values["nothing_decoded"] == silent and {entry["n"] for entry in values["agreement"]} == {BATCH - silent}
    subject = Subject(probe=probe.result(), prompt=None, layers=4, heads=4)
    assert f"{silent} of {BATCH} answers have no second token" in section(subject).pictures[-1].caption
