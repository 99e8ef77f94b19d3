"""Deciding without a model: what is proposed, what the limits allow, and that the cheapest that holds is found."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.deciding.candidates import (
    budgets,
    deepest,
    earliest,
    exits,
    filters,
    member,
    proposals,
    shallows,
    suggested,
)
from calibrate.deciding.decide import decide
from calibrate.deciding.search import Limits, decoder_flops, profile_workload, question_flops
from calibrate.probes.stats import proportion, wilson
from calibrate.running.trial import Agreement
from planner.cost import cost
from planner.errors import ExtensionError, InputError
from planner.policies import FastV, Policy, VisiPruner, usable
from planner.policies.base import REGISTRY
from planner.policies.before_decoder import BeforeDecoder
from planner.policies.visipruner import SHALLOW_RULES, UNTOUCHED
from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity
from planner.spec import ModelSpec

CONFIG = {
    "model_type": "llava",
    "image_token_index": 3,
    "vision_feature_layer": -1,
    "text_config": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 10,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 60, "patch_size": 5,
    },
}  # fmt: skip
SPEC = ModelSpec.from_config(CONFIG)
LAYERS = 10


@pytest.fixture(autouse=True)
def spaces_only(monkeypatch):
    """What is proposed here are windows and a toy's members, not the ladders of policies before the decoder."""
    monkeypatch.setattr(
        "calibrate.deciding.candidates.usable",
        lambda: (policy for policy in usable() if not issubclass(policy, BeforeDecoder)),
    )


def curve(first, values):
    return {
        "k": list(range(first, first + len(values))),
        "agreement": [proportion(round(v * 100), 100) for v in values],
    }


def profile(alone=0, exit_layer=7, least=144):
    """Text may be blind in [0, alone), and the image may be dropped from `exit_layer` on; influence says nonsense."""
    ids = np.arange(4)
    rows = {"filter": np.zeros((4, 1)), "kept": np.full((4, 1, 1), 5), "exit": np.full((4, 1, 1), 2)}
    arrays = {"influence/ids": ids}
    for name, values in rows.items():
        arrays[f"influence/{name}.data"] = (
            values.reshape(4, *values.shape[2:]) if values.ndim == 3 else values.reshape(4)
        )
        arrays[f"influence/{name}.lengths"] = np.ones(4, np.int64)
    curves = {
        "prefix_before": curve(1, [1.0] * alone + [0.5] * (LAYERS - alone)),
        "masked_from": curve(0, [0.5] * exit_layer + [1.0] * (LAYERS - exit_layer)),
    }
    lengths = {"visual": {"value": 144, "least": least, "most": 144}}
    return Profile(
        model=ModelIdentity(
            id="m",
            family="llava",
            config=CONFIG,
            config_digest=SPEC.digest,
            layers=LAYERS,
            hidden_size=64,
            image_token_id=3,
        ),
        samples=SampleIdentity(digest="s", n=4, source="s.jsonl"),
        prompt=PromptShape(visual_tokens=144, text_tokens=10, system_tokens=4),
        processor={},
        probes={
            "prompt": ProbeResult(n=4, settings={}, values=lengths),
            "influence": ProbeResult(
                n=4,
                settings={"filter_cos": [0.995]},
                values={
                    "suggested": {"0.5": {"filter": 0, "keep": 5, "exit": 2}},
                    "stages": {"0.995": {"absolute": {"never_filtered": 3}}},
                },
            ),
            "masking": ProbeResult(n=4, settings={}, values=curves),
        },
        environment={},
        created_with="test",
    ).with_arrays(arrays)


class Truth:
    """A bench with a known truth.

    Blindness in [0, alone) is harmless, so are `budget` tokens from a later layer on, and none from layer `exit` on.
    """

    def __init__(self, n, alone, budget, exit_layer, whole_budget=None):
        self.n, self.alone, self.budget, self.exit, self.whole = n, alone, budget, exit_layer, whole_budget or budget
        self.executed, self.refusals = [], []

    def __len__(self):
        return self.n

    def first_token(self, schedule, misses=None):
        return self._agreement(schedule, self.budget)

    def whole_answer(self, schedule, max_new_tokens, misses=None):
        self.executed.append(schedule)
        return self._agreement(schedule, self.whole)

    def _agreement(self, schedule, budget):
        blind = max([s.last for s in schedule.stages if s.text_to_visual == "none"], default=0)
        isolated = max([s.last for s in schedule.stages if s.isolated], default=0)
        tokens, gone, early = 144, LAYERS, False
        for stage in schedule.stages:
            for select in stage.selects:
                early |= stage.last <= self.alone and 0 < select.keep.count < 144
                tokens = min(tokens, select.keep.count) if select.keep.count else tokens
                gone = stage.last if select.keep.count == 0 else gone
        harmless = blind <= self.alone and isolated <= self.alone and not early
        good = harmless and tokens >= budget and gone >= self.exit
        return Agreement(self.n if good else 0, self.n, 0.0)


