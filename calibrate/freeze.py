"""Build the frozen plan from a finished calibration."""

from __future__ import annotations

from calibrate.deciding.search import profile_workload
from calibrate.pipeline import Outcome
from planner.errors import CalibrationError
from planner.evidence import Evidence, Measured
from planner.plan import Decision, Plan, created_with, predict
from planner.spec import ModelSpec


def freeze(outcome: Outcome, seed: int = 0) -> Plan:
    """The plan of a finished calibration, sealed.

    Raises:
        CalibrationError: the calibration measured only a part, or was not asked to decide.
    """
    profile, decision, evaluation = outcome.profile, outcome.decision, outcome.evaluation
    if profile is None or decision is None:
        raise CalibrationError("this calibration decided on no plan", "Run it unsharded and without --profile-only")
    spec = ModelSpec.from_config(profile.model.config)
    evidence = Evidence(
        profile_sha256=profile.profile_sha256,
        calibration_digest=profile.samples.digest,
        calibration_n=profile.samples.n,
        agreement_limit=decision.limits.agreement,
        agreement_when_chosen=None if decision.measured is None else Measured.model_validate(decision.measured),
        evaluation_digest=None if evaluation is None else evaluation.digest,
        metric=None if evaluation is None else evaluation.metric,
        rows=() if evaluation is None else evaluation.rows,
        kinds=() if evaluation is None else evaluation.kinds,
        notes=decision.notes,
        calibration_questions=profile.samples.questions,
    )
    return Plan(
        model=profile.model,
        decision=Decision(policy=str(decision.policy), schedule=decision.schedule, seed=seed),
        prediction=(predict(spec, profile_workload(profile), decision.schedule),),
        evidence=evidence,
        processor=profile.processor,
        created_with=created_with(),
    ).sealed()
