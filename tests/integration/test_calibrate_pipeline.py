"""The whole way on the shipped plain model, in small: profile, decision, evaluation, and what is refused."""

from __future__ import annotations

import pkgutil
from dataclasses import replace

import pytest
import torch

from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Objective
from calibrate.freeze import freeze
from calibrate.inputs.batches import Batches
from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.samples import Sample, load_samples
from calibrate.measuring.run import merge_states
from calibrate.measuring.state import SUFFIX
from calibrate.pipeline.options import Options
from calibrate.pipeline.run import calibrate_and_plan
from calibrate.running.execute import accepted_first_tokens, divergence, executing, first_logits, generate
from calibrate.running.losses import LossRunner
from calibrate.running.timing import prefill_ms
from planner.errors import CalibrationError, InputError, RuntimeStateError
from planner.policies import VisiPruner
from planner.profile import Profile
from planner.schedule import Schedule

PLAIN, DATA = reference_path("plain"), reference_path("easy_vqa")


OPTIONS = Options(
    model=str(PLAIN),
    data=str(DATA / "calibration.jsonl"),
    evaluation_data=str(DATA / "evaluation.jsonl"),
    num_samples=64,
    evaluation_samples=16,
    settings={"masking": {"curves": ("alone_before", "masked_from")}},
    demand=Demand(agreement=0.9),
    measure=24,
    answer_tokens=4,
    timing_rounds=1,
)


def quietly(options):
    return calibrate_and_plan(options, echo=lambda line: None)


@pytest.fixture(scope="module")
def outcome():
    return quietly(OPTIONS)


@pytest.fixture(scope="module")
def plain():
    return load(str(PLAIN))


@pytest.fixture(scope="module")
def bench(plain):
    encoder = Encoder(plain.processor, identify(plain.model, plain.id).visual_ids)
    return LossRunner(
        Batches(load_samples(DATA / "calibration.jsonl").choose(10), encoder, plain.model, 4), answer_tokens=4
    )


def test_the_plan_is_cheaper_and_agrees(outcome):
    rows = outcome.evaluation.rows
    dense, plan, fastv, random, resize = (row for row in rows if row.role not in ("floor", "blind"))
    assert [row.role for row in rows] == ["dense", "plan", "floor", "blind", "policy", "policy", "policy"]
    assert dense.policy == "dense" and dense.agreement.value == 1 and dense.accuracy.value > 0.85
    assert plan.policy == str(outcome.decision.policy)
    assert plan.decoder_flops_ratio < 0.7 and plan.kv_cache_ratio < 0.7 and plan.agreement.value >= 0.8
    names = [row.policy.partition(":")[0] for row in (fastv, random, resize)]
    assert names == ["fastv", "random", "resize"]
    for baseline in (fastv, random, resize):
        more = baseline.decoder_flops / plan.decoder_flops
        # One that selects behind a layer cannot get as cheap as a plan that selects before all of them.
        assert 1 <= more < 1.05 or (more > 1 and "ratio=0.9999" in baseline.policy)
    assert all(row.prefill_ms > 0 for row in (dense, plan, fastv, random))
    assert set(outcome.evaluation.by_kind["dense"]) <= {"color", "shape", "yes/no"}
    proof = outcome.decision.proof
    assert outcome.decision.proven and proof.tested[0].n == len(outcome.split.certify) > 20
    assert proof.shipped.rung.policy == plan.policy


