"""Fitting a hardware row: times made from a known device give that device back."""

from __future__ import annotations

import pytest

from planner.cost.fit import Timing, fit
from planner.errors import InputError

DEVICE = {"layers": 10, "name": "device", "dtype": "float32", "memory_gb": 16.0, "source": "measured"}


def timings(tflops: float, gbs: float, overhead_us: float) -> list[Timing]:
    fixed = 10 * overhead_us / 1000
    prefills = [Timing(flops, 0, flops / (tflops * 1e9) + fixed) for flops in (8e12, 3e12)]
    steps = [Timing(0, size, size / (gbs * 1e6) + fixed) for size in (14e9, 13e9)]
    return [*prefills, *steps]


@pytest.mark.parametrize("overhead_us", [0.0, 40.0])
def test_a_known_device_comes_back(overhead_us):
    row = fit(timings(400, 2000, overhead_us), **DEVICE)
    assert row.peak_tflops * row.efficiency.matmul == pytest.approx(400)
    assert row.bandwidth_gbs * row.efficiency.memory == pytest.approx(2000)
    assert row.overhead_us == pytest.approx(overhead_us, abs=1e-6)


def test_efficiencies_are_shares_of_known_peaks():
    from planner.cost.hardware import hardware

    known = hardware("h100-sxm")
    row = fit(timings(known.peak_tflops / 2, known.bandwidth_gbs / 4, 10), known=known, **DEVICE)
    assert row.peak_tflops == known.peak_tflops
    assert row.efficiency.matmul == pytest.approx(0.5)
    assert row.efficiency.memory == pytest.approx(0.25)


def test_times_that_do_not_grow_with_the_work_are_refused():
    flat = [Timing(8e12, 0, 5.0), Timing(3e12, 0, 5.0), Timing(0, 14e9, 5.0), Timing(0, 13e9, 5.0)]
    with pytest.raises(InputError, match="do not grow"):
        fit(flat, **DEVICE)