def run(truth, held, **limits):
    return decide(profile(truth.alone, truth.exit), SPEC, truth, held, Limits(**limits))


def test_a_window_is_found_with_its_shallow_stage_exit_and_budget():
    found = run(Truth(64, 3, 20, 7), Truth(192, 3, 20, 7))
    # No score is better than another here, and which is cheapest is a matter of rounding.
    expected = VisiPruner(filter=3, keep=20, exit=7, visual_attention="prefix", rank_by=found.policy.rank_by)
    assert found.policy == expected
    assert [(s.first, s.last, s.text_to_visual) for s in found.schedule.stages] == [
        (0, 3, "none"), (3, 4, "full"), (4, 7, "full"), (7, 10, "full"),
    ]  # fmt: skip
    assert found.measured == proportion(192, 192)
    assert [note for note in found.notes if "exit layer 2" in note], "influence is contradicted by the curve"
    assert [note for note in found.notes if "never fires on 3 of 4 samples" in note]


def test_a_shallow_rule_that_holds_everywhere_is_tried_up_to_the_exit():
    truth = Truth(64, 9, 20, 7)  # blindness is harmless nearly to the end, but the search leaves one layer to the image
    found = run(truth, Truth(192, 9, 20, 7))
    assert found.policy.filter == 5 and found.policy.exit == 7


def test_without_a_window_the_shallow_stage_is_empty():
    found = run(Truth(64, 0, 20, 7), Truth(192, 0, 20, 7))
    assert found.schedule.stages[0].text_to_visual == "full" and found.schedule.stages[0].visual_attention == "full"
    assert (found.policy.filter, found.policy.keep, found.policy.exit) == (0, 20, 7)


def test_the_validation_split_overrules_the_proposal_split():
    held = Truth(192, 2, 58, 8)
    found = run(Truth(64, 3, 20, 7), held)
    assert held.whole_answer(found.schedule, 16).misses == 0
    costs = [t.decoder_flops for t in found.trials if t.validation is not None and t.validation.misses == 0]
    assert question_flops(SPEC, profile_workload(profile()), found.schedule, 2) == min(costs)
    assert found.policy.keep == 58 and found.policy.exit in (8, 9)


def test_whole_answers_decide_and_not_first_tokens():
    found = run(Truth(64, 0, 5, 7), Truth(192, 0, 5, 7, whole_budget=86))
    assert found.policy.keep == 86


def test_a_model_that_tolerates_nothing_stays_dense_and_says_so():
    held = Truth(192, 0, 10**6, LAYERS)
    found = run(Truth(64, 0, 20, 7), held, validation_trials=9)
    assert str(found.policy) == "dense" and found.schedule.empty and found.measured is None
    assert "the plan is dense" in found.notes[-1]
    assert len(held.executed) <= 9, "trials are bounded"


def test_what_saves_nothing_is_no_plan():
    found = run(Truth(64, 0, 144, LAYERS), Truth(192, 0, 144, LAYERS))
    assert str(found.policy) == "dense", "selecting everything holds, and costs more than not selecting"


def test_too_few_validation_samples_are_refused():
    with pytest.raises(InputError, match="12 validation samples cannot show"):
        run(Truth(4, 0, 20, 7), Truth(12, 0, 20, 7), agreement=0.98, confidence=0.8)


@pytest.mark.parametrize("limits", [{"agreement": 0}, {"agreement": 1.1}, {"confidence": 0.4}, {"confidence": 1.0}])
def test_limits_that_make_no_sense(limits):
    with pytest.raises(InputError):
        Limits(**limits)


@pytest.mark.parametrize(
    ("n", "agreement", "confidence"), [(192, 0.98, 0.8), (192, 0.98, 0.5), (30, 0.98, 0.8), (500, 0.9, 0.95)]
)
def test_allowed_misses_are_the_largest_number_whose_bound_holds(n, agreement, confidence):
    allowed = Limits(agreement=agreement, confidence=confidence).misses(n)
    for misses in range(n):
        holds = wilson(n - misses, n, confidence, one_sided=True)[0] >= agreement
        assert holds == (misses <= allowed)


