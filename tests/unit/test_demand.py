"""What can be told and refused before a model is loaded: numbers, goals, and samples that are too few."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from calibrate.deciding.demand import Demand
from calibrate.deciding.proof import Rung, prove
from calibrate.deciding.stated import parts_of, promise_of
from calibrate.inputs.samples import Sample, SampleSet
from planner.errors import InputError
from planner.schedule import dense


def samples(count, questions=1, answer=("a",), kinds=("",)):
    made = []
    for i in range(count):
        picture = Image.fromarray(np.array([[[i % 256, i // 256, 7]]], np.uint8))
        made += [Sample((picture,), f"{i}-{q}", answer, kinds[(i + q) % len(kinds)]) for q in range(questions)]
    return SampleSet(tuple(made), "test")


def told(demand, chosen):
    return list(demand.told(chosen, demand.split(chosen)))


def refused(demand, chosen):
    with pytest.raises(InputError) as caught:
        demand.check(chosen, demand.split(chosen))
    return str(caught.value)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"agreement": 98}, "an agreement of 98"), ({"agreement": 1.0}, "agreement of 1"),
        ({"agreement": -0.1}, "agreement of -0.1"),
        ({"confidence": 0.3}, "confidence of 0.3"), ({"confidence": 95}, "confidence of 95"),
        ({"kind_limit": 2.0}, "loss of 2"), ({"loss": "score"}, "'score' does not belong to the goal 'agreement'"),
        ({"goal": "accuracy", "loss": "answer"}, "does not belong"), ({"metric": "exakt"}, "no metric is called"),
    ],
)  # fmt: skip
def test_wrong_numbers_and_words_are_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        Demand(**wrong)


def test_nothing_of_this_imports_torch():
    code = "import sys; from calibrate.deciding.demand import Demand; Demand(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("count", [10, 47, 103])
def test_too_few_samples_are_refused_with_what_would_be_enough(count):
    text = refused(Demand(), samples(count))
    assert "cannot prove an agreement of 0.98" in text and "Give 104 samples" in text and "--best-effort" in text
    best = float(text.split("--agreement ")[1].split()[0])
    chosen = samples(count)
    lowered = Demand(agreement=best)
    lowered.check(chosen, lowered.split(chosen))
    relaxed = Demand(best_effort=True)
    relaxed.check(chosen, relaxed.split(chosen))


def test_the_named_number_is_just_enough():
    for demand, enough in ((Demand(), 104), (Demand(agreement=0.95), 56), (Demand(loss="tokens"), 115)):
        demand.check(samples(enough), demand.split(samples(enough)))
        assert f"Give {enough} samples" in refused(demand, samples(enough - 1))


def test_what_samples_can_prove_is_told():
    lines = told(Demand(), samples(256))
    assert lines[0] == "256 samples: 53 propose, 54 more select, 149 others certify"
    half, quarter = (binom.cdf(1, 149, p) for p in (0.01, 0.005))
    assert f"at most 1 of 149 whole answers change: a plan that truly keeps 0.995 in {quarter:.0%}" in lines[1]
    assert f"and 0.99 in {half:.0%}" in lines[1] and "453 certify samples would make the latter 80%" in lines[1]
    assert "at best" in told(Demand(best_effort=True), samples(40))[1]
    assert "certify samples would" not in told(Demand(), samples(800))[1]


def test_questions_about_one_picture_count_once():
    lines = told(Demand(), samples(160, questions=4))
    assert "480 others certify about 120 pictures, each counted" in lines[0]
    few = told(Demand(), samples(110, questions=4))
    assert "about 80 pictures, one question of each counted" in few[0] and "at most 0 of 80 whole answers" in few[1]
    assert "of 160 samples 20 can certify" in refused(Demand(), samples(40, questions=4))
    assert "all 300 samples are about one picture" in _message(lambda: Demand().split(samples(1, questions=300)))


def _message(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_accuracy_needs_answers():
    accuracy = Demand(goal="accuracy")
    assert accuracy.settled == "score"
    assert "no accepted answer" in refused(accuracy, samples(256, answer=()))
    accuracy.check(samples(40), accuracy.split(samples(40)))


def test_a_limit_per_kind_needs_enough_of_each():
    demand = Demand(kind_limit=0.05)
    text = refused(demand, samples(256, kinds=("often",) * 9 + ("seldom",)))
    assert "needs 32 certify samples of each kind" in text and "'seldom' (" in text and "often" not in text
    demand.check(samples(256, kinds=("a", "b")), demand.split(samples(256, kinds=("a", "b"))))
    assert "needs samples with a 'kind'" in refused(demand, samples(256))


def test_a_plan_states_what_was_proven_and_on_which_samples():
    demand, chosen = Demand(kind_limit=0.5), samples(256, kinds=("a", "b"))
    parts = demand.split(chosen)
    lost = {"safe": 1, "bold": 9}
    proof = prove(
        [Rung("safe", dense(2), 0.5), Rung("bold", dense(2), 0.3), Rung("last", dense(2), 0.2)],
        lambda rung: np.arange(149) < lost[rung.policy],
        demand.limit, demand.confidence, binary=True, kinds=[one.kind for one in parts.certify], kind_limit=0.5,
    )  # fmt: skip
    found = promise_of(demand, "answer", proof)
    assert (found.limit, found.confidence, found.kind_limit, found.rungs, found.metric) == (0.02, 0.8, 0.5, 3, None)
    assert [(one.policy, one.share, one.misses, one.n, one.proven) for one in found.tested] == [
        ("safe", 0.5, 1, 149, True), ("bold", 0.3, 9, 149, False),
    ]  # fmt: skip
    assert found.proven and set(found.tested[0].kinds) == {"a", "b"}
    assert promise_of(Demand(goal="accuracy", metric="anls"), "score", None).metric == "anls"
    assert not promise_of(demand, "answer", None).proven
    stated = parts_of(parts)
    assert (stated.propose.n, stated.select.n, stated.certify.n, stated.certify.pictures) == (53, 54, 149, 149)
    assert stated.certify.digest == parts.certify.digest
    grouped = parts_of(Demand().split(samples(160, questions=4)))
    assert (grouped.certify.n, grouped.certify.pictures, grouped.propose.pictures) == (480, 120, 20)
