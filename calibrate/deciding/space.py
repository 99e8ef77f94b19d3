"""What might be planned: families of nested candidates, as policies propose them, and what they make together.

Nothing here runs a model. A `Family` is a line of candidates of which each drops what the next drops, and more, so that
a search has one number to find in it. Policies propose them (`planner.policies.Policy.candidates`), and `together` lays
a family over a fixed candidate of another kind: a selection before the decoder, one inside it, and a withdrawal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from calibrate.deciding.objective import Costing, Figures
from planner.engines import carried, engine
from planner.errors import ExtensionError, InputError
from planner.policies import AnyPolicy, Composition, Policy, usable
from planner.profile import Profile
from planner.schedule import Count, Fraction, Schedule, Select, Stage, dense

#: What saves less than this share of the dense model's cost is no candidate.
TIE = 0.005
#: What withdraws the image at a layer loses its answers over so much smaller a part of the depth than other selections
#: over the share of tokens: a layer too early and most are gone, a layer later and none.
_DEPTH = 8.0
_WITHDRAWS, _OF_TEXT = {"exit"}, {"text"}
#: What changes answers on purpose may win back what the rest of a composition loses.
_WINS_BACK = {"text", "weights"}


@dataclass(frozen=True)
class Candidate:
    """A policy on the model at hand.

    Attributes:
        share: of the minimised quantity, to dense.
        dose: logarithm of the share of visual tokens that the decoder's layers compute, stretched where that share is a
            depth, or of the share of the context that is left; of a composition the nested part's: what answers are
            lost by.
        parts: of a composition: what it is made of, each of which loses no more; none where that is not so.
    """

    policy: AnyPolicy
    schedule: Schedule
    figures: Figures
    share: float
    dose: float
    parts: tuple[Candidate, ...] = ()

    @cached_property
    def name(self) -> str:
        """Its spelling."""
        return str(self.policy)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Where it works: ``entry``, ``rule`` and ``inner``, ``exit``, ``text``, ``weights``. Two of one kind do not go
        together."""
        return frozenset(_kinds(self.schedule))


