"""Every error that this project raises on purpose.

PlannerError                 a refusal: one line of cause, one line of remedy, exit status 1
├── InputError               an invalid argument, file or size
│   └── SampleError          a calibration or evaluation sample cannot be used (names file and line)
├── ExtensionError           what another package adds by an entry point cannot be used (names the package)
├── UnsupportedModelError    a model lacks a part that is needed; the part is named
├── ScheduleError            stages that contradict each other
├── PlanError                a plan or profile document cannot be used
│   ├── PlanDigestError      it was changed after it was written
│   ├── PlanVersionError     it was written by a newer schema
│   └── PlanMismatchError    it was made for another model
├── RuntimeStateError        a plan cannot be applied to the model or cache in its present state
└── CalibrationError         a measurement failed (NaN activations, corrupt resume state, too few samples)
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PlannerError(Exception):
    """Base of all refusals.

    Args:
        cause: what is wrong and where, one sentence without a final full stop.
        remedy: what the user can do about it.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{cause}. {remedy}" if remedy else cause)


class InputError(PlannerError):
    """An invalid argument, file or size."""


class SampleError(InputError):
    """A calibration or evaluation sample cannot be used."""


class ExtensionError(PlannerError):
    """What another package adds by an entry point cannot be used."""


class UnsupportedModelError(PlannerError):
    """A model, family or layer type lacks a part that is needed."""


class ScheduleError(PlannerError):
    """Stages that contradict each other or do not cover the layers."""


class PlanError(PlannerError):
    """A plan or profile document cannot be used."""


class PlanDigestError(PlanError):
    """A document was changed after it was written."""


class PlanVersionError(PlanError):
    """A document was written by a newer schema."""


class PlanMismatchError(PlanError):
    """A plan was made for another model."""


class RuntimeStateError(PlannerError):
    """A plan cannot be applied to the model or cache in its present state."""


class CalibrationError(PlannerError):
    """A measurement failed (NaN activations, corrupt resume state, too few samples)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names what a word may have been meant for, or nothing: known words that it is short for, else the one
    most like it."""
    words = list(known)
    near = [one for one in words if word and one.startswith(f"{word}-")] or get_close_matches(word, words, 1, 0.5)
    return f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
