"""Task metrics: how right an answer is, between 0 and 1.

| name | an answer is right if |
|---|---|
| `exact` | its words are an accepted answer's, no more and no fewer |
| `leading` | its words begin with an accepted answer's; what follows is not judged, and may never end |
| `contains` | an accepted answer's words stand in it, together |
| `vqa` | three people gave it; a third for each (VQA v2, averaged over leaving out one person at a time) |
| `anls` | it is spelled like an accepted answer: 1 minus the edit distance per character, 0 from half on (ST-VQA) |

Words are those of `calibrate.inputs.answers.normalise`. ``module:function`` is a metric of one's own: it gets the
answer and the list of accepted answers.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.inputs.answers import matches, normalise
from calibrate.inputs.samples import Sample
from planner.errors import InputError, nearest

#: An answer and the accepted ones to a number from 0 to 1.
Score = Callable[[str, list[str]], float]
DEFAULT = "exact"


@dataclass(frozen=True)
class Metric:
    """A metric under its name."""

    name: str
    score: Score

    def __call__(self, answer: str, sample: Sample) -> float:
        """How right an answer to a sample is.

        Raises:
            InputError: a metric of the user's own fails, or gives something else than a number from 0 to 1.
        """
        where = sample.where or repr(sample.prompt)
        try:
            found = float(self.score(answer, list(sample.answers)))
        except Exception as error:  # a metric of the user's own raises what it likes
            cause = f"the metric {self.name} fails on {where}: {type(error).__name__}: {error}"
            raise InputError(cause, "Mend the metric: it gets the answer and the list of accepted answers") from error
        if not 0 <= found <= 1 or math.isnan(found):
            cause = f"the metric {self.name} gives {found:g} for {where}"
            raise InputError(cause, "A metric gives a number from 0 (wrong) to 1 (right)")
        return found


def metric(name: str) -> Metric:
    """A metric by its name or as ``module:function``, looked for in the current directory too.

    Raises:
        InputError: there is no such metric.
    """
    if name in METRICS:
        return Metric(name, METRICS[name])
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(
            f"no metric is called '{name}'", f"{nearest(name, METRICS)}Known: {', '.join(METRICS)}, or module:function"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        score = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing a user's module runs it
        cause = f"the metric {name} cannot be imported: {type(error).__name__}: {error}"
        raise InputError(cause, "Give module:function as Python would import it") from error
    if not callable(score):
        raise InputError(f"{name} is no function", "Give module:function")
    return Metric(name, score)


def exact(answer: str, accepted: Sequence[str]) -> float:
    """The same words."""
    return float(any(_same(answer, one) for one in accepted))


def leading(answer: str, accepted: Sequence[str]) -> float:
    """It begins with these words."""
    return float(matches(answer, accepted))


def contains(answer: str, accepted: Sequence[str]) -> float:
    """These words stand in it, side by side."""
    words = normalise(answer)

    def holds(wanted: list[str]) -> bool:
        return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))

    return float(any(wanted and holds(wanted) for wanted in map(normalise, accepted)))


def vqa(answer: str, accepted: Sequence[str]) -> float:
    """VQA v2's accuracy: the mean, over leaving out one person, of min(people who gave it / 3, 1).

    With fewer than four people three cannot be asked for: then of as many as are left.
    """
    same = [_same(answer, one) for one in accepted]
    if len(same) < 2:
        return float(any(same))
    enough = min(3, len(same) - 1)
    return sum(min((sum(same) - left_out) / enough, 1.0) for left_out in same) / len(same)


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer, 0 below one half."""

    def similarity(one: str, other: str) -> float:
        longest = max(len(one), len(other))
        return 1 - _edits(one, other) / longest if longest else 1.0

    best = max((similarity(_folded(answer), _folded(one)) for one in accepted), default=0.0)
    return best if best > 0.5 else 0.0


def _same(answer: str, accepted: str) -> bool:
    """The same words; the same letters where there are none, as in ``"a"`` alone."""
    words = normalise(accepted)
    return normalise(answer) == words if words else _folded(answer) == _folded(accepted)


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _edits(one: str, other: str) -> int:
    """Levenshtein's distance, row by row."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


METRICS: dict[str, Score] = {"exact": exact, "leading": leading, "contains": contains, "vqa": vqa, "anls": anls}
