"""Build the frozen plan from a finished calibration."""

from __future__ import annotations

from calibrate.deciding.decide import ChosenPlan
from calibrate.deciding.objective import profile_workload
from calibrate.deciding.stated import parts_of, promise_of
from calibrate.pipeline.run import Outcome
from planner.errors import CalibrationError
from planner.evidence import Evidence, Measured, Point, Search
from planner.plan import Decision, Plan, created_with, predict
from planner.spec import ModelSpec

#: What was minimised, as tables call it.
_WORDS = {"flops": "decoder FLOPs", "kv": "KV cache", "prefill-ms": "prefill time", "latency": "time of a request"}


def freeze(outcome: Outcome, seed: int = 0) -> Plan:
    """The plan of a finished calibration, sealed.

    Raises:
        CalibrationError: the calibration measured only a part, or was not asked to decide.
    """
    profile, decision, evaluation = outcome.profile, outcome.decision, outcome.evaluation
    if profile is None or decision is None or outcome.split is None:
        raise CalibrationError("this calibration decided on no plan", "Run it unsharded and without --profile-only")
    spec = ModelSpec.from_config(profile.model.config)
    evidence = Evidence(
        profile_sha256=profile.profile_sha256,
        calibration_digest=profile.samples.digest,
        calibration_n=profile.samples.n,
        calibration_questions=profile.samples.questions,
        promise=promise_of(decision.demand, decision.loss, decision.proof),
        parts=parts_of(outcome.split),
        search=_search(decision),
        answer_tokens=outcome.answer_tokens,
        longest_answer=outcome.longest_answer,
        dtype=str(profile.environment["dtype"]),
        questions=decision.objective.questions,
        evaluation_digest=None if evaluation is None else evaluation.digest,
        metric=None if evaluation is None else evaluation.metric,
        rows=() if evaluation is None else evaluation.rows,
        kinds=() if evaluation is None else evaluation.kinds,
        notes=decision.notes,
    )
    return Plan(
        model=profile.model,
        decision=Decision(policy=str(decision.policy), schedule=decision.schedule, seed=seed),
        prediction=(predict(spec, profile_workload(profile), decision.schedule),),
        evidence=evidence,
        processor=profile.processor,
        created_with=created_with(),
    ).sealed()


def _search(decision: ChosenPlan) -> Search:
    """How the ladder was found, and the front."""
    front = tuple(
        Point(
            policy=one.policy,
            share=one.share,
            loss=Measured(value=one.loss, low=one.low, high=one.high, n=one.n),
        )
        for one in decision.trials
        if one.front
    )
    return Search(
        minimised=_WORDS[decision.objective.minimise],
        candidates=decision.searched,
        executed=decision.executed,
        front=front,
    )
