"""Candidates on the proposal split: each executed once, budgets found by bisection, all in order of cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from calibrate.deciding.candidates import budgets, exits, filters, member, proposals, shallows, suggested
from calibrate.probes.stats import wilson
from calibrate.running.trial import Agreement, TrialRunner
from planner.cost import cost
from planner.cost.formulas import DECODER_COMPONENTS
from planner.errors import InputError
from planner.policies import AnyPolicy, Policy, ShallowRule, Window
from planner.profile import Profile
from planner.schedule import Schedule, dense
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
        rank_by: scores that may choose the kept tokens of a window.
        questions: asked about each image, on average: what costs are compared for (`question_flops`).
        validation_trials: candidates that may be executed on the validation split.
        answer_tokens: length of the answers that are compared in the end.
    """

    agreement: float = 0.98
    confidence: float = 0.8
    rank_by: tuple[str, ...] = ("l2", "attention", "random")
    questions: int = 2
    validation_trials: int = 40
    answer_tokens: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1 or not 0.5 <= self.confidence < 1:
            raise InputError(
                f"agreement {self.agreement:g} with confidence {self.confidence:g} cannot be asked for",
                "Give an agreement in (0, 1] and a confidence from 0.5 to below 1",
            )
        if self.questions < 1:
            raise InputError(f"{self.questions} questions about an image make no sense", "Give 1 or more")

    def misses(self, n: int) -> int:
        """How many of n samples may disagree; -1 if n samples cannot show the agreement at all."""
        allowed = -1
        while allowed < n and wilson(n - allowed - 1, n, self.confidence, one_sided=True)[0] >= self.agreement:
            allowed += 1
        return allowed


@dataclass(frozen=True)
class Trial:
    """A candidate that was executed.

    Attributes:
        decoder_flops: per question at the calibration prompts' mean lengths, see `question_flops`.
        proposal: agreement of the first answer token on the proposal split.
        validation: agreement of the whole answer on the validation split.
    """

    policy: str
    decoder_flops: float
    proposal: Agreement
    validation: Agreement | None = None


@dataclass(frozen=True)
class Point:
    """A member of a window: rule before the filter, filter layer, budget (an index into `Search.budgets`), exit and
    score."""

    window: Window
    rule: ShallowRule
    filter: int
    budget: int
    exit: int
    rank_by: str


#: A member of a window, or a policy that was proposed as it is.
Candidate = Point | AnyPolicy


def profile_workload(profile: Profile) -> Workload:
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


def question_flops(spec: ModelSpec, workload: Workload, schedule: Schedule, questions: int) -> float:
    """Decoder FLOPs per question when `questions` are asked about each image: what the search minimises.

    From the second question on, the image stream of layers in which visual tokens see only themselves is cached
    (`planner.runtime.ImageCache`), so a blind shallow stage is worth more than its share of one prefill.
    """
    first = decoder_flops(spec, workload, schedule)
    if questions == 1:
        return first
    further = decoder_flops(spec, workload.model_copy(update={"image_stream_cached": True}), schedule)
    return (first + (questions - 1) * further) / questions


