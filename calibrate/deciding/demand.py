"""What is asked of a plan, and whether the samples at hand can prove it: settled before a model is loaded.

torch is not imported here, so that a wrong number is refused at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binom

from calibrate.deciding.bounds import p_value, upper_bound
from calibrate.deciding.power import allowed, check_promise, few, least, needed
from calibrate.deciding.split import Split, sizes, split
from calibrate.inputs.samples import SampleSet, check_answers
from calibrate.running.metrics import DEFAULT, Metric, metric
from planner.errors import InputError
from planner.evidence import LossName

Goal = Literal["agreement", "accuracy"]
#: Shares of the limit that a plan might truly lose, for which the chance of a proof is told.
_TRUE_SHARES = (0.25, 0.5)
_POWER = 0.8


@dataclass(frozen=True)
class Demand:
    """What is asked of a plan.

    Attributes:
        goal: ``agreement`` with the dense model, or no worse ``accuracy``.
        loss: of a sample; None: the one that fits the length of the dense answers. Accuracy has one: ``score``.
        metric: when an answer is right, by name.
        agreement: least expected share that is kept: of the dense model's answers, or tokens, or of accuracy, which may
            fall by ``1 - agreement``.
        confidence: with which that must be proven.
        kind_limit: largest expected loss of each kind of question; None: none is asked for.
        best_effort: where nothing is proven, take the candidate of which most is, and label it so.

    Raises:
        InputError: numbers out of range, a loss that is not the goal's, or an unknown metric.
    """

    goal: Goal = "agreement"
    loss: LossName | None = None
    metric: str = DEFAULT
    agreement: float = 0.98
    confidence: float = 0.8
    kind_limit: float | None = None
    best_effort: bool = False

    def __post_init__(self) -> None:
        check_promise(self.limit, self.confidence)
        if self.kind_limit is not None:
            check_promise(self.kind_limit, self.confidence)
        if self.loss is not None and (self.loss == "score") != (self.goal == "accuracy"):
            raise InputError(
                f"the loss '{self.loss}' does not belong to the goal '{self.goal}'",
                "Give --goal accuracy with --loss score or without --loss, or another loss with --goal agreement",
            )
        metric(self.metric)

    @property
    def limit(self) -> float:
        """The largest expected loss."""
        return round(1 - self.agreement, 12)

    @property
    def judge(self) -> Metric:
        """When an answer is right."""
        return metric(self.metric)

    @property
    def settled(self) -> LossName | None:
        """The loss, where it does not wait for the dense model's answers."""
        return "score" if self.goal == "accuracy" else self.loss

    def split(self, samples: SampleSet) -> Split:
        """The samples in three parts.

        Raises:
            InputError: they are about too few pictures.
        """
        return split(samples, self.limit, self.confidence, self.settled in (None, "answer"))

    def check(self, samples: SampleSet, split: Split) -> None:
        """Refuse samples that cannot prove what is asked for.

        Raises:
            InputError: saying how many would be enough, and what these could prove.
        """
        if self.goal == "accuracy":
            check_answers(samples)
        if self.best_effort:
            return
        certify, exact = split.independent, self._exact(split)
        if self.goal == "agreement" and not _enough(certify, self.limit, self.confidence, exact):
            best = 1 - upper_bound(np.zeros(certify), 1 - self.confidence, self.limit, binary=exact)
            raise InputError(
                f"of {len(samples)} samples {certify} can certify, which cannot prove an agreement of "
                f"{self.agreement:g} with confidence {self.confidence:g} even if no answer changes",
                f"Give {_fewest(self.limit, self.confidence, exact)} samples about different pictures, ask for "
                f"--agreement {int(100 * best) / 100:g} or less, or take --best-effort: a plan that is not proven. "
                "--profile-only needs no more samples",
            )
        self._check_kinds(split)

    def _check_kinds(self, split: Split) -> None:
        if self.kind_limit is None:
            return
        fewest, counts = least(self.kind_limit, self.confidence), _pictures_by_kind(split)
        if not counts:
            raise InputError("a limit for each kind of question needs samples with a 'kind'", "Add 'kind' to samples")
        few = {kind: n for kind, n in counts.items() if n < fewest}
        if few and self.goal == "agreement":
            named = ", ".join(f"'{kind}' ({n})" for kind, n in few.items())
            raise InputError(
                f"a loss of at most {self.kind_limit:g} needs {fewest} certify samples of each kind, and there are "
                f"fewer of {named}",
                "Give more samples, a larger --kind-limit, or take --best-effort",
            )

    def told(self, samples: SampleSet, split: Split) -> Iterator[str]:
        """What these samples can prove, a line each."""
        certify, limit, exact = split.independent, self.limit, self._exact(split)
        each = "one question of each" if exact else "each"
        about = "" if split.single else f" about {certify} pictures, {each} counted"
        yield (
            f"{len(samples)} samples: {len(split.propose)} propose, {len(split.select)} more select, "
            f"{len(split.certify)} others certify{about}"
        )
        if not _enough(certify, limit, self.confidence, exact) or not exact:
            best = upper_bound(np.zeros(certify), 1 - self.confidence, limit, binary=exact)
            yield f"they prove a mean loss below {best:.2g} at best, if nothing is lost; {limit:g} is asked for"
            return
        misses = allowed(certify, limit, self.confidence)
        chances = " and ".join(
            f"{1 - share * limit:.4g} in {binom.cdf(misses, certify, share * limit):.0%}" for share in _TRUE_SHARES
        )
        more = needed(limit, self.confidence, limit / 2, _POWER)
        text = (
            f"{self.agreement:g} with confidence {self.confidence:g} is proven if at most {misses} of {certify} whole "
            f"answers change: a plan that truly keeps {chances} of such runs"
        )
        enough = f"; {more} certify samples would make the latter {_POWER:.0%}" if more > certify else ""
        yield f"{text}{enough}"

    def _exact(self, split: Split) -> bool:
        """Whether misses will be counted, as far as is known."""
        counted = split.single or few(split.independent, self.limit, self.confidence)
        return counted and self.settled in (None, "answer")


def _pictures_by_kind(split: Split) -> dict[str, int]:
    """Independent certify samples of each kind."""
    pairs = {(sample.kind, number) for sample, number in zip(split.certify, split.pictures, strict=True) if sample.kind}
    return dict(sorted(Counter(kind for kind, _ in pairs).items()))


def _enough(certify: int, limit: float, confidence: float, exact: bool) -> bool:
    """Whether certify samples that lose nothing prove a limit."""
    return p_value(np.zeros(certify), limit, binary=exact) <= 1 - confidence


def _fewest(limit: float, confidence: float, exact: bool) -> int:
    """The smallest set of different pictures that can prove a limit."""
    total = least(limit, confidence)
    while not _enough(sizes(total, limit, confidence, exact)[2], limit, confidence, exact):
        total += 1
    return total
