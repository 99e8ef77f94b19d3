"""One bar over a whole calibration. Its unit is a second of work: what was spent, of that and what is still expected.

Work comes in **tasks** (masking curves, the search, the evaluation), and a task in **steps** of so many units: samples
that run once, as a rule. What is left of a task is its units times their pace: at first an estimate, or the pace of a
task that it is like, then ever more what was measured. So the time that is shown as left is estimated anew with every
step, and a task that ends early takes its rest along.

On a terminal a bar is drawn, and a step that takes long moves it while it runs. In a log a line says now and then how
far things are.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

#: Seconds between two movements of the bar, and between two lines in a log.
_TICK_S, _LINE_S = 1.0, 30.0
#: What the first estimate of a task weighs: as much as this share of its units when they are measured.
_TRUST = 0.1
#: A step that takes longer than expected is not counted as done before it is.
_AT_MOST = 0.95


@dataclass
class _Task:
    """Work of one kind: steps whose units take a like time.

    Attributes:
        unit_s: seconds of a unit, as estimated before one was done.
        like: another task, whose units take as long as far as is known.
        left: units that are still expected.
        done, spent_s: units that are done, and what they took.
    """

    unit_s: float = 0.0
    like: _Task | None = None
    left: float = 0.0
    done: float = 0.0
    spent_s: float = 0.0

    @property
    def pace_s(self) -> float:
        """Seconds of a unit: what was expected, if anything, counts as much as `_TRUST` of all units that are
        measured."""
        expected_s = self.unit_s if self.like is None else self.like.pace_s
        trust = _TRUST * (self.done + self.left) if expected_s or not self.done else 0.0
        return (self.spent_s + trust * expected_s) / (self.done + trust) if self.done + trust else expected_s

    @property
    def left_s(self) -> float:
        return self.left * self.pace_s

    @property
    def unknown(self) -> bool:
        """Units are left, and nothing tells how long one takes."""
        return bool(self.left) and not self.pace_s and not self.done


class Progress:
    """Tasks, what is left of them, and whoever watches.

    Args:
        say: prints a line; lines of others go through `Progress.say`, so that they do not run into the bar.
        stream: where the bar is drawn, if that is a terminal; None: stderr.
        watched: False shows nothing, as on ranks other than the first.
        clock: seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        stream: TextIO | None = None,
        watched: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._print, self._stream, self._watched, self._clock = say, stream or sys.stderr, watched, clock
        self._tasks: dict[str, _Task] = {}
        self._now = ""
        self._step: tuple[float, float] | None = None  # expected seconds, when it began
        self._begun = self._spoke = clock()
        self._share = 0.0
        self._bar: Any = None
        self._over = threading.Event()

    # -- what is expected, and what is done ---------------------------------------------------------------------------

    def expect(self, name: str, units: float, unit_s: float = 0.0, like: str | None = None) -> float:
        """So many units of a task are left.

        Args:
            unit_s: seconds of a unit, until one is measured.
            like: a task whose pace is taken until then.

        Returns:
            Seconds of this task that are left.
        """
        if name not in self._tasks:
            self._share = 0.0  # more to do than was known: the bar may go back
        task = self._task(name)
        task.left, task.unit_s = max(units, 0.0), unit_s
        task.like = None if like is None else self._task(like)
        return task.left_s

    def left_now(self, name: str, units: float) -> None:
        """So many units of a task are left, as it turns out."""
        self._task(name).left = max(units, 0.0)

    def _task(self, name: str) -> _Task:
        return self._tasks.setdefault(name, _Task())

    @contextmanager
    def step(self, name: str, units: float) -> Iterator[None]:
        """Some units of a task are done inside."""
        task, begun = self._task(name), self._clock()
        self._now, self._step = name, (min(units, task.left) * task.pace_s, begun)
        try:
            yield
        finally:
            self._step = None
        task.spent_s += self._clock() - begun
        task.done += units
        task.left = max(task.left - units, 0.0)
        self.show()

    # -- what is shown ------------------------------------------------------------------------------------------------

    @property
    def spent_s(self) -> float:
        """Seconds since this began."""
        return self._clock() - self._begun

    @property
    def left_s(self) -> float:
        """Seconds that are still expected."""
        left, step = sum(task.left_s for task in list(self._tasks.values())), self._step
        if step is not None:
            expected_s, begun = step
            left -= min(self._clock() - begun, _AT_MOST * expected_s)
        return max(left, 0.0)

    @property
    def _unknown(self) -> bool:
        return any(task.unknown for task in list(self._tasks.values()))

    @property
    def share(self) -> float:
        """How much is done; never less than it was, even where what is left turns out to take longer than thought.
        Nothing, until it is known how long the rest takes."""
        if self._unknown:
            return 0.0
        spent, left = self.spent_s, self.left_s
        self._share = max(self._share, spent / (spent + left) if spent + left else 0.0)
        return self._share

    def say(self, line: str) -> None:
        """A line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.clear()
        self._print(line)
        if self._bar is not None:
            self._bar.refresh()

    def show(self) -> None:
        """Move the bar, or say how far things are if it was long ago."""
        if self._bar is not None:
            self._bar.n = round(1000 * self.share)
            self._bar.set_description_str(f"{self._now}, {self._left}", refresh=False)
            self._bar.refresh()
        elif self._watched and self._clock() - self._spoke >= _LINE_S:
            self._spoke = self._clock()
            self._print(f"{self._now}: {self.share:.0%} done, {self._left}")

    @property
    def _left(self) -> str:
        return "time left not known yet" if self._unknown else f"about {spell_time(self.left_s)} left"

    def __enter__(self) -> Progress:
        if self._watched:
            if self._stream.isatty():
                form = "{percentage:3.0f}%|{bar:40}| {desc}"
                width = shutil.get_terminal_size().columns  # 80 where the terminal does not tell, as tqdm would not
                self._bar = tqdm(total=1000, file=self._stream, bar_format=form, leave=False, ncols=width)
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            self.show()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def spell_time(seconds: float) -> str:
    """Two digits in the unit a person would choose."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
