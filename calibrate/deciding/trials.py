"""Losses of schedules on the first samples of a set: each measured once, and kept for a run that goes on later."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.document import digest, write_atomic
from planner.evidence import LossName
from planner.schedule import Schedule

FloatArray = NDArray[np.float64]
#: Seconds between two writings of the file.
_INTERVAL_S = 10.0


class Losses(Protocol):
    """A sample set on which schedules are executed (`calibrate.running.losses`).

    Attributes:
        refusals: why schedules could not be executed on these prompts; they lose 1 on every sample.
        loss: which.
        binary: losses are 0 or 1.
    """

    refusals: list[str]
    loss: LossName

    @property
    def binary(self) -> bool: ...

    def __len__(self) -> int: ...

    def losses(self, schedule: Schedule, indices: list[int] | None = None) -> FloatArray:
        """One loss for each sample, at most 1; of `indices` only, where they are given."""
        ...


class Trials:
    """What was measured so far.

    Args:
        runner: on the search samples.
        path: where losses are kept; None: nowhere.
        run: what they are losses of (model, samples, loss). Those of anything else in the file are let go.
        told: called with the number of samples that a schedule was executed on.

    Attributes:
        executed: schedules that ran on some samples.
        passes: samples on which schedules ran, in all; what is taken from the file is counted too.
    """

    def __init__(
        self, runner: Losses, path: Path | None = None, run: object = None, told: Callable[[int], None] | None = None
    ) -> None:
        self.runner, self._path, self._run, self._told = runner, path, digest(run), told
        self._kept = _read(path, self._run)
        self._names: dict[Schedule, str] = {}
        self._used: dict[str, int] = {}
        self._saved = time.monotonic()

    @property
    def executed(self) -> int:
        return len(self._used)

    @property
    def passes(self) -> int:
        return sum(self._used.values())

    def known(self, schedule: Schedule) -> bool:
        """Whether this run has executed it."""
        return self._name(schedule) in self._used

    def losses(self, schedule: Schedule, count: int) -> FloatArray:
        """Of the first `count` samples; only those that are missing are executed."""
        name = self._name(schedule)
        have = self._kept.get(name, [])
        if len(have) < count:
            missing = list(range(len(have), count))
            have = self._kept[name] = [*have, *map(float, self.runner.losses(schedule, missing))]
            if time.monotonic() - self._saved > _INTERVAL_S:
                self.save()
        done = self._used.get(name, 0)
        self._used[name] = max(done, count)
        if self._told is not None and count > done:
            self._told(count - done)
        return np.asarray(have[:count], np.float64)

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: the place cannot be written.
        """
        if self._path is not None:
            write_atomic(self._path, json.dumps({"run": self._run, "losses": self._kept}))
        self._saved = time.monotonic()

    def _name(self, schedule: Schedule) -> str:
        if schedule not in self._names:
            self._names[schedule] = digest(schedule.model_dump(mode="json"))
        return self._names[schedule]


def _read(path: Path | None, run: str) -> dict[str, list[float]]:
    """Losses by schedule; none where the file is missing, damaged, or of another run: they can be measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if content.get("run") != run:
            return {}
        return {str(name): [float(loss) for loss in losses] for name, losses in content["losses"].items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
