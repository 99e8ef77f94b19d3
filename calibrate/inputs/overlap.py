"""Samples that are in two sets, or in one twice: by the bytes of their images and the prompt.

An evaluation on samples that took part in the decision shows nothing, so it is refused. What is only doubtful, such as
the same question twice in a set or one image in both, is told.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable

from calibrate.inputs.samples import Sample, SampleSet
from planner.errors import SampleError

#: Bytes of a digest that are kept for each sample.
_SHORT = 6


def questions_of(samples: SampleSet) -> str:
    """Short digests of images and prompt, sorted, as base64: what a later evaluation is compared with."""
    return base64.b64encode(b"".join(sorted(_short(sample) for sample in samples))).decode()


def refuse_known(questions: str | None, evaluation: SampleSet) -> None:
    """Refuse samples that a plan was decided on.

    Args:
        questions: what `questions_of` gave for the calibration samples; None: not known.

    Raises:
        SampleError: naming the first that is among them, and how many are.
    """
    if not questions:
        return
    held = base64.b64decode(questions)
    known = {held[start : start + _SHORT] for start in range(0, len(held), _SHORT)}
    shared = [sample for sample in evaluation if _short(sample) in known]
    if shared:
        raise SampleError(
            f"{len(shared)} of {len(evaluation)} evaluation samples are calibration samples, "
            f"{shared[0].where or 'the first'} for one: the plan was decided on them",
            "Evaluate on other samples",
        )


def tell_overlap(samples: SampleSet, evaluation: SampleSet | None, say: Callable[[str], None]) -> None:
    """Refuse shared samples; tell duplicates in a set, and images that both sets show.

    Raises:
        SampleError: an evaluation sample is a calibration sample.
    """
    tell_duplicates(samples, "calibration", say)
    if evaluation is None:
        return
    tell_duplicates(evaluation, "evaluation", say)
    refuse_known(questions_of(samples), evaluation)
    seen = {image for sample in samples for image in sample.image_digests}
    also = {image for sample in evaluation for image in sample.image_digests} & seen
    if also:
        say(f"note: {len(also)} images are in both the calibration and the evaluation set, with other questions")


def tell_duplicates(samples: SampleSet, name: str, say: Callable[[str], None]) -> None:
    """Tell how many samples of a set repeat another."""
    counts = Counter(sample.question_digest for sample in samples)
    repeated = counts.total() - len(counts)
    if repeated:
        say(f"note: {repeated} of {len(samples)} {name} samples repeat another's images and prompt; intervals are "
            "narrower than they should be")  # fmt: skip


def _short(sample: Sample) -> bytes:
    return sample.question_digest[:_SHORT]
