"""What `observe` shows of a layer, against full attention matrices and against literally zeroing each weight."""

from __future__ import annotations

import pytest
import torch

from planner.runtime import LayerView, observe
from planner.runtime.tensors.weights import influence
from planner.schedule import dense
from tests import tiny
from tests.float64 import float64_throughout
from tests.reference.attention import LayerRule, forward
from tests.schedules import LAYERS

FAMILIES = ("llava", "llava-qwen3", "gemma3", "qwen2_vl", "qwen3_vl", "paligemma", "paligemma2", "cohere2_vision")


def test_influence_is_what_zeroing_each_weight_does() -> None:
    """VisiPruner eq. 6-8 in closed form, 6 query heads on 2 key/value heads."""
    torch.manual_seed(0)
    weights = torch.softmax(3 * torch.randn(2, 6, 9, dtype=torch.float64), dim=-1)
    value = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    repeated = value.repeat_interleave(3, dim=1)
    output = torch.einsum("bhn,bhnd->bhd", weights, repeated)
    found = influence(weights, value, output)
    for token in range(9):
        zeroed = weights.clone()
        zeroed[:, :, token] = 0
        changed = torch.einsum("bhn,bhnd->bhd", zeroed, repeated)
        l2 = (output - changed).flatten(1).norm(dim=1)
        cos = torch.cosine_similarity(output.flatten(1), changed.flatten(1), dim=1, eps=0.0)
        assert (found.l2[:, token] - l2).abs().max() < 1e-12
        assert (found.cos[:, token] - cos).abs().max() < 1e-12
    assert (found.output_norm - output.flatten(1).norm(dim=1)).abs().max() < 1e-12


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_shows_what_the_layer_did(family: str, attn: str) -> None:
    model = tiny.model(family, attn=attn, layers=LAYERS)
    inputs = tiny.inputs(family, batch=2, left_pad=3, ragged=True)
    length = inputs["input_ids"].shape[1]
    valid = inputs["attention_mask"].bool()
    everything = LayerRule(torch.ones(2, length, length, dtype=torch.bool))
    views: list[LayerView] = []

    def keep(view: LayerView) -> None:
        view.weights(), view.influence()
        views.append(view)

    with float64_throughout():
        _, records = forward(model, inputs, lambda layer: everything, torch.zeros_like(valid))
        with observe(model, keep), torch.no_grad():
            seen = model(**inputs).logits
        with torch.no_grad():
            plain = model(**inputs).logits
    assert torch.equal(seen, plain)
    assert [view.layer for view in views] == list(range(dense(LAYERS).layers))
    for view, record in zip(views, records, strict=True):
        expected = record.weights[:, :, -1]
        assert (view.weights()[:, :, 0] - expected).abs().max() < 1e-12
        some = torch.tensor([[length - 3, length - 2], [length - 4, length - 1]])
        rows = torch.stack([record.weights[sample][:, some[sample]] for sample in range(2)])
        assert (view.weights(some) - rows).abs().max() < 1e-12
        output = torch.einsum("bhn,bhnd->bhd", expected, record.value)
        zeroed = expected.clone()
        zeroed[:, :, 6] = 0
        changed = torch.einsum("bhn,bhnd->bhd", zeroed, record.value)
        assert (view.influence().l2[:, 6] - (output - changed).flatten(1).norm(dim=1)).abs().max() < 1e-12
        assert torch.equal(view.valid, valid)