class Search:
    """What was tried on the proposal split.

    Attributes:
        budgets: shares of the visual tokens that are tried, smallest first; the last keeps all.
        trials: every executed candidate by its policy's spelling.
    """

    def __init__(
        self, profile: Profile, spec: ModelSpec, bench: TrialRunner, limits: Limits, progress: Callable[[str], None]
    ) -> None:
        self.profile, self.spec, self.bench, self.limits, self.progress = profile, spec, bench, limits, progress
        self.suggested = suggested(profile, len(bench))
        self.budgets = budgets(profile, self.suggested)
        self.trials: dict[str, Trial] = {}
        self._workload = profile_workload(profile)
        self._dense_flops = self._flops(dense(spec.layers))
        proposed, self.windows, self.notes = proposals(profile, spec)
        self.members = [policy.resolve(spec, self._workload, profile) for policy in proposed]
        # The share itself must reach the limit here; the confidence is asked for on the validation split.
        self._allowed = int((1 - limits.agreement) * len(bench) + 1e-9)

    def policy(self, candidate: Candidate) -> AnyPolicy:
        """The candidate as a policy."""
        return self.member(candidate) if isinstance(candidate, Point) else candidate

    def member(self, point: Point) -> Policy:
        """A point of a window as a policy. Where everything is kept the score does not matter: one stands for all."""
        rank_by = self.limits.rank_by[0] if point.budget == len(self.budgets) - 1 else point.rank_by
        budget = self.budgets[point.budget]
        return member(point.window, self.profile, point.rule, point.filter, budget, point.exit, rank_by)

    def schedule(self, candidate: Candidate) -> Schedule:
        """The candidate as a schedule."""
        return self.schedule_of(self.policy(candidate))

    def schedule_of(self, policy: AnyPolicy) -> Schedule:
        """A policy on this model and its prompts."""
        return policy.schedule(self.spec, self._workload, self.profile)

    def record(self, trial: Trial) -> None:
        """Keep a trial, in place of an earlier one of the same policy."""
        self.trials[trial.policy] = trial

    def run(self, candidate: Candidate) -> Trial:
        """Execute a candidate, once; one that is clearly too bad is not executed to the end."""
        name = str(self.policy(candidate))
        if name not in self.trials:
            schedule = self.schedule(candidate)
            agreement = self.bench.first_token(schedule, self._allowed)
            self.record(Trial(name, self._flops(schedule), agreement))
            self.progress(f"{name}: {agreement.hits} of {agreement.n} first answer tokens kept")
        return self.trials[name]

    def good(self, candidate: Candidate) -> bool:
        """Whether a candidate holds on the proposal split."""
        return self.run(candidate).proposal.misses <= self._allowed

    def order(self, candidate: Candidate) -> tuple[int, float]:
        """By cost in steps of `TIE`, then by divergence."""
        trial = self.run(candidate)
        return round(trial.decoder_flops / self._dense_flops / TIE), trial.proposal.kl

    def _flops(self, schedule: Schedule) -> float:
        return question_flops(self.spec, self._workload, schedule, self.limits.questions)

    def flops(self, candidate: Candidate) -> float:
        """Decoder FLOPs of a candidate, which is not executed for it."""
        return self._flops(self.schedule(candidate))

    def cheaper(self, candidate: Candidate, other: Candidate | None) -> bool:
        """Whether a candidate costs less than another, or than the dense model, by more than a `TIE`."""
        bound = self._dense_flops if other is None else self.flops(other)
        return self.flops(candidate) < bound - TIE * self._dense_flops

    def retreats(self, point: Point) -> list[Point]:
        """Where to go if a candidate does not hold, or only with a large budget: later exits, shallower filters."""
        layers = self.spec.layers
        later = sorted({point.exit + 1, point.exit + 2, (point.exit + layers + 1) // 2, layers})
        found = [replace(point, exit=at) for at in later if point.exit < at <= layers]
        if point.rule != point.window.untouched:
            found += [replace(point, filter=k) for k in (point.filter - 1, point.filter - 2) if k > 0]
        return found

    def finalists(self) -> list[Candidate]:
        """Proposed members; of each window, for each rule and filter, the smallest budgets that hold, with the earliest
        exit that holds."""
        found: list[Candidate] = [*self.members]
        for window in self.windows:
            start = self._exit(window)
            filtered = [replace(start, filter=k) for k in filters(self.suggested, start.exit)]
            for skeleton in (*self._shallow(start), *filtered):
                found += self._smallest_budgets(skeleton)
        return found

    def _exit(self, window: Window) -> Point:
        """The earliest proposed exit that holds with everything before it untouched."""
        layers, everything = self.spec.layers, len(self.budgets) - 1
        whole = Point(window, window.untouched, 0, everything, layers, self.limits.rank_by[0])
        for at in exits(self.profile, self.suggested, self.limits.agreement):
            if at == layers or self.good(replace(whole, exit=at)):
                return replace(whole, exit=at)
        return whole

    def _shallow(self, start: Point) -> list[Point]:
        """For each shallow rule the deepest filter that holds together with the exit."""
        found = []
        for rule, deepest in shallows(start.window, self.profile, self.suggested, self.limits.agreement):
            top = min(deepest + 1, start.exit - 2)  # the exit leaves at least one layer to the kept tokens
            for depth in range(top, max(0, top - 3), -1):
                point = replace(start, rule=rule, filter=depth)
                if self.good(point):
                    found.append(point)
                    break
        return found

    def _smallest_budgets(self, skeleton: Point) -> list[Point]:
        """Per score the smallest budget that holds; a later score is followed only as far as it needs no more."""
        found: list[Point] = []
        least = skeleton.budget
        for rank_by in self.limits.rank_by:
            high = replace(skeleton, rank_by=rank_by, budget=least)
            if not self.good(high):
                continue
            low = -1
            while high.budget - low > 1:
                middle = replace(high, budget=(low + high.budget) // 2)
                if self.good(middle):
                    high = middle
                else:
                    low = middle.budget
            least = high.budget
            found.append(high)
        return found
