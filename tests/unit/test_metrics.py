"""Metrics against values worked out by hand, and what a metric of one's own may do wrong."""

from __future__ import annotations

import pytest

from calibrate.inputs.samples import Sample
from calibrate.running.metrics import METRICS, metric
from planner.errors import InputError


@pytest.mark.parametrize(
    "name, answer, accepted, right",
    [
        ("exact", "Two.", ["2"], 1), ("exact", "two dogs", ["2"], 0), ("exact", "the red", ["blue", "red"], 1),
        ("exact", "A", ["a"], 1), ("exact", "", ["a"], 0), ("exact", "the", ["a"], 0), ("exact", "yes", ["a"], 0),
        ("leading", "two dogs and a cat and", ["2"], 1), ("leading", "dogs, two", ["2"], 0),
        ("contains", "There are two dogs.", ["2 dogs"], 1), ("contains", "two big dogs", ["2 dogs"], 0),
        ("contains", "category", ["cat"], 0),
        # 10 people, of whom 3 say cat: leaving out one of the 7 others gives 1, one of the 3 gives 2 / 3.
        ("vqa", "cat", ["cat"] * 3 + ["dog"] * 7, 0.9), ("vqa", "cat", ["cat"] + ["dog"] * 9, 0.3),
        ("vqa", "cat", ["cat"] * 4 + ["dog"] * 6, 1), ("vqa", "cat", ["cat"], 1), ("vqa", "cat", ["dog", "cat"], 0.5),
        ("anls", "Hello world", ["hello  world"], 1), ("anls", "kitten", ["sitting"], 1 - 3 / 7),
        ("anls", "abc", ["xyz"], 0), ("anls", "ab", ["ac"], 0), ("anls", "", [""], 1),
    ],
)  # fmt: skip
def test_scores(name, answer, accepted, right):
    assert METRICS[name](answer, accepted) == pytest.approx(right)


def test_a_metric_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def good(answer, accepted): return 0.25\ndef wide(answer, accepted): return 2\n"
        "def broken(answer, accepted): return {}['x']\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    sample = Sample((tmp_path / "x.png",), "what?", ("a",), where="set.jsonl:3")
    assert metric("mine:good")("a", sample) == 0.25
    with pytest.raises(InputError, match=r"gives 2 for set\.jsonl:3"):
        metric("mine:wide")("a", sample)
    with pytest.raises(InputError, match=r"the metric mine:broken fails on set\.jsonl:3: KeyError: 'x'"):
        metric("mine:broken")("a", sample)
    for name, says in (
        ("mine:absent", "cannot be imported: AttributeError"), ("nowhere:f", "ModuleNotFoundError"),
        ("mine:number", "is no function"), ("exakt", "no metric is called 'exakt'"), ("mine:", "no metric is called"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            metric(name)
