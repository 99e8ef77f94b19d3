"""Fitting a hardware row: times that a known device would take give that device back."""

from __future__ import annotations

import pytest

from planner.cost import cost
from planner.cost.constants import Constants
from planner.cost.fit import Timing, fit, predicted_ms, row_timings
from planner.cost.hardware import Hardware, hardware
from planner.errors import InputError
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
ROWS = (8, 32, 128, 650)
FITTED = {"name": "device", "dtype": "bfloat16", "memory_gb": 16.0, "source": "measured"}


def device(asynchronous: bool = True, **constants: float) -> Hardware:
    """A device that overlaps half, waits 40 us a layer and 90 us a tower layer, except as given."""
    usual = {"matmul": 0.6, "attention": 0.3, "memory": 0.7, "overlap": 0.5, "layer_us": 40, "tower_layer_us": 90}
    return Hardware(
        name="device", peak_tflops=400, bandwidth_gbs=2000, memory_gb=16, source="a test",
        asynchronous=asynchronous, measured=Constants(**{**usual, **constants}),
    )  # fmt: skip


def timings(row: Hardware) -> list[Timing]:
    """What a benchmark would measure on it."""
    request = cost(SPEC, Workload(visual_tokens=576), dense(32), "causal")
    asked = [Timing(request, phase, predicted_ms(request, phase, row)) for phase in ("decoder", "model")]
    empty = row_timings(SPEC, 16, [(rows, 1, 1, 1) for rows in ROWS])
    return asked + [Timing(one.cost, one.phase, predicted_ms(one.cost, one.phase, row)) for one in empty]


def test_a_synchronous_device_comes_back() -> None:
    row = device(overlap=0, asynchronous=False)
    found = fit(timings(row), asynchronous=False, **FITTED)
    assert found.measured is not None
    assert found.peak_tflops * found.measured.matmul == pytest.approx(240, rel=1e-3)
    assert found.bandwidth_gbs * found.measured.memory == pytest.approx(1400, rel=1e-3)
    assert found.measured.layer_us == pytest.approx(40, rel=1e-2)
    assert found.measured.tower_layer_us == pytest.approx(90, rel=0.05)


def test_an_asynchronous_device_is_predicted_between_the_fitted_lengths() -> None:
    """Where the host is the slower one its overhead is seen; else only what follows from it must be right."""
    row = device()
    found = fit(timings(row), asynchronous=True, **FITTED)
    for rows in (12, 60, 300):
        of = cost(SPEC, Workload(visual_tokens=0, system_tokens=0, text_tokens=rows), dense(32), "causal")
        assert predicted_ms(of, "decoder", found) == pytest.approx(predicted_ms(of, "decoder", row), rel=0.03)


def test_products_have_no_overhead() -> None:
    """By hand: FLOPs over the rate, then bytes over the bandwidth, one after the other."""
    row = device(overlap=0, asynchronous=False)
    (products, *_) = row_timings(SPEC, 16, [(100, 1, 1, 1)])
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    by_hand = 2 * 100 * weights / 240e9 + 2 * weights / 1400e6
    assert predicted_ms(products.cost, "products", row) == pytest.approx(by_hand)


def test_constants_are_shares_of_known_peaks() -> None:
    known = hardware("h100-sxm")
    row = device(overlap=0, asynchronous=False)
    found = fit(timings(row), asynchronous=False, known=known, **FITTED)
    assert found.peak_tflops == known.peak_tflops and found.measured is not None
    assert found.measured.matmul == pytest.approx(240 / known.peak_tflops, rel=1e-3)
    assert found.measured.memory == pytest.approx(1400 / known.bandwidth_gbs, rel=1e-3)


def test_times_that_do_not_grow_with_the_work_are_refused() -> None:
    flat = [Timing(one.cost, one.phase, 5.0) for one in timings(device())]
    with pytest.raises(InputError, match="do not grow"):
        fit(flat, asynchronous=False, **FITTED)
