"""The search: many families on few samples, the better half of them on twice as many, and so on.

In each round every family that is left executes the member at which it is least sure whether the aimed-at loss is kept
(`calibrate.deciding.curve`); then the half that promises least goes. What is left is laid over what is best of other
kinds, and searched in the same way. Three things save runs: a member is not executed where a part of it, or a member
that drops less, was hopeless; one that is clearly too bad is not executed to the end; and the samples come in a fixed
order, so that more of them add to what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from calibrate.deciding.curve import Curve
from calibrate.deciding.space import Candidate, Family, Space, parts
from calibrate.deciding.trials import Trials
from planner.schedule import Schedule

FloatArray = NDArray[np.float64]
#: Samples of the first round, and schedules that a family may execute in each.
FIRST, TURNS = 8, 2
#: A member with less than this chance to keep the aim promises nothing; one with the other chance is on the safe side.
HOPE, SAFE = 0.25, 0.75
#: A loss is hopeless if the limit is below its one-sided interval of this level.
_LEVEL = 0.05
#: Families of a round of compositions, those that come out of a round at the least, and those of the last.
_BASES, _SURVIVORS = 6, 4
#: Share of the runs after which what policies propose is through, and so are two rounds of compositions. The others are
#: for rungs.
_ALLOWANCES = (0.5, 0.8, 0.95)
#: A member about which more than this is known is not executed again.
_SETTLED = 0.02


class Line:
    """A family, what was seen of it, and what that makes believe.

    Args:
        eligible: whether a candidate meets the constraints.
        curve: what is believed of it before it runs.

    Attributes:
        seen: member to its losses on the first samples.
        lost: members before this one are hopeless.
        eligible: which members meet the constraints.
    """

    def __init__(self, family: Family, eligible: Callable[[Candidate], bool], curve: Curve) -> None:
        self.family, self.members, self.curve = family, family.members, curve
        self.seen: dict[int, FloatArray] = {}
        self.lost = 0
        self.eligible = [eligible(member) for member in family.members]

    def learn(self, member: int, losses: FloatArray, limit: float) -> None:
        """Take in what a member lost."""
        self.seen[member] = losses
        if hopeless(losses, limit):
            self.give_up(member)
        self.curve.learn({one: (len(lost), float(lost.mean())) for one, lost in self.seen.items()})

    def give_up(self, member: int) -> None:
        """A member is hopeless, and so are those that drop more."""
        self.lost = max(self.lost, member + 1)

    def hopeful(self, aim: float, chance: float = HOPE) -> list[Candidate]:
        """Members with a chance to keep a loss, whether they meet the constraints or not."""
        return [self.members[i] for i in np.flatnonzero(self.curve.below(aim) >= chance) if i >= self.lost]

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

    def promise(self, aim: float) -> float:
        """The cost that it may come down to, as a share of dense; infinity for none."""
        found = self.cheapest(aim, HOPE)
        return math.inf if found is None else found.share

    def doubtful(self, count: int, aim: float) -> int | None:
        """The member of which it is least known whether it keeps a loss, of those not executed on so many samples."""
        left = [i for i in range(self.lost, len(self.members)) if len(self.seen.get(i, ())) < count]
        unseen = [i for i in left if i not in self.seen]
        if self.family.falls_at_once and unseen:
            return unseen[0]
        sure = np.abs(self.curve.below(aim) - 0.5)
        best = min(left, key=lambda i: (sure[i], i), default=None)
        return best if best is not None and sure[best] < 0.5 - _SETTLED else None


class Search:
    """Executes candidates of a space on the search samples.

    Args:
        limit: the largest expected loss that may be shipped. The search aims at half of it.
        measure: schedules that may be executed, parts of candidates and rungs among them.
        progress: told what was tried.

    Attributes:
        lines: every family that was searched.
    """

    def __init__(
        self,
        space: Space,
        trials: Trials,
        limit: float,
        measure: int,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.space, self.trials, self.limit, self.aim = space, trials, limit, limit / 2
        self.measure, self.progress = measure, progress
        self.lines: list[Line] = []
        self._places: dict[str, list[tuple[Line, int]]] = {}
        self.levels = levels(len(trials.runner))

    def run(self) -> list[Line]:
        """Search what policies propose, then compositions; the lines that promise most, best first."""
        for number, allowance in enumerate(_ALLOWANCES):
            fresh = self._compositions() if number else [self._line(family) for family in self.space.families]
            self.lines += fresh
            self._race(fresh, int(allowance * self.measure))
        best = self._ranked(self.lines)[:_SURVIVORS]
        self._turns(best, self.levels[-1], int(_ALLOWANCES[-1] * self.measure))
        return self._ranked(best)

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

    def _learn(self, candidate: Candidate, losses: FloatArray) -> None:
        """What a candidate lost is known wherever it is a member, and bounds what its parts lose."""
        for line, member in self._places[candidate.name]:
            line.learn(member, losses, self.limit)
        for part in candidate.parts:
            for line, member in self._places[part.name]:
                if len(line.seen.get(member, ())) < len(losses) and not hopeless(losses, self.limit):
                    line.learn(member, losses, self.limit)

    def _line(self, family: Family) -> Line:
        line = Line(family, self.eligible, self._curve(family))
        for member, candidate in enumerate(family.members):
            places = self._places.setdefault(candidate.name, [])
            for other, known in places[:1]:
                if known in other.seen:
                    line.learn(member, other.seen[known], self.limit)
            places.append((line, member))
        return line

    def _curve(self, family: Family) -> Curve:
        """What is believed of a family before it runs: a composition loses what its fixed part loses, at least, and
        falls as the family that is laid over that."""
        doses = [member.dose for member in family.members]
        if family.origin is None or family.fixed is None:
            return Curve(doses, fading=family.tends_to_dense)
        origin = next(line.curve for line in self.lines if line.family is family.origin)
        line, member = max(self._places[family.fixed.name], key=lambda place: len(place[0].seen))
        return Curve(doses, line.curve.floors(member), origin)

    def _race(self, lines: Sequence[Line], allowance: int) -> None:
        left = self._ranked(lines, self._visible(FIRST))
        for level in self.levels:
            self._turns(left, level, allowance)
            left = _best(self._ranked(left, self._visible(level)), max(_SURVIVORS, len(left) // 2))

    def _turns(self, lines: Sequence[Line], level: int, allowance: int) -> None:
        for _ in range(TURNS):
            for line in lines:
                self._turn(line, level, allowance)

    def _turn(self, line: Line, level: int, allowance: int) -> None:
        while (member := line.doubtful(level, self._visible(level))) is not None:
            if not self.affordable(line.members[member].schedule, allowance):
                return
            self.execute(line, member, level)
            ran = member in line.seen  # given up without a run otherwise, because of a part
            if ran and not line.family.falls_at_once:
                return

    def _visible(self, count: int) -> float:
        """The loss that a round looks for: the aim, or what so many samples can show, one loss among them. Few samples
        tell most about a family where it loses often."""
        return max(self.aim, 1 / count)

    def _ranked(self, lines: Iterable[Line], aim: float | None = None) -> list[Line]:
        """Those that promise something, the cheapest first."""
        kept = [(line.promise(aim or self.aim), line) for line in lines]
        return [line for promise, line in sorted(kept, key=lambda one: one[0]) if promise < math.inf]

    def _compositions(self) -> list[Line]:
        """The lines that promise most, laid over the best candidates of other kinds."""
        known = {line.family.name for line in self.lines}
        bases, found = _best(self._ranked(self.lines), _BASES), []
        for line in bases:
            for fixed in self._fixed(bases):
                family = self.space.together(line.family, fixed)
                if family is not None and family.name not in known:
                    known.add(family.name)
                    found.append(self._line(family))
        return found

    def _fixed(self, lines: Iterable[Line]) -> list[Candidate]:
        """Of each line the cheapest member with hope, and the cheapest on the safe side."""
        found = [line.cheapest(self.aim, chance) for line in lines for chance in (HOPE, SAFE)]
        return list({candidate.schedule: candidate for candidate in found if candidate is not None}.values())


def _best(ranked: Sequence[Line], count: int) -> list[Line]:
    """The first lines, and the first of every combination of kinds: what saves little alone may save more together."""
    first_of_kind: dict[frozenset[str], Line] = {}
    for line in ranked:
        first_of_kind.setdefault(line.family.kinds, line)
    return list(dict.fromkeys([*ranked[:count], *first_of_kind.values()]))


def levels(samples: int) -> list[int]:
    """How many samples each round has: `FIRST`, twice as many, and so on up to all."""
    found = [FIRST]
    while 2 * found[-1] < samples:
        found.append(2 * found[-1])
    return [level for level in found if level < samples] + [samples]


def hopeless(losses: FloatArray, limit: float) -> bool:
    """Whether so much was lost that the expected loss is hardly within the limit: the exact lower bound of a 0/1 loss,
    which is below that of other losses with the same mean."""
    lost = max(float(losses.sum()), 0.0)
    return lost > 0 and float(betaincinv(lost, len(losses) - lost + 1, _LEVEL)) > limit