def test_probes_that_propose_see_no_sample_that_certifies(outcome):
    propose = len(outcome.split.propose)
    assert outcome.profile.probes["masking"].n == propose and outcome.profile.probes["influence"].n == 64
    parts = [{id(one) for one in part} for part in outcome.split.parts.values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 64


def test_the_plan_states_what_was_asked_shown_and_searched(outcome):
    made = freeze(outcome)
    evidence = made.evidence
    assert (evidence.promise.limit, evidence.promise.proven, evidence.promise.loss) == (0.1, True, "answer")
    assert evidence.parts.certify.digest == outcome.split.certify.digest
    assert evidence.search.executed == outcome.decision.executed and evidence.search.minimised == "decoder FLOPs"
    front = [(point.share, point.policy) for point in evidence.search.front]
    assert front == sorted(front) and evidence.dtype == "float32" and evidence.questions == 1
    assert 1 <= evidence.answer_tokens < 3


def test_a_decision_goes_on_from_what_was_measured(tmp_path, outcome, monkeypatch):
    outcome.profile.save(tmp_path / "profile.json")
    monkeypatch.setattr("calibrate.pipeline.run.calibrate_job", lambda *a, **k: pytest.fail("measured again"))
    again = replace(OPTIONS, profile=tmp_path / "profile.json", out=tmp_path, timing_rounds=0)
    first = quietly(again)
    assert (first.decision, first.profile) == (outcome.decision, outcome.profile)
    untimed = [row.model_copy(update={"prefill_ms": None}) for row in outcome.evaluation.rows]
    assert list(first.evaluation.rows) == untimed and (tmp_path / "trials.json").is_file()
    ran = []
    original = LossRunner.losses

    def counted(self, schedule, indices=None):
        if not schedule.empty:  # the dense model's noise is measured every time
            ran.append(indices)
        return original(self, schedule, indices)

    monkeypatch.setattr(LossRunner, "losses", counted)
    assert quietly(replace(again, evaluation_data=None)).decision == first.decision
    assert ran and all(indices is None for indices in ran), "only the proof runs again: its samples are opened once"


def test_the_profile_is_written_whatever_becomes_of_the_decision(tmp_path):
    hopeless = replace(OPTIONS, out=tmp_path, objective=Objective(max_kv_mb=1e-6), probes=("influence",), settings={})
    with pytest.raises(CalibrationError, match="--max-kv-mb 1e-06 is exceeded"):
        quietly(hopeless)
    assert Profile.load(tmp_path / "profile.json").samples.n == 64


def test_shards_merged_give_the_profile_of_one_process(outcome, tmp_path):
    for index in range(2):
        shard = replace(OPTIONS, shard=(index, 2), out=tmp_path)
        assert quietly(shard).profile is None
    assert merge_states(sorted(tmp_path.glob(f"*{SUFFIX}"))) == outcome.profile


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_samples": 60}, r"profile\.json was measured on other samples: 64 of calibration\.jsonl.*--num-samples"),
        ({"seed": 1}, "other samples"),
        ({"model": str(reference_path("windowed"))}, "on the model reference/plain .* this one is reference/windowed"),
    ],
)
def test_a_profile_of_something_else_decides_nothing(outcome, tmp_path, change, says):
    outcome.profile.save(tmp_path / "profile.json")
    with pytest.raises(CalibrationError, match=says):
        quietly(replace(OPTIONS, profile=tmp_path / "profile.json", **change))


def test_masking_curves_that_saw_certifying_samples_are_refused_before_the_model_answers(
    outcome, tmp_path, monkeypatch
):
    monkeypatch.setattr("calibrate.pipeline.run.Deciding.expect", lambda self, evaluation: pytest.fail("too late"))
    search = len(outcome.split.propose) + len(outcome.split.select)
    masking = outcome.profile.probes["masking"].model_copy(update={"n": search + 1})
    probes = {**outcome.profile.probes, "masking": masking}
    outcome.profile.model_copy(update={"probes": probes}).with_arrays(outcome.profile.arrays).sealed().save(
        tmp_path / "profile.json"
    )
    with pytest.raises(InputError, match="would see samples that certify"):
        quietly(replace(OPTIONS, profile=tmp_path / "profile.json"))
    with pytest.raises(InputError, match="would see samples that certify"):
        quietly(replace(OPTIONS, settings={"masking": {"samples": search + 1}}))


