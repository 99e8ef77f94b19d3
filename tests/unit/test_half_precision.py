"""Half precision on a CPU that only emulates it: told before long work, and no part of the floor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from calibrate.inputs import half_precision
from calibrate.inputs.half_precision import emulated, slow_half_precision


@pytest.fixture(autouse=True)
def not_timed_yet():
    half_precision.slowdown.cache_clear()
    yield
    half_precision.slowdown.cache_clear()


def model(dtype: torch.dtype, device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ratio", [0.4, 1.4, 4.75])
def test_what_takes_longer_than_in_float32_is_told(monkeypatch, dtype, ratio):
    monkeypatch.setattr(half_precision, "_seconds", lambda of: 0.02 * (1 if of is torch.float32 else ratio))
    note = slow_half_precision(model(dtype))
    assert emulated(torch.device("cpu"), dtype) == (ratio > 1.5)
    if ratio < 1.5:
        assert note is None
    else:
        name = str(dtype).removeprefix("torch.")
        assert note == (
            f"{name} is slow on this CPU: a matrix product takes 4.8 times as long as in float32; --dtype float32 is "
            "faster"
        )


def test_nothing_is_timed_of_other_formats_or_places(monkeypatch):
    monkeypatch.setattr(half_precision, "_seconds", lambda of: pytest.fail("timed"))
    assert slow_half_precision(model(torch.float32)) is None
    assert slow_half_precision(model(torch.bfloat16, "cuda")) is None
    assert not emulated(torch.device("cuda"), torch.bfloat16)


def test_products_are_timed_in_either_format():
    assert 0.01 < half_precision.slowdown(torch.bfloat16) < 1000
    assert half_precision.slowdown(torch.bfloat16) == half_precision.slowdown(torch.bfloat16), "timed once"
