"""When two models have the same weights: number formats and quantisation do not matter, everything else does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from planner.errors import InputError, UnsupportedModelError
from planner.runtime.model.weights import names_of, weights_of
from planner.weights import SAMPLES, WeightComparison, Weights, compare


def network(seed: int = 0, size: int = 96) -> nn.Sequential:
    """Four equal layers and norms, with weights like a trained network's."""
    torch.manual_seed(seed)
    layers = [part for _ in range(4) for part in (nn.Linear(size, size), nn.LayerNorm(size))]
    built = nn.Sequential(nn.Embedding(512, size), *layers)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return built.eval()


def against(one: nn.Module, other: nn.Module) -> WeightComparison:
    return compare(weights_of(one), weights_of(other))


def changed(change) -> nn.Module:
    built = network()
    with torch.no_grad():
        change(built)
    return built


def test_the_table_holds_every_tensor_and_what_is_said_of_it():
    built = network()
    found = weights_of(built)
    assert (found.dtype, found.tensors) == ("float32", len(list(built.parameters())))
    weight = built[1].weight.detach().flatten()
    row = next(row for row in found.rows if "1.weight [96, 96]" in names_of(built, (bytes(row["name"]),)))
    assert row["low"] == weight.min() and row["high"] == weight.max()
    assert row["rms"] == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-6)
    assert row["values"].tolist() == weight[[i * (96 * 96 // SAMPLES) for i in range(SAMPLES)]].tolist()


def test_a_large_tensor_is_read_in_runs_and_its_extremes_everywhere():
    built = nn.Linear(1024, 1024, bias=False)
    with torch.no_grad():
        built.weight[1, 3] = 9.0  # in a gap between runs
    (row,) = weights_of(built).rows
    assert row["high"] == 9.0
    runs = built.weight.detach().flatten().view(64, -1)[:, :1024].double()
    assert row["rms"] == np.float32(float(runs.square().mean().sqrt()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_of_the_same_weights_are_the_same(dtype):
    assert against(network(), network().to(dtype)) == WeightComparison(17, (), "")
    assert not against(network().to(torch.bfloat16), network().to(torch.float16)).reason


def test_tiny_weights_that_float16_cannot_hold_are_the_same():
    small = changed(lambda net: net[3].weight.mul_(1e-7))
    assert not against(small, copy.deepcopy(small).half()).reason


@pytest.mark.parametrize(("bits", "dtype"), [(8, "int8"), (4, "int4")])
def test_quantised_copies_are_the_same_and_quantised_others_are_not(bits, dtype):
    """Symmetric, a scale per row or per 64 values, as common formats do."""

    def quantised(built: nn.Module) -> Weights:
        levels = 2 ** (bits - 1) - 1
        with torch.no_grad():
            for module in built:
                if isinstance(module, nn.Linear):
                    groups = module.weight.view(-1, 96 if bits == 8 else 48)
                    scale = groups.abs().amax(dim=1, keepdim=True) / levels
                    groups.copy_((groups / scale).round() * scale)
        return weights_of(built).model_copy(update={"dtype": dtype})

    assert not compare(weights_of(network()), quantised(network())).reason
    swapped = network()
    swapped[1], swapped[5] = swapped[5], swapped[1]
    assert "tensors differ" in compare(weights_of(network()), quantised(swapped)).reason
    assert "tensors differ" in compare(weights_of(network()), quantised(network(1))).reason
    noisy = changed(lambda net: [p.add_(0.6 * p.std() * torch.randn_like(p)) for p in net.parameters()])
    assert compare(weights_of(network()), quantised(noisy)).reason


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("noise of a thousandth", lambda net: [p.add_(1e-3 * p.std() * torch.randn_like(p)) for p in net.parameters()]),
        ("noise in one tensor", lambda net: net[5].weight.add_(1e-3 * torch.randn_like(net[5].weight))),
        ("one value, the largest of its tensor", lambda net: net[5].weight[50, 50].fill_(4.0)),
        ("half a tensor", lambda net: net[5].weight[48:].mul_(1.01)),
        ("a sign", lambda net: net[5].weight.neg_()),
        ("a norm", lambda net: net[2].weight.mul_(1.001)),
    ],
)
def test_changed_weights_are_others(name, change):
    found = against(network(), changed(change))
    assert found.reason and found.compared == 17, name


def test_exchanged_layers_and_another_training_are_others_in_every_format():
    swapped = network()
    swapped[1], swapped[3] = swapped[3], swapped[1]
    for dtype in (torch.float32, torch.bfloat16):
        found = against(network(), copy.deepcopy(swapped).to(dtype))
        # Both weights and both biases.
        assert found.reason == "4 of 17 tensors differ"
        assert against(network(), network(1).to(dtype)).reason
    assert {name.split()[0] for name in names_of(swapped, against(network(), swapped).different)} == {
        "1.weight", "1.bias", "3.weight", "3.bias",
    }  # fmt: skip


def test_a_change_of_one_ordinary_value_is_seen_by_the_full_digest_alone():
    built = changed(lambda net: net[5].weight[50, 51].add_(1e-4))
    assert not against(network(), built).reason, "documented"
    assert "all bytes" in compare(weights_of(network(), full=True), weights_of(built, full=True)).reason
    assert not compare(weights_of(network(), full=True), weights_of(network(), full=True)).reason
    assert not compare(weights_of(network(), full=True), weights_of(network().bfloat16(), full=True)).reason


def test_another_shape_or_a_missing_tensor_is_another_model():
    assert "in one of them only" in against(network(), network(size=64)).reason
    assert "in one of them only" in against(network(), nn.Sequential(*list(network())[:-1])).reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    broken = changed(lambda net: (net[3].weight[7, 9].fill_(value), net[4].bias[0].fill_(value)))
    with pytest.raises(InputError, match=r"2 of 17 weights .* not finite: 3\.weight, 4\.bias"):
        weights_of(broken)


def test_a_model_on_meta_has_no_weights_to_compare():
    with pytest.raises(UnsupportedModelError, match=r"'weight' of Embedding is on no device.*'meta'"):
        weights_of(network().to("meta"))


def test_what_changes_after_the_first_look_is_seen_and_what_does_not_is_not_read_again(monkeypatch):
    built = network()
    first = weights_of(built)
    with monkeypatch.context() as watched:
        watched.setattr("planner.runtime.model.weights._row", lambda tensor: pytest.fail("weights were read again"))
        assert weights_of(built) is first
    with torch.no_grad():
        built[1].weight.mul_(1.5)
    assert compare(first, weights_of(built)).reason
    built.load_state_dict(network().state_dict())
    assert not compare(first, weights_of(built)).reason
    built[3].weight = nn.Parameter(built[1].weight.detach().clone())
    assert compare(first, weights_of(built)).reason


@pytest.mark.parametrize("table", ["?", "AAAA", "AAA"])
def test_a_damaged_table_is_refused(table):
    with pytest.raises(ValueError, match="table of weights"):
        Weights(dtype="float32", tensors=1, table=table)
