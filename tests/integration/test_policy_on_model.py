"""A policy on a model without a plan: what its schedule does, for the length of a block or until it is detached."""

from __future__ import annotations

import pytest
import torch

from planner import Composition, FastV, FitPrune, ImageCache, PreLLM, Random, VisiPruner
from planner.errors import InputError
from planner.runtime import attach
from planner.spec import ModelSpec
from planner.workload import Workload
from tests import tiny
from tests.float64 import float64_throughout

LAYERS = 8
POLICIES = [
    VisiPruner(filter=3, keep=5, exit=6),
    FastV(k=2, ratio=0.5),
    Composition((PreLLM(keep=0.5, rank_by="norm"), VisiPruner(filter=3, keep=2, exit=6))),
]


@pytest.fixture
def model():
    return tiny.model("llava", layers=LAYERS)


def logits(model):
    with torch.no_grad(), float64_throughout():
        return model(**tiny.inputs("llava")).logits[:, -1]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_applied_and_attached_it_computes_its_schedule(policy, model):
    dense = logits(model)
    schedule = policy.schedule(ModelSpec.from_config(model.config.to_dict()))
    with attach(model, schedule):
        expected = logits(model)
    assert not torch.equal(expected, dense)
    with policy.apply(model) as handle:
        assert torch.equal(logits(model), expected)
        assert handle.report is not None
    assert torch.equal(logits(model), dense), "the model is as it was"
    handle = policy.attach(model)
    assert torch.equal(logits(model), expected)
    handle.detach()
    assert torch.equal(logits(model), dense)


def test_the_model_is_as_it_was_after_an_error(model):
    dense = logits(model)
    with pytest.raises(KeyError), POLICIES[0].apply(model):
        raise KeyError
    assert torch.equal(logits(model), dense)


def test_options_reach_the_runtime(model):
    policy, found = Random(k=2, ratio=0.9), []
    for seed in (0, 0, 1):
        with policy.apply(model, seed=seed):
            found.append(logits(model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    cache = ImageCache(max_bytes=1 << 20)
    with VisiPruner(filter=3, keep=5, exit=6).apply(model, image_cache=cache):
        logits(model)
    assert len(cache) == 1


def test_what_a_policy_lacks_is_asked_for(model):
    with pytest.raises(InputError, match="how many visual tokens"), FitPrune(reduction=0.5).apply(model):
        pass
    with FitPrune(reduction=0.5).apply(model, workload=Workload(visual_tokens=16)) as handle:
        logits(model)
        assert handle.report.visual[-1][0] < 16
    with pytest.raises(InputError, match="outside the model's layers"):
        VisiPruner(filter=LAYERS, keep=5).attach(model)
