"""The three parts share no picture, cover everything, and certify is no larger than its last allowed miss needs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from calibrate.deciding.split import by_picture, sizes, split
from calibrate.inputs.samples import Sample, SampleSet
from planner.errors import InputError


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2, 3), number % 256, np.uint8) + np.uint8(number // 256))


def samples(*shown: tuple[int, ...]) -> SampleSet:
    made = (Sample(tuple(map(picture, numbers)), f"question {i}") for i, numbers in enumerate(shown))
    return SampleSet(tuple(made), "test")


def test_parts_share_no_picture_and_cover_the_set_in_order():
    shown = [(i % 60,) for i in range(120)]
    found = split(samples(*shown), 0.1, 0.8)
    parts = [found.propose, found.select, found.certify]
    digests = [{digest for sample in part for digest in sample.image_digests} for part in parts]
    assert not digests[0] & digests[1] and not digests[0] & digests[2] and not digests[1] & digests[2]
    assert [s.prompt for part in parts for s in part] == [s.prompt for s in by_picture(samples(*shown))]
    assert sorted(s.prompt for part in parts for s in part) == sorted(s.prompt for s in samples(*shown))
    numbers = [sample.image_digests[0] for sample in found.certify]
    same = [[a == b for b in numbers] for a in numbers]
    assert same == [[a == b for b in found.pictures] for a in found.pictures]
    assert found.independent == len(set(numbers)) == 36 and not found.single, "24 pictures search"
    assert split(samples(*shown), 0.1, 0.8).digests == found.digests and len(set(found.digests.values())) == 3


def test_pictures_that_occur_together_are_one():
    """0-1, 1-2 and 3-2 are linked, although the first and the last share none."""
    found = by_picture(samples((0, 1), (9,), (3, 2), (8,), (1, 2), (9,)))
    assert [s.prompt[-1] for s in found] == ["0", "2", "4", "1", "5", "3"]
    with pytest.raises(InputError, match="3 pictures"):
        split(samples((0, 1), (3, 2), (9,), (1, 2), (8,)), 0.1, 0.8)
    with pytest.raises(InputError, match="all 40 samples are about one picture"):
        split(samples(*[(7,)] * 40), 0.1, 0.8)


@pytest.mark.parametrize("limit, confidence", [(0.02, 0.8), (0.05, 0.95), (0.3, 0.5)])
def test_two_fifths_search_where_a_proof_is_left_and_certify_drops_what_only_makes_it_harder(limit, confidence):
    def misses(n):
        return int((binom.cdf(np.arange(n), n, limit) <= 1 - confidence).sum()) - 1

    def most(pictures):
        """What certifies at most, said as the rule is: a search of two fifths, down to 24 if the proof needs it."""
        searches = [n for n in range(1, pictures // 2 + 1) if n <= max(24, round(0.4 * pictures))]
        proving = [n for n in searches if misses(pictures - n) >= 0 or n <= 24]
        return pictures - max(proving)

    for pictures in (*range(4, 140, 7), 256, 700):
        propose, select, certify = sizes(pictures, limit, confidence)
        assert propose + select + certify == pictures and min(propose, select, certify) >= 1
        assert misses(certify) == misses(most(pictures))
        assert misses(certify) < 0 or misses(certify - 1) == misses(certify) - 1
    assert sizes(256, 0.02, 0.8) == (53, 54, 149)
    assert sizes(256, 0.02, 0.8, counted=False) == (51, 51, 154), "means of several questions: all help"
    assert sizes(160, 0.02, 0.8, counted=False) == (20, 20, 120), "but few of them are worse than counting"
    single = samples(*[(i,) for i in range(60)])
    assert split(single, 0.1, 0.8).single and split(single, 0.1, 0.8).independent == 29
    assert split(single, 0.1, 0.8, binary=False).independent == 36
