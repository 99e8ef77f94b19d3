"""Influence proposes, measurement decides.

The calibration samples are split. On the *proposing* part the filter, exit, shallow rule and budget that influence and
the masking curves suggest are executed, alone and then together, and the cheapest combinations that still answer like
the dense model become finalists. On the *held-back* part finalists are executed in order of cost, and the first whose
agreement holds is the plan. Nothing held back is ever used to propose. If no finalist holds, the plan is dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrate.candidates import (
    BUDGETS,
    UNTOUCHED,
    Shallow,
    exits,
    filters,
    policy,
    shallows,
    suggested_budgets,
)
from calibrate.masking import contradictions
from calibrate.stats import proportion
from calibrate.trial import Agreement, Bench
from planner.cost import cost
from planner.cost.formulas import DECODER_COMPONENTS
from planner.policies import Dense, Policy
from planner.profile import Profile
from planner.schedule import Schedule
from planner.spec import ModelSpec
from planner.workload import Workload

#: Candidates whose decoder FLOPs differ by less than this share count as equally cheap: the smaller divergence wins.
TIE = 0.005


@dataclass(frozen=True)
class Limits:
    """What must hold, and how hard to look.

    Attributes:
        agreement: least share of held-back samples whose answer stays the dense model's.
        confidence: one-sided, with which the share must reach it (Wilson).
        rank_by: scores that may choose the kept tokens.
        held_back_trials: finalists that are executed on the held-back part.
        answer_tokens: length of the answers that are compared in the end.
    """

    agreement: float = 0.98
    confidence: float = 0.8
    rank_by: tuple[str, ...] = ("l2", "cos", "attention", "random")
    held_back_trials: int = 8
    answer_tokens: int = 16


@dataclass(frozen=True)
class Trial:
    """A candidate that was executed.

    Attributes:
        decoder_flops: of one prefill at the calibration prompts' mean lengths.
        proposing, held_back: agreement of the first answer token on either part.
        answers: agreement of the whole answer on the held-back part.
    """

    policy: str
    decoder_flops: float
    proposing: Agreement
    held_back: Agreement | None = None
    answers: Agreement | None = None


@dataclass(frozen=True)
class Decision:
    """The chosen policy, every trial on the way, and what a reader should know."""

    policy: Policy
    schedule: Schedule
    agreement: Agreement | None
    limits: Limits
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> dict[str, Any] | None:
        """The held-back agreement with its 95 % interval; None for the dense fallback."""
        return None if self.agreement is None else proportion(self.agreement.hits, self.agreement.n)


def workload_of(profile: Profile) -> Workload:
    """The mean calibration prompt as a workload."""
    shape = profile.prompt
    return Workload(
        visual_tokens=shape.visual_tokens,
        text_tokens=shape.text_tokens,
        system_tokens=shape.system_tokens,
        output_tokens=1,
    )


def decoder_flops(spec: ModelSpec, workload: Workload, schedule: Schedule) -> float:
    """Exact FLOPs of one prefill, decoder, head and selection only: the vision tower is the same for every plan."""
    components = cost(spec, workload, schedule).prefill
    return float(sum(components[name] for name in DECODER_COMPONENTS) + components["lm_head"])


def decide(
    profile: Profile,
    spec: ModelSpec,
    proposing: Bench,
    held_back: Bench,
    limits: Limits | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Decision:
    """The cheapest candidate that agrees with the dense model on samples that did not propose it.

    Args:
        profile: of the proposing samples or more; influence and masking are read if present.
        progress: told about each trial.
    """
    search = _Search(profile, spec, proposing, limits or Limits(), progress)
    finalists = search.finalists()
    notes = _notes(profile, search.limits)
    for trial in finalists[: search.limits.held_back_trials]:
        chosen = search.seen[trial.policy]
        agreement = held_back.first_token(chosen.schedule)
        holds = agreement.at_least(search.limits.confidence) >= search.limits.agreement
        answers = held_back.whole_answer(chosen.schedule, search.limits.answer_tokens) if holds else None
        search.record(Trial(trial.policy, trial.decoder_flops, trial.proposing, agreement, answers))
        progress(f"held back: {trial.policy}: {agreement.value:.3f} of {agreement.n} first tokens")
        if answers is not None and answers.at_least(search.limits.confidence) >= search.limits.agreement:
            return Decision(
                chosen.policy, chosen.schedule, answers, search.limits, tuple(search.trials.values()), tuple(notes)
            )
    notes.append(
        f"no candidate kept {search.limits.agreement:.3f} of the dense model's answers with confidence "
        f"{search.limits.confidence:g} on {len(held_back.batches.samples)} held-back samples: the plan is dense"
    )
    dense = Dense()
    return Decision(dense, dense.schedule(spec), None, search.limits, tuple(search.trials.values()), tuple(notes))


@dataclass(frozen=True)
class _Candidate:
    policy: Policy
    schedule: Schedule


@dataclass
class _Search:
    """Trials on the proposing part, each candidate once."""

    profile: Profile
    spec: ModelSpec
    bench: Bench
    limits: Limits
    progress: Callable[[str], None]
    seen: dict[str, _Candidate] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workload = workload_of(self.profile)
        self.budgets = sorted({*BUDGETS, *suggested_budgets(self.profile)})

    def record(self, trial: Trial) -> None:
        self.trials[trial.policy] = trial

    def run(self, rule: Shallow, filter_layer: int, keep: float, exit_layer: int, rank_by: str) -> Trial:
        """Execute a candidate on the proposing part, once."""
        chosen = policy(self.profile, rule, filter_layer, keep, exit_layer, rank_by)
        name = str(chosen)
        if name not in self.trials:
            schedule = chosen.schedule(self.spec)
            self.seen[name] = _Candidate(chosen, schedule)
            trial = Trial(name, decoder_flops(self.spec, self.workload, schedule), self.bench.first_token(schedule))
            self.record(trial)
            self.progress(f"{name}: {trial.proposing.value:.3f}, {trial.decoder_flops / 1e6:.1f} MFLOPs")
        return self.trials[name]

    def good(self, trial: Trial) -> bool:
        """Agreement on the proposing part reaches the limit as it is; the confidence is for the held-back part."""
        return trial.proposing.value >= self.limits.agreement

    def finalists(self) -> list[Trial]:
        """Candidates that hold on the proposing part, cheapest first."""
        layers = self.spec.layers
        exit_layer = self._exit(layers)
        skeletons = [(rule, depth) for rule, depth in self._shallow_rules(exit_layer)]
        skeletons += [(UNTOUCHED, layer) for layer in filters(self.profile, exit_layer)]
        for rule, filter_layer in skeletons:
            self._budget(rule, filter_layer, exit_layer)
        return self._sorted([trial for trial in self.trials.values() if self.good(trial)])

    def _exit(self, layers: int) -> int:
        """The earliest proposed exit that holds with everything before it untouched."""
        for at in exits(self.profile, self.limits.agreement):
            if at == layers or self.good(self.run(UNTOUCHED, 0, 1.0, at, "l2")):
                return at
        return layers

    def _shallow_rules(self, exit_layer: int) -> list[tuple[Shallow, int]]:
        """Shallow rules with the deepest filter at which they hold together with the exit."""
        found = []
        for rule, deepest in shallows(self.profile, self.limits.agreement):
            for depth in range(min(deepest + 1, exit_layer - 2), max(0, deepest - 2), -1):
                if self.good(self.run(rule, depth, 1.0, exit_layer, "l2")):
                    found.append((rule, depth))
                    break
        return found

    def _budget(self, rule: Shallow, filter_layer: int, exit_layer: int) -> None:
        """The smallest budget that holds, by bisection; then whether another score gets by with less."""
        least = len(self.budgets) - 1
        for rank_by in self.limits.rank_by:
            low, high = -1, least
            # For another score only budgets at or below the best so far could win.
            known = rank_by == self.limits.rank_by[0]
            if not known and not self.good(self.run(rule, filter_layer, self.budgets[least], exit_layer, rank_by)):
                continue
            while high - low > 1:
                middle = (low + high) // 2
                good = self.good(self.run(rule, filter_layer, self.budgets[middle], exit_layer, rank_by))
                low, high = (low, middle) if good else (middle, high)
            least = high

    def _sorted(self, trials: Sequence[Trial]) -> list[Trial]:
        """By cost in steps of `TIE`, then by divergence."""
        dense = decoder_flops(self.spec, self.workload, Dense().schedule(self.spec))
        return sorted(trials, key=lambda t: (round(t.decoder_flops / dense / TIE), t.proposing.kl))


def _notes(profile: Profile, limits: Limits) -> list[str]:
    if "masking" in profile.probes and "influence" in profile.probes:
        return contradictions(profile.probes["masking"], profile.probes["influence"], limits.agreement)
    return []
