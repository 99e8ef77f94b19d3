"""What a plan says of itself: what was promised and how it was proven, and what was measured beside it.

evidence
├── promise      loss, limit, confidence, every rung that was tested; absent in plans made before promises were proven
├── parts        the samples that proposed, selected and certified
├── search       how many candidates there were, and the front of those that were executed
├── rows         policies executed on samples the decision never saw, controls among them
└── kinds        the plan on those samples, by kind of question
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0)]
#: What a sample loses: `calibrate.running.losses`.
LossName = Literal["answer", "tokens", "nll", "score"]
#: What a row of a table is: the dense model, the plan, a control (`calibrate.running.controls`), or another policy.
Role = Literal["dense", "plan", "floor", "blind", "policy"]
#: The metric of tables in plans of the first schema: `calibrate.running.metrics.leading`.
EARLIER_METRIC = "leading"


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Measured(_Block):
    """A mean over samples with its 95 % interval."""

    value: float
    low: float
    high: float
    n: Annotated[int, Field(ge=1)]


class Rung(_Block):
    """A rung of the ladder on the certify samples, as `calibrate.deciding.proof.Tested` has it.

    Attributes:
        share: what it costs of what the search minimised, to dense.
    """

    policy: str
    share: float
    loss: float
    misses: Whole
    n: Whole
    pictures: Whole
    p: Share
    proven: bool
    bound: float
    kinds: dict[str, float] = Field(default_factory=dict)


class Promise(_Block):
    """What was to be proven, and what was.

    Attributes:
        loss: of a sample; `metric` is what `score` is a drop of.
        limit: the largest expected loss; of each kind of question `kind_limit`, where one was asked for.
        confidence: of the promise.
        proven: it holds of this plan's policy. The dense plan loses nothing, so there is nothing to prove of it.
        rungs: length of the frozen ladder.
        tested: its rungs as far as they were tested, the safest first.
    """

    loss: LossName
    metric: str | None = None
    limit: Share
    kind_limit: Share | None = None
    confidence: Share
    proven: bool
    rungs: Whole
    tested: tuple[Rung, ...]

    def rung(self, policy: str) -> Rung | None:
        """What was tested of a policy."""
        return next((one for one in self.tested if one.policy == policy), None)


class Part(_Block):
    """Samples with one task in the decision."""

    digest: str
    n: Whole
    pictures: Whole


class Parts(_Block):
    """The three parts of the calibration samples, which share no picture (`calibrate.deciding.split`)."""

    propose: Part
    select: Part
    certify: Part


class Point(_Block):
    """A candidate that no other beat in both cost and loss: `share` of dense, mean loss on the samples it ran on."""

    policy: str
    share: float
    loss: Measured


class Search(_Block):
    """How the ladder was found.

    Attributes:
        minimised: what `share` is a share of, such as ``decoder FLOPs``.
        candidates: how many were costed; `executed`: schedules that ran on samples.
        front: the best of those that ran, the cheapest first. Losses are of samples that also selected.
    """

    minimised: str
    candidates: Whole
    executed: Whole
    front: tuple[Point, ...] = ()


class Place(_Block):
    """Tokens `first` to `last` of the dense answers, counted from 1, and the mean loss of a token there; `n` of `loss`
    counts the answers that reach so far."""

    first: Annotated[int, Field(ge=1)]
    last: Annotated[int, Field(ge=1)]
    loss: Measured


class Row(_Block):
    """One policy, or a control, executed on the evaluation samples.

    Attributes:
        policy: its spelling; of a control what was done.
        accuracy: mean of `Evidence.metric`; absent when the samples carry no answers.
        agreement: whole answers equal to the dense model's.
        loss: mean of the promise's loss, where that is another than `agreement` tells.
        along: where it is measured token by token: by place in the answer.
        runaway: answers that did not end before the token limit.
        decoder_flops: analytic, mean over the samples, `exact` convention, decoder only; absent where no picture is
            shown.
        visual_attention_ratio, kv_cache_ratio: to dense.
        kv_cache_bytes: mean over the samples.
        prefill_ms: measured median for one sample.
    """

    policy: str
    role: Role
    accuracy: Measured | None
    agreement: Measured
    loss: Measured | None = None
    along: tuple[Place, ...] = ()
    runaway: Measured | None = None
    decoder_flops: float | None
    decoder_flops_ratio: float | None
    visual_attention_ratio: float | None
    kv_cache_bytes: float | None
    kv_cache_ratio: float | None
    prefill_ms: float | None


class Kind(_Block):
    """The plan on one kind of question of the evaluation samples; fields as in `Row`."""

    kind: str
    accuracy: Measured | None
    dense_accuracy: Measured | None
    agreement: Measured
    loss: Measured | None = None


class Evidence(_Block):
    """What was measured for the decision.

    Attributes:
        profile_sha256: the profile it was derived from.
        calibration_digest, calibration_n: the samples it was decided on.
        calibration_questions: a short digest of each; an evaluation on one of them is refused.
        promise, parts, search: absent in plans of the first schema.
        agreement_when_chosen, agreement_limit: of those plans: the agreement on the samples by which they were chosen
            from many, so more than is to be expected of others; and what was asked for.
        answer_tokens: mean length of the dense model's answers; `longest_answer`: where they were cut off.
        dtype: number format in which all was measured.
        questions: about each image for which costs were compared; above 1 the plan assumes an image cache.
        evaluation_digest: samples the decision never saw.
        metric: what `accuracy` in rows and kinds is a mean of.
        notes: caveats from the calibration, such as a threshold that failed on this model.
    """

    profile_sha256: str
    calibration_digest: str
    calibration_n: int
    calibration_questions: str | None = None
    promise: Promise | None = None
    parts: Parts | None = None
    search: Search | None = None
    agreement_when_chosen: Measured | None = None
    agreement_limit: Share | None = None
    answer_tokens: float | None = None
    longest_answer: Annotated[int, Field(ge=1)] | None = None
    dtype: str | None = None
    questions: Annotated[int, Field(ge=1)] = 1
    evaluation_digest: str | None
    metric: str | None = None
    rows: tuple[Row, ...]
    kinds: tuple[Kind, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, role: Role) -> Row | None:
        """The first row of a role."""
        return next((row for row in self.rows if row.role == role), None)

    @property
    def least_agreement(self) -> float | None:
        """The share of answers that had to stay the same, where that was asked for."""
        return self.agreement_limit if self.promise is None else 1 - self.promise.limit


def upgraded(evidence: dict[str, Any], policy: str) -> dict[str, Any]:
    """Evidence of the first schema in the terms of the second.

    Its rows were dense, then the plan if that changes anything, then other policies; accuracy went by leading words.
    """
    rows = [
        {**row, "role": "dense" if row["policy"] == "dense" else "plan" if row["policy"] == policy else "policy"}
        for row in evidence["rows"]
    ]
    changed = {name: value for name, value in evidence.items() if name != "held_back_agreement"}
    return {
        **changed,
        "rows": rows,
        "metric": EARLIER_METRIC,
        "agreement_when_chosen": evidence["held_back_agreement"],
    }
