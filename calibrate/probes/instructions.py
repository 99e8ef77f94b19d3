"""Are the same visual tokens attended whatever the instruction (VisiPruner 3.1, figures 5 to 7, table 16)?

Each picture is shown under two instructions: its own, and another one of the set, of the same picture where there is
one. Per layer, the overlap of the most attended visual tokens of the last prompt token: where attention follows the
instruction they differ, where it is static they are the same. As a yardstick the same overlap between two pictures
under their own instructions: what position alone explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import to_device
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.sparsity import check_share, most_attended, overlap
from calibrate.probes.stats import mean, proportion
from planner.errors import InputError
from planner.spec import ModelSpec

#: VisiPruner masks the top 10 % attended tokens in shallow layers.
TOP_SHARE = 0.1


class InstructionsProbe(ExecutedProbe):
    """Overlap of the most attended visual tokens under two instructions.

    Args:
        samples: how many.
        top_share: share of the visual tokens that counts as most attended.

    Raises:
        InputError: the share is not above 0 and at most 1.
    """

    name: ClassVar[str] = "instructions"
    default_samples: ClassVar[int] = 64

    def __init__(self, samples: int | None = None, top_share: float = TOP_SHARE) -> None:
        super().__init__(samples)
        check_share(top_share)
        self.top_share = top_share

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples, "top_share": self.top_share}

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        super().check(spec, samples, positions)
        if samples < 2:
            raise InputError("probe 'instructions' needs another sample's instruction", "Give two samples or more")

    def forwards(self, layers: int) -> int:
        return 3

    def run(self, batch: Batch) -> None:
        own = most_attended(batch.model, batch.inputs, self.top_share)
        asked = [other_instruction(batch.sample_set, number) for number in batch.ids]
        others = [replace(sample, prompt=other.prompt) for sample, other in zip(batch.samples, asked, strict=True)]
        pictures = [_other_picture(batch.sample_set, number) for number in batch.ids]
        told, shown = (
            most_attended(batch.model, to_device(batch.encoder(samples), batch.model), self.top_share)
            for samples in (others, pictures)
        )
        for b, number in enumerate(batch.ids):
            blank = np.full(len(own[b]), np.nan, np.float32)
            self.table.add(
                number,
                instruction=overlap(own[b], told[b]),
                picture=overlap(own[b], shown[b]) if own[b].shape == shown[b].shape else blank,
                of_picture=asked[b].image_digests == batch.samples[b].image_digests,
                tokens=own[b].shape[1],
            )

    def summary(self) -> dict[str, Any]:
        same = self.table.column("of_picture")[:, 0]
        tokens = self.table.column("tokens")[:, 0]
        return {
            "other_instruction": mean(self.table.column("instruction")),
            "other_picture": mean(self.table.column("picture")),
            "instructions_of_the_picture": proportion(int(same.sum()), len(same)),
            "chance": float(np.mean(np.ceil(tokens * self.top_share) / tokens)),
        }


def other_instruction(samples: SampleSet, number: int) -> Sample:
    """The next sample with another instruction, of the same picture if there is one; round the set's end.

    Raises:
        InputError: all samples have the same instruction.
    """
    own = samples[number]
    differing = [one for one in _from(samples, number) if one.prompt.strip() != own.prompt.strip()]
    if not differing:
        raise InputError(
            "all samples have the same instruction, so there is no other one to compare with",
            "Leave the probe 'instructions' out, or give samples with several instructions",
        )
    return next((one for one in differing if one.image_digests == own.image_digests), differing[0])


def _other_picture(samples: SampleSet, number: int) -> Sample:
    """The next sample with another picture; the sample itself where there is none."""
    own: Sample = samples[number]
    return next((one for one in _from(samples, number) if one.image_digests != own.image_digests), own)


def _from(samples: SampleSet, number: int) -> Sequence[Sample]:
    return [samples[(number + step) % len(samples)] for step in range(1, len(samples))]
