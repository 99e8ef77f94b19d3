"""What `plan bench` reads off this machine: peaks of memory, and dense times at several lengths."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from click.testing import CliRunner

from planner.cli import cli
from planner.errors import InputError
from planner.runtime.bench import peak_bytes, product_elements, row_times
from planner.spec import ModelSpec
from tests import tiny

CPU = torch.device("cpu")
SIZE = 48 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_second_call_holds_as_much_as_the_first():
    """What the first has freed stays with the allocator; it must not make the second look free."""

    kept = []

    def call() -> None:
        # Many pieces below the size from which an allocator asks the system for each anew, and one behind them that
        # stays, so that it cannot shrink the heap by itself.
        pieces = [torch.ones(1 << 14) for _ in range(SIZE >> 16)]
        kept.append(torch.ones(1 << 10))
        assert pieces[-1].sum() == 1 << 14

    peaks = [peak_bytes(CPU, call) for _ in range(3)]
    for peak in peaks:
        assert peak is not None and 0.9 * SIZE < peak < 1.3 * SIZE, peaks


def test_a_peak_that_cannot_be_read_is_left_out(monkeypatch):
    monkeypatch.setattr("planner.runtime.bench.memory._reset", lambda: False)
    called = []
    assert peak_bytes(CPU, lambda: called.append(1)) is None
    assert called, "the call is made all the same"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_dense_times_of_text_alone(family):
    model = tiny.model(family)
    spec = ModelSpec.from_config(model.config.to_dict())
    layers = spec.decoder.layers
    assert product_elements(model) == sum(one.attention.projection_macs + one.ffn.macs for one in layers)
    found = row_times(model, [3, 9], text_id=7, rounds=2)
    assert [one.rows for one in found] == [3, 9]
    assert all(min(one.products_ms, one.attention_ms, one.decoder_ms) > 0 for one in found)


def test_another_clock():
    """Two readings each for products, attention and tower: each lasts what the clock says."""
    ticks = iter(range(1000))
    (found,) = row_times(tiny.model("llava"), [4], text_id=7, rounds=1, read=lambda: float(next(ticks)))
    assert (found.products_ms, found.attention_ms, found.decoder_ms) == (1000.0, 1000.0, 1000.0)


def test_times_that_fit_no_device_are_shown_all_the_same(monkeypatch):
    """Of a model so small that its times are noise; only a row that was asked for is an error."""

    def unfit(*_, **__):
        raise InputError("the measured times do not grow with the work", "Measure a larger model")

    monkeypatch.setattr(importlib.import_module("planner.cost.fit"), "fit", unfit)
    arguments = ["bench", "reference/plain", "--rounds", "1", "--new-tokens", "2"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0 and "decoder prefill ms" in shown.stdout
    assert "Warning: the measured times do not grow with the work; only FLOPs predict" in shown.stderr
    asked = CliRunner().invoke(cli, [*arguments, "--fit-hardware", "mine"])
    assert isinstance(asked.exception, InputError)
