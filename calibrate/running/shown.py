"""Samples that a plan's page shows: each runs once more under the plan, which tells the patches that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibrate.inputs.encode import Encoder, to_device
from calibrate.inputs.identity import Model
from calibrate.inputs.sample import Sample
from calibrate.running.execute import generate
from calibrate.running.patches import grid, kept_patches, seen
from planner.errors import PlannerError
from planner.report.samples import Kept, Shown, stored
from planner.runtime import attach
from planner.schedule import Schedule


def shown(
    model: Any, encoder: Encoder, known: Model, schedule: Schedule, asked: Sequence[tuple[Sample, str, str, bool]],
    seed: int = 0,
) -> list[Shown]:  # fmt: skip
    """Samples with their pictures and kept patches.

    Args:
        asked: sample, answers of the dense model and of the plan, and whether these are the same.
        seed: of random selections, as they were evaluated.
    """
    found = []
    for sample, dense, planned, same in asked:
        pictures = sample.pictures()
        picture, size = stored(seen(pictures[0], encoder.processor)) if pictures else ("", (0, 0))
        found.append(
            Shown(
                prompt=sample.prompt,
                dense=dense,
                planned=planned,
                same=same,
                kind=sample.kind,
                accepted=sample.answers,
                picture=picture,
                size=size,
                kept=tuple(_kept(model, encoder, known, schedule, sample, seed)) if len(pictures) == 1 else (),
            )
        )
    return found


def _kept(model: Any, encoder: Encoder, known: Model, schedule: Schedule, sample: Sample, seed: int) -> Sequence[Kept]:
    """Patches that each stage keeps; none where they have no places in the picture."""
    inputs = to_device(encoder([sample]), model)
    try:
        places = grid(inputs, known)
    except PlannerError:
        return []
    with attach(model, schedule, seed=seed) as handle:
        generate(model, inputs, 1)
        return kept_patches(schedule, handle.kept, places)