def test_depth_and_exit_are_read_off_curves_up_to_the_first_failure():
    assert deepest(curve(1, [1, 1, 0.9, 1]), 0.98) == 2
    assert deepest(curve(1, [0.9, 1]), 0.98) == 0
    assert earliest(curve(0, [1, 0.9, 1, 1]), 0.98, 4) == 2
    assert earliest(curve(0, [1, 1, 1, 0.9]), 0.98, 4) == 4


def test_proposals_come_from_both_influence_and_curves():
    found = profile(alone=3)
    stages = suggested(found, 4)
    assert {s["exit"] for s in stages} == {2} and {s["keep"] for s in stages} == {5}
    assert exits(found, stages, 0.98) == [2, 6, 7, 8, 10]
    (window,) = VisiPruner.candidates(found, SPEC)
    assert shallows(window, found, stages, 0.98) == [(SHALLOW_RULES[0], 3)], (
        "rules without a curve follow influence, which says 0"
    )
    assert filters(stages, 7) == [0, 3, 5]
    assert 5 / 144 in budgets(found, stages) and budgets(found, stages)[-1] == 1.0


def test_a_budget_is_a_number_of_tokens_only_where_prompts_are_alike():
    (window,) = VisiPruner.candidates(profile(), SPEC)

    def candidate(least=144, filter_layer=0, keep=0.5, exit_layer=10):
        return member(window, profile(least=least), UNTOUCHED, filter_layer, keep, exit_layer, "l2")

    assert candidate().keep == 72 and candidate().exit is None
    assert candidate(least=100).keep == 0.5
    assert candidate(least=100, keep=1.0).keep == 144, "everything is a count that nobody exceeds"
    shallow = candidate(filter_layer=2, exit_layer=7)
    assert shallow.visual_attention == "full" and shallow.exit == 7


class _Proposing(Policy):
    """Members of FastV's kind, proposed as they are."""

    name = "proposing"
    summary = "for this test"
    ratio: float

    def schedule(self, spec, workload=None, profile=None):
        return FastV(k=2, ratio=self.ratio).schedule(spec)

    @classmethod
    def candidates(cls, profile, spec):
        return [cls(ratio=0.5), cls(ratio=0.9)]


del REGISTRY[_Proposing.name]  # known where a test asks for it only


class Fewest(Truth):
    """Any schedule holds that keeps some 14 of 144 tokens from layer 2 on, and never fewer, and has no blind layers."""

    def _agreement(self, schedule, budget):
        shares = [s.keep.fraction for stage in schedule.stages for s in stage.selects if hasattr(s.keep, "fraction")]
        return Agreement(self.n if shares and min(shares) >= self.budget else 0, self.n, 0.0)


@pytest.fixture
def proposing(monkeypatch):
    monkeypatch.setitem(REGISTRY, "proposing", _Proposing)
    return _Proposing


def test_what_other_policies_propose_is_executed_and_can_be_the_plan(proposing):
    found = decide(profile(), SPEC, Fewest(64, 0, 0.05, 7), Fewest(192, 0, 0.05, 7), Limits())
    assert found.policy == proposing(ratio=0.9) and found.measured == proportion(192, 192)
    found = decide(profile(), SPEC, Fewest(64, 0, 0.05, 7), Fewest(192, 0, 0.3, 7), Limits())
    assert found.policy == proposing(ratio=0.5), "the cheaper one fails on the validation split"
    found = decide(profile(), SPEC, Fewest(64, 0, 0.6, 7), Fewest(192, 0, 0.6, 7), Limits())
    assert str(found.policy) == "dense"


def test_all_policies_are_asked_and_a_broken_one_is_noted(proposing, monkeypatch):
    members, windows, notes = proposals(profile(), SPEC)
    assert members == [proposing(ratio=0.5), proposing(ratio=0.9)] and len(windows) == 1 and not notes
    broken = ExtensionError("the package toy adds 'toy', which cannot be used", "Mend it")
    monkeypatch.setattr("calibrate.deciding.candidates.usable", lambda: iter([broken, proposing]))
    members, windows, notes = proposals(profile(), SPEC)
    assert len(members) == 2 and not windows and "the package toy" in notes[0]


def test_decoder_flops_leave_the_tower_out():
    schedule = VisiPruner(filter=3, keep=10, exit=7).schedule(SPEC)
    found = cost(SPEC, profile_workload(profile()), schedule)
    expected = found.prefill_flops - found.prefill["vision"] - found.prefill["projector"]
    assert decoder_flops(SPEC, profile_workload(profile()), schedule) == expected
