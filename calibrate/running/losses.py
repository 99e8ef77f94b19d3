"""What a schedule loses, sample by sample, against the dense model.

| loss | of a sample | values |
|---|---|---|
| `answer` | the whole greedy answer, its end included, is another | 0 or 1 |
| `tokens` | share of the dense answer's tokens at which the schedule would have gone on otherwise | [0, 1] |
| `nll` | by how much less likely the dense answer became, in nats per token, cut off at `NLL_CAP` | [0, 1] |
| `score` | drop of a task metric against the accepted answers; negative where the schedule does better | [-1, 1] |

`tokens` and `nll` force the dense answer through the pruned cache, in one pass. They are for long answers: two runs of
one model in two number formats part somewhere in most of those, and whole answers then measure nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibrate.inputs.batches import Batch, Batches
from calibrate.inputs.samples import check_answers
from calibrate.running.forced import Answer, Forced, answers, force
from calibrate.running.metrics import DEFAULT, Metric, metric
from planner.errors import InputError, PlannerError
from planner.evidence import LossName
from planner.schedule import Schedule

FloatArray = NDArray[np.float64]
#: Answers whose mean length, in tokens without the end, is above this are compared token by token.
LONG_ANSWER_TOKENS = 4
#: Losses that are measured token by token.
ALONG_ANSWER: tuple[LossName, ...] = ("tokens", "nll")
#: An answer that became less likely by this many nats per token is as lost as one can be.
NLL_CAP = 1.0


class LossRunner:
    """A sample set on which schedules are executed; what the dense model says is computed once.

    Args:
        batches: the samples.
        loss: which.
        answer_tokens: longest answer.
        metric: of the loss `score`.
        seed: of random selections.

    Attributes:
        refusals: why schedules could not be executed on these prompts; they lose 1 on every sample.

    Raises:
        InputError: `score`, and a sample has no accepted answer.
    """

    def __init__(
        self,
        batches: Batches,
        loss: LossName = "answer",
        answer_tokens: int = 16,
        metric: Metric | None = None,
        seed: int = 0,
    ) -> None:
        self.batches, self.loss, self.answer_tokens, self.seed = batches, loss, answer_tokens, seed
        self.metric = metric or _DEFAULT_METRIC
        self.refusals: list[str] = []
        self._dense: dict[int, Answer] = {}
        self._forced: dict[int, Forced] = {}
        self._measure: dict[LossName, Callable[[Batch, Schedule], list[float]]] = {
            "answer": self._whole,
            "tokens": self._forced_answers,
            "nll": self._forced_answers,
            "score": self._drop,
        }
        if loss == "score":
            check_answers(batches.samples)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.batches.samples)

    @property
    def binary(self) -> bool:
        """Losses are 0 or 1."""
        return self.loss == "answer"

    def losses(self, schedule: Schedule, indices: Sequence[int] | None = None) -> FloatArray:
        """One loss for each sample, or for each of `indices`.

        Raises:
            InputError: a metric of the user's own fails.
        """
        wanted = range(len(self)) if indices is None else indices
        found: list[float] = []
        for batch in self.batches.chunks(wanted):
            try:
                found += self._measure[self.loss](batch, schedule)
            except InputError:
                raise
            except (
                PlannerError
            ) as refused:  # as a window that does not reach the image; no plan answers half of the prompts
                if refused.cause not in self.refusals:
                    self.refusals.append(refused.cause)
                return np.ones(len(wanted))
        return np.array(found, np.float64)

    def answers(self, schedule: Schedule | None = None) -> list[Answer]:
        """Greedy answers, one per sample; dense without a schedule.

        Raises:
            PlannerError: the schedule cannot be executed.
        """
        found: list[Answer] = []
        for batch in self.batches:
            dense = schedule is None or schedule.empty
            found += self._dense_answers(batch) if dense else self._answers(batch, schedule)
        return found

    def judged_by(self, loss: LossName, batches: Batches | None = None) -> LossRunner:
        """The same samples under another loss, or in other batches; dense results are shared."""
        other = LossRunner(batches or self.batches, loss, self.answer_tokens, self.metric, self.seed)
        other._dense, other._forced = self._dense, self._forced
        return other

    def along(self, schedule: Schedule) -> list[FloatArray]:
        """Of `tokens` and `nll`: what is lost at each token of each sample's dense answer; nats are not cut off.

        Raises:
            PlannerError: the schedule cannot be executed.
        """
        return [one for batch in self.batches for one in self._along(batch, schedule)]

    def of_sample(self, along: FloatArray) -> float:
        """The loss of a sample, from what it loses along its answer."""
        found = float(along.mean())
        return found if self.loss == "tokens" else min(max(found, 0.0), NLL_CAP) / NLL_CAP

    # -- losses -------------------------------------------------------------------------------------------------------

    def _whole(self, batch: Batch, schedule: Schedule) -> list[float]:
        pairs = zip(self._answers(batch, schedule), self._dense_answers(batch), strict=True)
        return [float((ours.text, ours.ended) != (dense.text, dense.ended)) for ours, dense in pairs]

    def _forced_answers(self, batch: Batch, schedule: Schedule) -> list[float]:
        return [self.of_sample(one) for one in self._along(batch, schedule)]

    def _along(self, batch: Batch, schedule: Schedule) -> list[FloatArray]:
        pairs = self._both(batch, schedule)
        if self.loss == "tokens":
            return [(ours.choices != dense.choices).double().numpy() for ours, dense in pairs]
        return [(dense.log_probabilities - ours.log_probabilities).double().numpy() for ours, dense in pairs]

    def _drop(self, batch: Batch, schedule: Schedule) -> list[float]:
        triples = zip(self._answers(batch, schedule), self._dense_answers(batch), batch.samples, strict=True)
        return [self.metric(dense.text, one) - self.metric(ours.text, one) for ours, dense, one in triples]

    # -- the model ----------------------------------------------------------------------------------------------------

    def _answers(self, batch: Batch, schedule: Schedule | None) -> list[Answer]:
        return answers(batch, self.answer_tokens, schedule, self.seed)

    def _dense_answers(self, batch: Batch) -> list[Answer]:
        if any(i not in self._dense for i in batch.ids):
            self._dense.update(zip(batch.ids, self._answers(batch, None), strict=True))
        return [self._dense[i] for i in batch.ids]

    def _both(self, batch: Batch, schedule: Schedule) -> list[tuple[Forced, Forced]]:
        given = self._dense_answers(batch)
        if any(i not in self._forced for i in batch.ids):
            self._forced.update(zip(batch.ids, force(batch, given), strict=True))
        ours = force(batch, given, schedule, self.seed)
        return [(one, self._forced[i]) for one, i in zip(ours, batch.ids, strict=True)]


def suited(dense: Sequence[Answer]) -> LossName:
    """The loss that fits the dense model's answers: token by token where they are long."""
    return "tokens" if np.mean([answer.length for answer in dense]) > LONG_ANSWER_TOKENS else "answer"


def cut_off(dense: Sequence[Answer], longest: int) -> list[str]:
    """A note, where some of the dense model's answers were cut off: what comes later was not compared."""
    share = np.mean([not answer.ended for answer in dense])
    if not share:
        return []
    return [
        f"{share:.0%} of the dense model's answers did not end within {longest} tokens: what comes later was not "
        "compared; --max-new-tokens sets another length"
    ]


_DEFAULT_METRIC = metric(DEFAULT)
