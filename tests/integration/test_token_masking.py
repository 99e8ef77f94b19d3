"""Every condition of the token-masking probe against masks written out by hand and a literal attention."""

from __future__ import annotations

import pytest
import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.token_masking import TokenMaskingProbe, _names, ranges_of
from planner.errors import InputError
from planner.profile import ProbeResult
from planner.report.probes.token_masking import section
from planner.report.section import Subject
from tests import tiny
from tests.float64 import float64_throughout
from tests.reference.attention import LayerRule, forward
from tests.tiny.configs import IMAGE

LAYERS, BATCH = 6, 2


def inputs():
    return tiny.inputs("llava", batch=BATCH, left_pad=2)


class NoEncoder:
    """Samples without answers need no tokens."""

    @staticmethod
    def tokenizer(text, add_special_tokens=False):
        return {"input_ids": []}


@pytest.fixture(scope="module")
def probe():
    built, given = tiny.model("llava", layers=LAYERS), inputs()
    samples = tuple(Sample((), "x") for _ in range(BATCH))
    found = TokenMaskingProbe(samples=BATCH, top=0.2, kept=0.1)
    with float64_throughout(), torch.inference_mode():
        found.run(Batch((0, 1), samples, given, built, NoEncoder(), SampleSet(samples, "test")))
    return found


def ranked(row, columns, count):
    return sorted(columns, key=lambda j: -float(row[j]))[:count]


def hidden_by(what, columns, by_last, by_text):
    """Columns that a condition hides; a fifth of 16 visual tokens are 3, a tenth are 2."""
    tops = ranked(by_last, columns, 3)
    found = {
        "top_by_last": tops,
        "top_by_text": ranked(by_text, columns, 3),
        "nearest": columns[-3:],
        "others": [c for c in columns if c not in tops],
        "first_half": columns[:8],
        "second_half": columns[8:],
        "top": tops,
        "bottom": ranked(-by_last, columns, 3),
        "all_but_top": [c for c in columns if c not in ranked(by_last, columns, 2)],
    }
    return found.get(what, columns)


#: Which of the 16 visual tokens stands for all.
MERGED = {"middle.merged": 0, "merge.first": 0, "merge.quarter": 4, "merge.half": 8, "merge.last": 15}


def literal(name):
    """Log-probabilities ``[B, V]`` under a condition, by explicit edges."""
    built, given = tiny.model("llava", layers=LAYERS), inputs()
    ids = given["input_ids"]
    visual = ids == IMAGE
    open_to = torch.ones(BATCH, ids.shape[1], ids.shape[1], dtype=torch.bool)
    group, _, what = name.partition(".")
    first, last = (0, 1) if group == "merge" else ranges_of(LAYERS)[what if group == "all" else group]
    columns = [row.nonzero()[:, 0].tolist() for row in visual]

    def rule(layer):
        if not first <= layer < last:
            return LayerRule(open_to)
        if name in MERGED:
            rows = (ids != 0) & ~visual
            return LayerRule(open_to, merge_token=[own[MERGED[name]] for own in columns], merge_rows=rows)
        edges = open_to.clone()
        for b, own in enumerate(columns):
            weights = dense[layer].weights[b].mean(0)
            hidden = hidden_by(what, own, weights[-1], weights[own[-1] + 1 :].mean(0))
            for row in range(own[-1] + 1, ids.shape[1]):
                edges[b, row, hidden] = False
        return LayerRule(edges)

    with float64_throughout():
        _, dense = forward(built, given, lambda _: LayerRule(open_to), visual)
        logits, _ = forward(built, given, rule, visual)
    return logits[:, -1].log_softmax(-1)


@pytest.mark.parametrize("name", _names())
def test_a_condition_is_what_its_masks_mean(probe, name):
    with float64_throughout():
        dense = tiny.model("llava", layers=LAYERS)(**inputs()).logits[:, -1].log_softmax(-1)
    wanted = literal(name)
    kl = (dense.exp() * (dense - wanted)).sum(-1)
    assert probe.table.column(f"{name}.kl")[:, 0].tolist() == pytest.approx(kl.tolist(), abs=1e-9)
    assert (kl > 1e-6).all(), "the condition changes something"


def test_ranges_are_the_papers_scaled():
    assert ranges_of(32) == {"first": (0, 2), "shallow": (0, 7), "middle": (8, 15), "deep": (26, 32)}
    assert ranges_of(30)["middle"] == (8, 14) and ranges_of(2)["deep"] == (1, 2)


def test_a_model_may_have_a_middle_of_its_own(probe):
    assert ranges_of(30, (21, 26)) == {**ranges_of(30), "middle": (21, 26)}
    built, given = tiny.model("llava", layers=LAYERS), inputs()
    samples = tuple(Sample((), "x") for _ in range(BATCH))
    other = TokenMaskingProbe(samples=BATCH, top=0.2, kept=0.1, middle=(4, 6))
    with float64_throughout(), torch.inference_mode():
        other.run(Batch((0, 1), samples, given, built, NoEncoder(), SampleSet(samples, "test")))
    for name in _names():
        same = torch.equal(*(torch.tensor(one.table.column(f"{name}.kl")) for one in (probe, other)))
        assert same == ("middle" not in name), name


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"top": 1.5}, "between 0 and 1"), ({"middle": (3,)}, "no range"), ({"middle": (5, 5)}, "5/5 is no range")],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(InputError, match=says):
        TokenMaskingProbe(**settings)
    with pytest.raises(InputError, match="the model has 6"):
        ranges_of(LAYERS, (4, 7))


def test_the_report_says_what_was_found(probe):
    values = probe.result().values

    def said(**hits):
        for name, value in hits.items():
            group, _, rest = name.partition("_")
            entry = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 32}
            values["conditions"][f"{group}.{rest}"]["agreement"] = entry
        result = ProbeResult(n=32, settings=probe.settings, values=values)
        return section(Subject(probe=result, prompt=None, layers=LAYERS, heads=4))

    found = said(first_top_by_last=1.0, first_others=0.97, middle_top=0.5, middle_bottom=1.0, middle_all_but_top=0.9,
                 all_shallow=1.0, all_middle=0.4, all_deep=0.9)  # fmt: skip
    text = " ".join(found.findings)
    assert "does not say which tokens matter, as the paper finds" in text
    assert (
        "the top 20 % leaves 50 % of the answers, the bottom 20 % 100 %: there attention points to what is read" in text
    )
    assert "The top 10 % alone keep 90 %" in text and "needed most in the middle ones" in text
    assert len(found.tables[0].rows) == len(_names()) and all(picture.draw() for picture in found.pictures)
    text = " ".join(said(first_top_by_last=0.6, middle_top=1.0, middle_bottom=0.5).findings)
    assert "too close to tell where the image is needed most" in " ".join(said(all_deep=0.42).findings)
    assert "it makes a difference which are hidden" in text and "the least attended matter more" in text
