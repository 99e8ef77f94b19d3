"""Published latency: the constants that engines ship are those that their measurements give."""

from __future__ import annotations

import pytest

from planner.cost.engine import engine
from planner.report.published_latency import DECODE, FITTED, fitted, left_out, markdown, measurements


@pytest.mark.parametrize("name", FITTED)
def test_shipped_constants_are_the_fitted_ones(name):
    found = fitted(name, measurements())
    for key in FITTED[name]:
        assert getattr(engine(name).constants, key) == pytest.approx(getattr(found, key), rel=0.02), key


@pytest.mark.parametrize("name", FITTED)
def test_every_measurement_is_left_out_once(name):
    found = [one for one in measurements() if one.engine == name]
    rows = left_out(name, found)
    times = [one.dense_ms for one in found] + [pruned.ms for one in found for pruned in one.policies]
    times += [one.decode_ms for one in found if one.decode_ms is not None]
    assert sorted(row.ms for row in rows) == sorted(times)
    assert all(row.speedup == 1 for row in rows if row.what in ("dense", DECODE))


def test_a_measurement_does_not_decide_its_own_estimate():
    """Ten times the time of one source: its estimate stays, its error shows it."""
    found = [one for one in measurements() if one.engine == "vllm"]
    odd = [one.model_copy(update={"dense_ms": 10 * one.dense_ms}) if one is found[0] else one for one in found]
    before, after = left_out("vllm", found)[0], left_out("vllm", odd)[0]
    assert after.estimated_ms == pytest.approx(before.estimated_ms)
    assert after.error < -0.8


def test_the_page_has_every_row():
    page = markdown()
    assert sum(line.count("| model | ") + line.count("| decoder | ") for line in page.splitlines()) >= 40
    assert "| both | " in page
