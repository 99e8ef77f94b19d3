"""Bisection of masking curves, and what a limit says of curves that were not measured everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.probes.masking.depths import anchors, bisect, passes, settled
from calibrate.probes.masking.reading import at, contradictions
from calibrate.probes.stats import proportion
from planner.profile import ProbeResult
from planner.report.probes.masking import done_from, reads_from


def measured(truth):
    """What `bisect` measures of known answers ``[samples, points]``, and how many points of each sample."""
    found = np.full(truth.shape, np.nan)

    def measure(point, samples):
        assert np.isnan(found[samples, point]).all(), "measured twice"
        found[samples, point] = truth[samples, point]
        return [bool(one) for one in truth[samples, point]]

    bisect(truth.shape[1], len(truth), measure)
    return found


@given(points=st.integers(1, 48), data=st.data())
def test_depths_are_those_of_a_scan(points, data):
    depths = data.draw(st.lists(st.integers(0, points), min_size=1, max_size=6))
    truth = np.array([[k < depth for k in range(points)] for depth in depths], float)
    found = measured(truth)
    np.testing.assert_array_equal(settled(found), truth)
    assert (~np.isnan(found)).sum(axis=1).max() <= passes(points)
    assert not np.isnan(found[:, anchors(points)]).any()


def test_a_deep_curve_takes_few_passes():
    assert passes(30) == 6 + 4 and passes(80) == 8 + 5
    assert anchors(30) == [0, 1, 3, 7, 15, 29] and anchors(8) == [0, 1, 3, 7]
    assert anchors(2) == [0, 1] and anchors(1) == [0]


def test_what_a_sample_measures_does_not_depend_on_the_others():
    truth = np.array([[k < depth for k in range(30)] for depth in (0, 3, 12, 13, 29, 30)], float)
    whole = measured(truth)
    for sample in range(len(truth)):
        np.testing.assert_array_equal(measured(truth[sample : sample + 1])[0], whole[sample])


def test_answers_that_come_back_are_seen_where_anchors_see_them():
    # Changed from the fifth point to the twentieth; anchors are 1, 2, 4, 8, 16 and 30.
    truth = np.ones((2, 30))
    truth[0, 4:20] = 0
    truth[1, 1:4] = 0
    np.testing.assert_array_equal(settled(measured(truth)), truth)
    truth = np.ones((1, 30))
    truth[0, 9:12] = 0  # between two anchors with the same outcome: not seen
    assert settled(measured(truth)).all()


def test_gaps_that_nothing_settles_stay_open():
    known = settled(np.array([[np.nan, 1, np.nan, 1, np.nan, 0, np.nan]]))
    np.testing.assert_array_equal(known, [[1, 1, 1, 1, np.nan, 0, np.nan]])


def curve(ks, hits, n=32):
    return {"k": ks, "agreement": [proportion(one, n) for one in hits]}


def test_a_point_fails_when_its_upper_end_does():
    # 30 of 32 may be .98 (Wilson's upper end .983), 29 of 32 may not (.968).
    for name in ("prefix_before", "alone_before"):
        assert reads_from({name: curve([1, 4, 7, 15], [32, 30, 30, 29])}, 0.98) == 7
        assert reads_from({name: curve([1, 4], [29, 32])}, 0.98) == 0
    both = {"alone_before": curve([1, 4], [32, 32]), "prefix_before": curve([1, 4], [32, 2])}
    assert reads_from(both, 0.98) == 1, "the rule that plans use first is the one that is told"
    assert done_from({"masked_from": curve([0, 10, 20, 29], [29, 30, 32, 31])}, 0.98) == 10
    assert done_from({"masked_from": curve([0, 29], [32, 29])}, 0.98) == 30


def test_between_points_a_bisected_curve_does_not_change():
    points = curve([3, 7, 15], [32, 31, 12])
    assert at(points, 2) is None and at(points, 16) is None
    assert at(points, 3)["value"] == at(points, 6)["value"] == 1 and at(points, 14)["value"] == 31 / 32


@pytest.mark.parametrize(("layer", "contradicted"), [(7, False), (12, True)])
def test_filters_are_judged_by_the_rule_that_plans_use(layer, contradicted):
    curves = {"prefix_before": curve([7, 11, 15], [32, 20, 10]), "alone_before": curve([7, 11, 15], [2, 2, 2])}
    influence = ProbeResult(n=32, settings={}, values={"suggested": {"0.5": {"filter": layer, "exit": 30}}})
    notes = contradictions(ProbeResult(n=32, settings={}, values=curves), influence, 0.98)
    assert bool(notes) is contradicted
