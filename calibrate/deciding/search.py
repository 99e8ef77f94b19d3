"""The search: what is executed next, and on how many samples, is what might well be the best (Thompson sampling).

Of every family it is only believed how much its members lose (`calibrate.deciding.curve`). Each step draws, for every
family, one of the things that may be true of it; the candidate that would then save most, by its chance to pass the
proof, is executed on as many samples again as it has seen. So runs go where they may change the choice: nothing is
given up for a little bad luck on few samples, and what was lucky is soon found out. Where nothing is left to learn, the
families that promise most are laid over what is best of other kinds, and the search goes on with these as well.

Three things save runs: a member is not executed where a part of it, or a member that drops less, was hopeless, unless
it may win back what they lose; one that is clearly too bad is not executed to the end; and the samples come in a fixed
order, so that more of them add to what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv

from calibrate.deciding.curve import MAY_BE_NONE, Curve
from calibrate.deciding.space import Candidate, Family, Space, parts
from calibrate.deciding.trials import Trials
from planner.schedule import Schedule

FloatArray = NDArray[np.float64]
#: Samples that a candidate is executed on first.
FIRST = 8
#: A member with less than this chance to keep the aim promises nothing; one with the other chance is on the safe side.
HOPE, SAFE = 0.25, 0.75
#: A loss is hopeless if the limit is below its one-sided interval of this level.
_LEVEL = 0.05
#: Share of the runs after which what policies propose is through, and so are two rounds of compositions. The others are
#: for rungs.
_ALLOWANCES = (0.45, 0.75, 0.92)
#: So many steps that teach nothing end a round.
_IDLE = 12
#: Families that are laid over others in a round, of all and of every combination of kinds; and the compositions that
#: the search goes on with, at most.
_BASES, _OF_KIND, _COMPOSITIONS = 8, 3, 40
#: Draws of what may be true, for what a family promises.
_DRAWS = 48


class Line:
    """A family, what was seen of it, and what that makes believe.

    Args:
        eligible: whether a candidate meets the constraints.
        curve: what is believed of it before it runs.

    Attributes:
        seen: member to its losses on the first samples.
        given_up: which members are hopeless.
        eligible: which members meet the constraints.
    """

    def __init__(self, family: Family, eligible: Callable[[Candidate], bool], curve: Curve) -> None:
        self.family, self.members, self.curve = family, family.members, curve
        self.seen: dict[int, FloatArray] = {}
        self.given_up = np.zeros(len(self.members), bool)
        self.eligible = [eligible(member) for member in family.members]
        self._saves = self._savings()

    def learn(self, member: int, losses: FloatArray, limit: float) -> None:
        """Take in what a member lost."""
        self.seen[member] = losses
        if hopeless(losses, limit):
            self.give_up(member)
        self.curve.learn({one: (len(lost), float(lost.mean())) for one, lost in self.seen.items()})

    def give_up(self, member: int) -> None:
        """A member is hopeless, and so are those that drop more, unless they may win back more."""
        self.given_up[0 if self.family.loses_more else member : member + 1] = True

    def hopeful(self, aim: float, chance: float = HOPE) -> list[Candidate]:
        """Members with a chance to keep a loss, whether they meet the constraints or not."""
        return [self.members[i] for i in np.flatnonzero((self.curve.below(aim) >= chance) & ~self.given_up)]

    def cheapest(self, aim: float, chance: float) -> Candidate | None:
        """The cheapest member with such a chance that meets the constraints."""
        usable = (one for one in self.hopeful(aim, chance) if self.eligible[self.members.index(one)])
        return next(usable, None)

    def cost_again(self, space: Space) -> None:
        """Take over figures that are measured by now; what was not measured is out."""
        self.members = tuple(map(space.again, self.members))
        self.eligible = [
            one.figures.prefill_ms is not None and not space.costing.breaches(one.figures) for one in self.members
        ]
        self._saves = self._savings()

    def imagine(self, luck: float, passing: Callable[[FloatArray], FloatArray]) -> tuple[float, int]:
        """The member that would save most if one of the things that may be true were, and how much that is: what it
        saves, times its chance to pass. Nothing where all are hopeless or out.

        Args:
            luck: which of them, in [0, 1).
            passing: the chance to pass the proof by expected losses.
        """
        worth = self._saves * passing(self.curve.drawn(luck))
        worth[self.given_up] = 0.0
        best = int(worth.argmax())
        return float(worth[best]), best

    def _savings(self) -> FloatArray:
        return np.array([max(1 - one.share, 0.0) * able for one, able in zip(self.members, self.eligible, strict=True)])


class Search:
    """Executes candidates of a space on the search samples.

    Args:
        limit: the largest expected loss that may be shipped. What is safe or hopeful is so for half of it.
        measure: schedules that may be executed, parts of candidates and rungs among them.
        certify, misses: samples of the proof, and how many of them may lose their answer; -1 where nothing can be
            proven, so that what is searched is what loses none.
        progress: told what was tried.
        seed: of the draws.

    Attributes:
        lines: every family that was searched.
        levels: the numbers of samples that a candidate is executed on, one after the other.
    """

    def __init__(
        self,
        space: Space,
        trials: Trials,
        limit: float,
        measure: int,
        certify: int,
        misses: int,
        progress: Callable[[str], None] = lambda line: None,
        seed: int = 0,
    ) -> None:
        self.space, self.trials, self.limit, self.aim = space, trials, limit, limit / 2
        self.measure, self.progress = measure, progress
        self.lines: list[Line] = []
        self.levels = levels(len(trials.runner))
        self.certify, self.misses, self._rng = certify, misses, np.random.default_rng(seed)
        self._places: dict[str, list[tuple[Line, int]]] = {}

    def run(self) -> None:
        """Search what policies propose, then compositions of what promises most."""
        for number, share in enumerate(_ALLOWANCES):
            self.lines += (
                self._compositions() if number else [self._known(self._line(one)) for one in self.space.families]
            )
            allowance = int(share * self.measure)
            self._look_at_each([line for line in self.lines if line.family.falls_at_once], allowance)
            self._explore(allowance)

    def eligible(self, candidate: Candidate) -> bool:
        """Whether it meets the constraints, as far as they can be told without executing it."""
        return not self.space.costing.breaches(candidate.figures)

    def affordable(self, schedule: Schedule, allowance: int) -> bool:
        """Whether it may be executed, if so many may be in all."""
        return self.trials.known(schedule) or self.trials.executed < allowance

    def execute(self, line: Line, member: int, count: int) -> None:
        """Execute a member, which must be affordable, on the first samples, as many as needed to see that it is
        hopeless."""
        candidate = line.members[member]
        for part in parts(candidate.schedule):
            others = self.measure - (not self.trials.known(candidate.schedule))
            if self.affordable(part, others) and hopeless(self.trials.losses(part, self.levels[0]), self.limit):
                line.give_up(member)
                return
        for level in self.levels:
            losses = self.trials.losses(candidate.schedule, level)
            if level >= count or hopeless(losses, self.limit):
                break
        self._learn(candidate, losses)
        self.progress(
            f"{candidate.name}: loss {losses.mean():.3f} on {len(losses)} samples, cost {candidate.share:.3f}"
        )

    def _look_at_each(self, lines: Iterable[Line], allowance: int) -> None:
        """Execute every member that is not hopeless on a few samples, the cheapest first."""
        for line in lines:
            for member, candidate in enumerate(line.members):
                fresh = member not in line.seen and not line.given_up[member]
                if fresh and self.affordable(candidate.schedule, allowance):
                    self.execute(line, member, self.levels[0])

    def _explore(self, allowance: int) -> None:
        """Execute what would be best, if what was drawn were true, until that teaches nothing any more."""
        idle = 0
        while idle < _IDLE:
            lucks = self._rng.random(len(self.lines))
            drawn = [(line.imagine(luck, self._passing), line) for line, luck in zip(self.lines, lucks, strict=True)]
            (worth, member), line = max(drawn, key=lambda one: one[0][0])
            have = len(line.seen.get(member, ()))
            known = have == self.levels[-1]
            if worth > 0 and not known and self.affordable(line.members[member].schedule, allowance):
                self.execute(line, member, next(level for level in self.levels if level > have))
                idle = 0
            else:
                idle += 1

    def _passing(self, losses: FloatArray) -> FloatArray:
        found: FloatArray = bdtr(max(self.misses, 0), self.certify, losses)
        return found

    def _promise(self, line: Line) -> float:
        """What a family saves on average over what may be true of it."""
        return float(np.mean([line.imagine(luck, self._passing)[0] for luck in self._rng.random(_DRAWS)]))

    def _ranked(self, lines: Iterable[Line]) -> list[Line]:
        """Those that promise most first."""
        promises = [(self._promise(line), line) for line in lines]
        return [line for _, line in sorted(promises, key=lambda one: -one[0])]

    def _learn(self, candidate: Candidate, losses: FloatArray) -> None:
        """What a candidate lost is known wherever it is a member; where it lost nothing, its parts lose nothing.

        What it did lose says nothing of one part: thought to be the part's, it would make good parts look bad.
        """
        for line, member in self._places[candidate.name]:
            line.learn(member, losses, self.limit)
        for part in () if losses.any() else candidate.parts:
            for line, member in self._places[part.name]:
                if len(line.seen.get(member, ())) < len(losses):
                    line.learn(member, losses, self.limit)

    def _line(self, family: Family) -> Line:
        return Line(family, self.eligible, self._curve(family))

    def _known(self, line: Line) -> Line:
        """A line that takes part from now on: what its members lost elsewhere is theirs, and the other way round."""
        for member, candidate in enumerate(line.members):
            places = self._places.setdefault(candidate.name, [])
            for other, known in places[:1]:
                if known in other.seen:
                    line.learn(member, other.seen[known], self.limit)
            places.append((line, member))
        return line

    def _curve(self, family: Family) -> Curve:
        """What is believed of a family before it runs: a composition loses what its fixed part loses, at least, unless
        that may be won back, and falls as the family that is laid over that."""
        doses = [member.dose for member in family.members]
        if family.origin is None or family.fixed is None:
            return Curve(doses, fading=family.tends_to_dense)
        origin = next(line.curve for line in self.lines if line.family is family.origin)
        if not family.loses_more:
            return Curve(doses, MAY_BE_NONE, origin)
        line, member = max(self._places[family.fixed.name], key=lambda place: len(place[0].seen))
        return Curve(doses, line.curve.floors(member), origin)

    def _compositions(self) -> list[Line]:
        """The lines that promise most, laid over candidates of other kinds: those that promise most together. What
        saves little alone may save more together, so lines of every combination of kinds take part."""
        ranked = self._ranked(self.lines)
        of_kind: dict[frozenset[str], list[Line]] = {}
        for line in ranked:
            of_kind.setdefault(line.family.kinds, []).append(line)
        chosen = [line for lines in of_kind.values() for line in lines[:_OF_KIND]]
        known = {line.family.name for line in self.lines}
        found: dict[str, Family] = {}
        every_fixed = self._fixed(ranked)
        for line in dict.fromkeys([*ranked[:_BASES], *chosen]):
            for fixed in every_fixed:
                family = self.space.together(line.family, fixed)
                if family is not None and family.name not in known:
                    found.setdefault(family.name, family)
        lines = self._ranked(map(self._line, found.values()))
        return list(map(self._known, lines[:_COMPOSITIONS]))

    def _fixed(self, lines: Iterable[Line]) -> list[Candidate]:
        """Of each line the cheapest member with hope, and the cheapest on the safe side."""
        found = [line.cheapest(self.aim, chance) for line in lines for chance in (HOPE, SAFE)]
        return list({candidate.schedule: candidate for candidate in found if candidate is not None}.values())


def levels(samples: int) -> list[int]:
    """How many samples a candidate is executed on: `FIRST`, twice as many, and so on up to all."""
    found = [FIRST]
    while 2 * found[-1] < samples:
        found.append(2 * found[-1])
    return [level for level in found if level < samples] + [samples]


def hopeless(losses: FloatArray, limit: float) -> bool:
    """Whether so much was lost that the expected loss is hardly within the limit: the exact lower bound of a 0/1 loss,
    which is below that of other losses with the same mean."""
    lost = max(float(losses.sum()), 0.0)
    return lost > 0 and float(betaincinv(lost, len(losses) - lost + 1, _LEVEL)) > limit
