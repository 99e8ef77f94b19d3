"""Scores that are capped (Gemma 2 and what is built on it): taken into account, or refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers

from calibrate.inputs.identity import identify
from calibrate.probes.attribution.parts import find_attribution_parts
from calibrate.probes.attribution.prefix import capture
from calibrate.probes.context.attention import attended
from planner.errors import UnsupportedModelError
from planner.runtime import attach
from planner.runtime.tensors.weights import attention_weights
from tests import tiny
from tests.float64 import float64_throughout
from tests.schedules import LAYERS, SCHEDULES
from tests.tiny.configs import FAMILIES, VOCAB, text


def test_a_cap_bends_scores_before_the_softmax() -> None:
    """One head, keys along the axes: scores 0, 1 and 6, capped at 2."""
    query, key = torch.eye(3)[:1] * 1.0, torch.tensor([[0.0, 0, 0], [1, 0, 0], [6, 0, 0]])
    found = attention_weights(query[None, None].double(), key[None, None].double(), None, 1.0, softcap=2.0)
    bent = torch.tensor([0.0, 2 * torch.tanh(torch.tensor(0.5)), 2 * torch.tanh(torch.tensor(3.0))]).double()
    assert torch.allclose(found[0, 0, 0], bent.exp() / bent.exp().sum(), atol=1e-6)


def test_the_matrices_would_notice_a_missing_cap() -> None:
    """With the caps taken off, selections and logits of the tiny PaliGemma 2 differ."""
    inputs, found = tiny.inputs("paligemma2"), []
    for capped in (True, False):
        model = tiny.model("paligemma2", layers=LAYERS, fresh=True)
        if not capped:
            for layer in model.get_decoder().layers:
                layer.self_attn.attn_logit_softcapping = None
        with float64_throughout(), torch.no_grad(), attach(model, SCHEDULES["fastv"]) as handle:
            logits = model(**inputs, logits_to_keep=1).logits
            found.append((logits, handle.kept))
    assert (found[0][0] - found[1][0]).abs().max() > 1e-3
    assert found[0][1] != found[1][1]


def test_probes_that_rebuild_attention_refuse_capped_scores() -> None:
    llava = FAMILIES["llava"][1](4)
    llava["text_config"] = text(4, model_type="gemma2", head_dim=16, attn_logit_softcapping=2.0)
    config = transformers.LlavaConfig(**llava)
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    inputs = tiny.inputs("llava", dtype=torch.float32)
    assert int(inputs["input_ids"].max()) < VOCAB
    with pytest.raises(UnsupportedModelError, match="'softcap', which head attribution does not reproduce"):
        capture(model, find_attribution_parts(model), inputs)
    with pytest.raises(UnsupportedModelError, match="caps its attention scores"):
        attended(model, identify(model, "").parts, inputs, 3)