@pytest.fixture
def refusing(monkeypatch):
    """The model refuses to rank by attention, as a sliding window that does not reach the image makes it do."""
    from calibrate.running import forced

    def wrapped(original):
        def call(model, inputs, *rest):
            schedule = next((one for one in rest if isinstance(one, Schedule)), None)
            if schedule is not None and any(select.rank_by == "last_attention" for select in schedule.selects):
                raise RuntimeStateError("layer 0 does not see the image")
            return original(model, inputs, *rest)

        return call

    monkeypatch.setattr(forced, "generate", wrapped(forced.generate))


def test_what_the_model_refuses_is_left_out_of_decision_and_comparison(outcome, tmp_path, refusing):
    outcome.profile.save(tmp_path / "profile.json")
    found = quietly(replace(OPTIONS, profile=tmp_path / "profile.json"))
    assert any("left out: layer 0 does not see the image" in note for note in found.decision.notes)
    assert not any(select.rank_by == "last_attention" for select in found.decision.schedule.selects)
    names = [row.policy.partition(":")[0] for row in found.evaluation.rows if row.role == "policy"]
    assert names == ["random", "resize"], "fastv ranks by attention"


def test_execution_leaves_the_model_as_it_was_after_an_error(plain, bench):
    batch = bench.batches[0]
    before = first_logits(plain.model, batch.inputs)
    schedule = VisiPruner(filter=3, keep=5, exit=7).schedule(identify(plain.model, "m").spec)
    with pytest.raises(KeyError), executing(plain.model, schedule):
        raise KeyError
    assert torch.equal(first_logits(plain.model, batch.inputs), before)


def test_divergence_is_kullback_leibler():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()
    assert divergence(one, other).item() == pytest.approx(expected.item())
    assert divergence(one, one).item() == 0


def test_first_tokens_of_accepted_answers(bench):
    tokenizer = bench.batches.encoder.tokenizer
    ids = accepted_first_tokens(bench.batches.encoder, Sample((), "x", ("yes",)))
    assert tokenizer(" yes", add_special_tokens=False)["input_ids"][0] in ids
    assert tokenizer(" no", add_special_tokens=False)["input_ids"][0] not in ids
    answer = generate(bench.batches.model, bench.batches[0].inputs, 4)[:, 0].tolist()
    right = [
        token in accepted_first_tokens(bench.batches.encoder, s)
        for token, s in zip(answer, bench.batches[0].samples, strict=True)
    ]
    assert sum(right) >= 3


def test_timing_gives_a_time_for_each_schedule(plain, bench):
    schedules = [VisiPruner(filter=0, keep=k).schedule(identify(plain.model, "m").spec) for k in (144, 5)]
    assert all(time > 0 for time in prefill_ms(plain.model, bench.batches[0].inputs, schedules, rounds=2))


def test_refusals():
    with pytest.raises(InputError, match="no bundled samples"):
        calibrate_and_plan(Options(model=str(PLAIN)))
    few = Options(model=str(PLAIN), data=str(DATA / "calibration.jsonl"), num_samples=10)
    with pytest.raises(InputError, match=r"of 10 samples .* cannot prove"):
        quietly(few)


def test_model_processor_and_probes_are_set_up_once(monkeypatch):
    """What the pipeline has identified, measuring takes over."""
    made = []

    def counted(name, function):
        def call(*args, **kwargs):
            made.append(name)
            return function(*args, **kwargs)

        return call

    for module in ("calibrate.pipeline.run", "calibrate.measuring.run"):
        for name in ("identify", "Encoder", "build_probes"):
            whole = f"{module}.{name}"
            monkeypatch.setattr(whole, counted(name, pkgutil.resolve_name(whole)))
    found = quietly(replace(OPTIONS, num_samples=4, evaluation_data=None, decide=False, probes=("influence",)))
    assert found.profile.samples.n == 4
    assert sorted(made) == ["Encoder", "build_probes", "identify"]