@dataclass(frozen=True)
class Family:
    """Nested candidates, the cheapest first, all different in cost.

    Attributes:
        origin, fixed: of compositions: the family that is laid over something, and what that is.
    """

    name: str
    members: tuple[Candidate, ...]
    origin: Family | None = None
    fixed: Candidate | None = None

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Of all its members."""
        return frozenset().union(*(member.kinds for member in self.members))

    @cached_property
    def tends_to_dense(self) -> bool:
        """Whether nothing but its budget changes the model, so that the dearest members change hardly anything."""
        return self.origin is None and not any("rule" in member.kinds for member in self.members)

    @cached_property
    def loses_more(self) -> bool:
        """Whether what drops more loses more: not where dropping more may win back more."""
        return not self.kinds & _WINS_BACK

    @cached_property
    def falls_at_once(self) -> bool:
        """Whether answers are lost from one member to the next, so that each is looked at: layers of withdrawal."""
        return self.origin is None and self.kinds == _WITHDRAWS


class Space:
    """Families on one model, under one objective.

    Args:
        profile: what policies propose from. Its masking curves and suggestions must come from the search samples alone.
        accuracy: also what changes answers on purpose (`Policy.quality`).
        able: whether the layers of the model can run a schedule; None: all can.

    Attributes:
        families: what policies propose, in a fixed order.
        notes: why some policy proposes nothing.
    """

    def __init__(
        self,
        profile: Profile,
        costing: Costing,
        accuracy: bool = False,
        able: Callable[[Schedule], bool] | None = None,
    ) -> None:
        self.profile, self.costing, self._able = profile, costing, able
        self.notes: list[str] = []
        self._together: dict[tuple[str, str], Family | None] = {}
        proposed: dict[str, list[Candidate]] = {}
        for policy in self._proposed(accuracy):
            fitted = self._portable(policy)
            found = None if fitted is None else self.candidate(fitted)
            if fitted is not None and found is not None:
                proposed.setdefault(fitted.family(), []).append(found)
        families = (_family(name, members) for name, members in proposed.items())
        self.families = [family for family in families if family is not None]

    def __len__(self) -> int:
        """Number of candidates."""
        return sum(len(family.members) for family in self.families)

    def _proposed(self, accuracy: bool) -> Iterator[Policy]:
        for known in usable():
            if isinstance(known, ExtensionError):
                self.notes.append(f"a policy proposes nothing: {known.cause}")
            elif accuracy or not known.quality:
                yield from known.candidates(self.profile, self.costing.spec)

    def _portable(self, policy: Policy) -> Policy | None:
        """A policy as the engine carries it that was asked for; None where it cannot."""
        name, found = self.costing.objective.portable, self.candidate(policy)
        if name is None or found is None:
            return policy
        route = carried(engine(name), found.schedule, self.costing.spec, self.costing.workload.visual_tokens).route
        return None if route is None else policy.adapted(route.settings)

    def candidate(self, policy: AnyPolicy) -> Candidate | None:
        """A policy as a candidate; None where it does not fit the model, or changes nothing, or cannot be run."""
        try:
            settled = policy.resolve(self.costing.spec, self.costing.workload, self.profile)
            schedule = settled.schedule(self.costing.spec, self.costing.workload, self.profile)
        except InputError:
            return None
        if schedule.empty or (self._able is not None and not self._able(schedule)):
            return None
        return self._costed(settled, schedule)

    def _costed(self, policy: AnyPolicy, schedule: Schedule) -> Candidate:
        figures, whole = self.costing.figures(schedule), max(self.costing.dense.visual_tokens, 1.0)
        dose = math.log(max(figures.visual_tokens, 1 / self.costing.spec.layers) / whole)
        if set(_kinds(schedule)) == _WITHDRAWS:
            dose *= _DEPTH
        elif set(_kinds(schedule)) == _OF_TEXT:
            dose = math.log(_context_left(schedule))
        return Candidate(policy, schedule, figures, self.costing.share(figures), dose)

    def again(self, candidate: Candidate) -> Candidate:
        """A candidate with the figures that are known by now."""
        figures = self.costing.figures(candidate.schedule)
        return replace(candidate, figures=figures, share=self.costing.share(figures))

    def together(self, family: Family, fixed: Candidate) -> Family | None:
        """A family laid over a fixed candidate of other kinds; None where they do not go together, or save nothing more
        than either alone."""
        if family.kinds & fixed.kinds:
            return None
        names = family.name, fixed.name
        if names not in self._together:
            self._together[names] = self._laid_over(family, fixed)
        return self._together[names]

    def _laid_over(self, family: Family, fixed: Candidate) -> Family | None:
        members = []
        for member in family.members:
            # What selects before the decoder is named first, as it runs first.
            first, second = (fixed, member) if "entry" in fixed.kinds else (member, fixed)
            policy = Composition((*_parts(first.policy), *_parts(second.policy)))
            try:
                schedule = policy.schedule(self.costing.spec, self.costing.workload, self.profile)
            except InputError:
                continue
            if self._able is not None and not self._able(schedule):
                continue
            made_of = () if _WINS_BACK & {*_kinds(schedule)} else (member, *member.parts, fixed, *fixed.parts)
            found = replace(self._costed(policy, schedule), dose=member.dose, parts=made_of)
            if found.share < min(member.share, fixed.share) - TIE or "weights" in found.kinds:
                members.append(found)
        return _family(f"{family.name} + {fixed.name}", members, family, fixed)


def parts(schedule: Schedule) -> list[Schedule]:
    """Schedules that each do a part of what one does, and so change no more answers: its selection before the decoder,
    its rules without any selection, its withdrawal of all visual tokens. Without itself; none of one that may win back
    what its parts lose."""
    layers = schedule.layers
    found: list[Schedule] = []
    if _WINS_BACK & {*_kinds(schedule)}:
        return found
    if schedule.entry is not None:
        found.append(dense(layers).model_copy(update={"entry": schedule.entry}))
    ruled = [stage.model_copy(update={"selects": (), "cache_visual": _cache(stage)}) for stage in schedule.stages]
    if any(stage.visual_attention != "full" or stage.text_to_visual != "full" for stage in ruled):
        found.append(Schedule(stages=tuple(ruled)))
    leaves = next((stage.last for stage in schedule.stages if any(map(_nothing, stage.selects))), None)
    if leaves is not None and leaves < layers:
        select = Select(rank_by="none", keep=Count(count=0))
        first = Stage(first=0, last=leaves, selects=(select,))
        found.append(Schedule(stages=(first, Stage(first=leaves, last=layers))))
    return [part for part in found if part != schedule]


def _cache(stage: Stage) -> str:
    """Without a selection nothing is kept of a stage: decoding reads all, if it may read anything."""
    return "all" if stage.cache_visual == "kept" and stage.text_to_visual == "full" else stage.cache_visual


def _context_left(schedule: Schedule) -> float:
    """Share of the context behind the last of its selections, all of which are shares."""
    selects = (select for stage in schedule.stages for select in stage.selects)
    return math.prod(select.keep.fraction for select in selects if isinstance(select.keep, Fraction))


def _nothing(select: Select) -> bool:
    return isinstance(select.keep, Count) and select.keep.count == 0


def _kinds(schedule: Schedule) -> Iterator[str]:
    if schedule.entry is not None:
        yield "entry"
    for stage in schedule.stages:
        if stage.redistribute is not None:
            yield "weights"
        if stage.visual_attention != "full" or stage.text_to_visual != "full":
            yield from ("rule", "inner")
        for select in stage.selects:
            yield "text" if select.of == "context" else "exit" if _nothing(select) else "inner"


def _family(
    name: str, members: Iterable[Candidate], origin: Family | None = None, fixed: Candidate | None = None
) -> Family | None:
    """Members that differ in cost, the cheapest first, without those that save nothing; None where none is left."""
    by_cost = sorted(members, key=lambda member: (member.share, member.dose, member.name))
    kept: list[Candidate] = []
    for member in by_cost:
        saves = member.share < 1 - TIE or "weights" in member.kinds
        if saves and (not kept or member.share > kept[-1].share or "weights" in member.kinds):
            kept.append(member)
    return Family(name, tuple(kept), origin, fixed) if kept else None


def _parts(policy: AnyPolicy) -> tuple[Policy, ...]:
    return policy.parts if isinstance(policy, Composition) else (policy,)
