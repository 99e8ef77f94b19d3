"""Tables merge in any order to the same bits; intervals against published values and brute force."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from calibrate.probes.stats import SampleTable, bootstrap, mean, plain, wilson
from planner.errors import CalibrationError


def table(ids):
    found = SampleTable()
    for i in ids:
        rng = np.random.default_rng(i)
        found.add(i, fixed=rng.random((3, 2), np.float32), ragged=rng.random((i % 4, 5)), one=i)
    return found


def test_merge_is_associative_commutative_idempotent_and_survives_storage():
    whole = table(range(9)).arrays()
    parts = [table([4, 1, 8]), table([0, 7, 3]), table([2, 5, 6, 1])]
    for order in itertools.permutations(range(3)):
        merged = SampleTable()
        for k in (*order, order[0]):
            merged.merge(SampleTable.from_arrays(parts[k].arrays()))
        found = merged.arrays()
        assert found.keys() == whole.keys()
        assert all(found[k].dtype == whole[k].dtype and found[k].tobytes() == whole[k].tobytes() for k in whole)
    assert len(SampleTable.from_arrays(SampleTable().arrays())) == 0


def test_a_sample_measured_twice_with_different_results_is_refused():
    one, other = SampleTable(), SampleTable()
    one.add(3, x=1.0)
    other.add(3, x=2.0)
    with pytest.raises(CalibrationError, match="sample 3 was measured twice"):
        one.merge(other)
    other = SampleTable()
    other.add(3, x=np.nan)
    other.merge(other)


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1)
    assert wilson(9, 10, 0.5, one_sided=True) == pytest.approx((0.9, 0.9))


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_wilson_bounds_are_the_shares_that_the_score_test_just_accepts(confidence, one_sided):
    """The interval's definition: at a bound p, ``|hits / n - p|`` is z standard errors of p. Exact at the ends."""
    z = statistics.NormalDist().inv_cdf(confidence if one_sided else (1 + confidence) / 2)
    for hits, n in itertools.chain(((hits, 29) for hits in range(30)), [(0, 1), (1, 1), (190, 192), (399, 400)]):
        low, high = wilson(hits, n, confidence, one_sided)
        for bound in (low, high):
            assert (hits / n - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)
        assert low <= hits / n <= high
        assert hits > 0 or low == 0
        assert hits < n or high == 1


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(2, 1, (60, 1)))
        inside += bool(low[0] <= 2 <= high[0])
    assert 0.89 <= inside / 200 <= 0.99


def test_bootstrap_leaves_samples_without_a_value_out():
    values = np.array([[1.0, np.nan], [1.0, np.nan], [np.nan, np.nan], [1.0, 4.0]])
    low, high = bootstrap(values)
    assert (low[0], high[0]) == (1, 1) and (low[1], high[1]) == (4, 4)
    found = mean(values)
    assert found["value"] == [1, 4] and found["n"] == [3, 1]
    assert mean(np.array([[np.nan]]))["value"] == [None]


def test_plain_json_types():
    assert plain(np.array([[1.5, np.nan]])) == [[1.5, None]]
    assert plain(np.int64(3)) == 3 and type(plain(np.float32(0.5))) is float
