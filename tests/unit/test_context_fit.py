"""Best rate against context length, and contexts made of annotations, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.context.fit import best_rate, fit_rates
from calibrate.probes.context.probe import ContextProbe, _common_suffix
from calibrate.probes.context.texts import ContextTexts, read_texts
from planner.context_rate import RateFit
from planner.errors import CalibrationError, InputError, SampleError


class TestBestRate:
    def test_mean_of_the_three_best_neighbours(self):
        # Windows of three: 0.5, 0.6, 0.7, 0.6: the third is best; its rates are 0.2, 0.3, 0.4.
        performance = np.asarray([0.4, 0.5, 0.6, 0.7, 0.8, 0.3])
        assert best_rate((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), performance) == pytest.approx(0.3)

    def test_a_lucky_rate_does_not_decide(self):
        performance = np.asarray([0.6, 0.6, 0.6, 0.0, 1.0, 0.0])
        assert best_rate((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), performance) == pytest.approx(0.1)

    def test_of_equal_ones_the_lowest(self):
        assert best_rate((0.0, 0.1, 0.2, 0.3, 0.4), np.full(5, 0.7)) == pytest.approx(0.1)

    def test_two_rates_are_too_few(self):
        with pytest.raises(CalibrationError, match="2 rates are too few"):
            best_rate((0.0, 0.1), np.ones(2))


class TestFit:
    def test_a_quadratic_is_recovered(self):
        lengths = np.asarray([500, 1000, 1500, 2000, 2500])
        best = 4e-8 * lengths**2 + 1e-5 * lengths + 0.05
        fit = fit_rates(lengths.tolist(), best.tolist(), highest=0.9)
        assert fit.coefficients == pytest.approx((4e-8, 1e-5, 0.05), rel=1e-9)
        assert fit.r2 == pytest.approx(1)
        assert fit.rate(1200) == pytest.approx(4e-8 * 1200**2 + 1e-5 * 1200 + 0.05)

    def test_it_stays_inside_what_was_measured(self):
        fit = RateFit((0.0, 1e-3, 0.0), shortest=100, longest=800, highest=0.6, r2=1.0)
        assert fit.rate(10) == fit.rate(100) == pytest.approx(0.1)
        assert fit.rate(700) == fit.rate(10_000) == 0.6
        assert RateFit((0.0, 0.0, -1.0), 1, 2, 0.5, None).rate(1) == 0

    def test_three_lengths_are_needed(self):
        with pytest.raises(CalibrationError, match="2 context lengths"):
            fit_rates([500, 1000, 500], [0.1, 0.2, 0.1], 0.9)

    def test_equal_rates_give_a_constant_without_r2(self):
        fit = fit_rates([1, 2, 3], [0.3, 0.3, 0.3], 0.9)
        assert fit.r2 is None and fit.rate(2) == pytest.approx(0.3)

    def test_json_there_and_back(self):
        fit = fit_rates([100, 200, 300], [0.1, 0.3, 0.4], 0.9)
        assert RateFit.from_json(fit.as_json()) == fit


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": text.split()}

    def decode(self, ids):
        return " ".join(ids)


def texts(own=""):
    cat, dog = ("cat.png",), ("dog.png",)
    samples = SampleSet(
        (
            Sample(cat, "what animal is this?", ("cat",)),
            Sample(cat, "what does the cat do?", ("sleeps",)),
            Sample(cat, "where is it?", ("on a mat",)),
            Sample(dog, "how many legs?", ("4",)),
            Sample(dog, "what animal is this?", ("dog",)),
        ),
        "made",
    )
    return ContextTexts(samples, Words(), own)


class TestTexts:
    def test_annotations_of_the_same_image_first_without_the_answer_and_the_question_last(self):
        made = texts().lengthened(0, 10)
        # "what does the cat do?" gives the answer away, and the last sample asks the very question.
        assert made.prompt == "where is it? on a mat. how many legs? 4.\nwhat animal is this?"
        assert made.answers == ("cat",) and made.images == ("cat.png",)

    def test_as_many_tokens_as_asked_for_repeated_where_there_are_too_few(self):
        for tokens in (1, 7, 40):
            assert len(texts().lengthened(0, tokens).prompt.split("\n")[0].split()) == tokens

    def test_own_texts_replace_annotations(self):
        made = texts(own="Once upon a time.\n\nThe cat sat.\n\nThe end.").lengthened(0, 6)
        words = made.prompt.split("\n")[0]
        assert sorted(words.split()) == ["Once", "The", "a", "end.", "time.", "upon"]

    def test_nothing_free_of_the_answer_is_refused(self):
        with pytest.raises(SampleError, match="free of its answer"):
            texts(own="The cat sat.").lengthened(0, 6)

    def test_unreadable_or_empty_texts_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_texts(str(tmp_path / "none.txt"))
        (tmp_path / "empty.txt").write_text(" \n")
        with pytest.raises(InputError, match="are empty"):
            read_texts(str(tmp_path / "empty.txt"))


def test_common_suffix():
    one, other = torch.tensor([1, 9, 9, 5, 6]), torch.tensor([1, 2, 3, 4, 7, 5, 6])
    assert _common_suffix(one, other) == 2
    assert _common_suffix(one, one) == 5
    assert _common_suffix(torch.tensor([1]), torch.tensor([2])) == 0


@pytest.mark.parametrize(
    "settings",
    [{"lengths": []}, {"lengths": [0]}, {"lengths": [5, 5]}, {"rates": (0.0, 0.1)}, {"rates": (0.0, 0.5, 1.0)}],
)
def test_lengths_and_rates_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError):
        ContextProbe(**settings)
