"""Which heads carry the image into the answer, by thousands of ablated forwards on a few samples (head attribution)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import to_device
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.attribution.attribute import ABLATED, MASKS, attribute
from calibrate.probes.attribution.clusters import head_clusters
from calibrate.probes.attribution.curves import COMPLETE, FAITHFUL, grid
from calibrate.probes.attribution.masks import FAMILY, FAMILY_COST, check_ablated
from calibrate.probes.attribution.mean import MeanImage, mean_image
from calibrate.probes.attribution.parts import AttributionParts, find_attribution_parts
from calibrate.probes.attribution.regression import check_masks
from calibrate.probes.attribution.response import ImageIndependentError
from calibrate.probes.attribution.rows import (
    ATTRIBUTED,
    INDEPENDENT,
    ORDERS,
    WRONG,
    attributed_row,
    blank_row,
    image_number,
)
from calibrate.probes.attribution.similarity import mean_cosines
from calibrate.probes.attribution.spelling import frequent_words, strongest_tokens
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.stats import Array, mean, plain, proportion
from calibrate.running.execute import accepted_first_tokens
from planner.errors import CalibrationError, InputError
from planner.profile import PromptShape
from planner.runtime.tensors.layout import visual_rows
from planner.spec import ModelSpec

MEAN_IMAGES = 100
TOP_HEADS = 5


class AttributionProbe(ExecutedProbe):
    """Which heads carry the image into the answer's first token (head attribution).

    As in the paper, only samples that the model answers correctly are attributed (any answer counts where none is
    given). Wrong answers, and answers whose logit the image does not raise over the mean image, are only counted. The
    mean image comes from samples that are not attributed.

    Args:
        samples: how many of the first samples to attribute.
        masks, ablated: random masks per sample, and the share of heads ablated in each.
        image_masks: random masks over visual tokens; 0 leaves them out.
        mean_images: images that the mean image is made of.
        seed: of masks and random orders.

    Raises:
        InputError: an invalid share or number.
    """

    name: ClassVar[str] = "attribution"
    default_samples: ClassVar[int] = 8
    alone: ClassVar[bool] = True

    def __init__(
        self,
        samples: int | None = None,
        masks: int = MASKS,
        ablated: float = ABLATED,
        image_masks: int = MASKS,
        mean_images: int = MEAN_IMAGES,
        seed: int = 0,
    ) -> None:
        super().__init__(samples)
        if not 0 < ablated < 1 or masks < 1 or image_masks < 0 or mean_images < 1:
            raise InputError("attribution needs masks, a mean image and a share between 0 and 1", "Such as 0.75")
        self.masks, self.ablated, self.image_masks = masks, ablated, image_masks
        self.mean_images, self.seed = mean_images, seed
        self._mean: MeanImage | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "masks": self.masks,
            "ablated": self.ablated,
            "image_masks": self.image_masks,
            "mean_images": self.mean_images,
            "seed": self.seed,
        }

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        super().check(spec, samples, positions)
        heads = sum(layer.attention.heads for layer in spec.decoder.layers)
        check_ablated(self.ablated, heads)
        check_masks(self.masks, heads, f"{self.name}.masks", "heads", FAMILY)
        if self.samples >= samples:
            raise InputError(
                f"attributing {self.samples} of {samples} samples leaves none for the mean image",
                f"Give {self.name}.samples less than {samples}, or more samples",
            )

    def forwards(self, layers: int) -> int:
        """Passes over the text rows only, see `work`."""
        return self.masks + self.image_masks

    def work(self, layers: int, prompt: PromptShape) -> float:
        """The text rows of each mask; the whole prompt once per sample, and once per image of the mean."""
        tokens = prompt.system_tokens + prompt.visual_tokens + prompt.text_tokens
        rows = (self.masks * FAMILY_COST + self.image_masks) * prompt.text_tokens / tokens
        return rows + 1 + self.mean_images / self.samples

    def run(self, batch: Batch) -> None:
        """Attribute the batch's samples that are wanted and not done.

        Raises:
            CalibrationError: the sample set has no sample besides the attributed ones for the mean image.
            UnsupportedModelError: the model lacks a part; its name is given.
        """
        parts = find_attribution_parts(batch.model)
        for position, sample in enumerate(batch.ids):
            if self.wants(sample) and sample not in self.table:
                self.table.add(sample, **self._row(batch, parts, batch.samples[position]))

    def _row(self, batch: Batch, parts: AttributionParts, sample: Sample) -> dict[str, Any]:
        inputs = to_device(batch.encoder([sample]), batch.model)
        if self.image_masks:
            visual = int(visual_rows(inputs["input_ids"], parts.visual_ids).sum())
            check_masks(self.image_masks, visual, f"{self.name}.image_masks", "visual tokens")
        logits = batch.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
        if sample.answers and int(logits.argmax()) not in accepted_first_tokens(batch.encoder, sample):
            return blank_row(parts, WRONG)
        try:
            found = attribute(
                batch.model,
                inputs,
                None,
                self._mean_image(batch, parts),
                masks=self.masks,
                ablated=self.ablated,
                image_masks=self.image_masks,
                lens_heads=TOP_HEADS,
                seed=self.seed,
                sample=sample.where,
            )
        except ImageIndependentError:
            return blank_row(parts, INDEPENDENT)
        ids = inputs["input_ids"][0].tolist()
        return attributed_row(found, parts, sample, ids, batch.encoder.tokenizer.decode)

    def _mean_image(self, batch: Batch, parts: AttributionParts) -> MeanImage:
        """Made once, from the same samples whoever makes it, so that shards and resumed runs agree."""
        if self._mean is None:
            others = _others(batch.sample_set, self.samples, self.mean_images)
            encoded = (to_device(batch.encoder([sample]), batch.model) for sample in others)
            self._mean = mean_image(batch.model, encoded, parts)
        return self._mean

    def summary(self) -> dict[str, Any]:
        status = self.table.column("status")[:, 0]
        done = status == ATTRIBUTED
        found: dict[str, Any] = {
            "attributed": int(done.sum()),
            "answered_wrongly": int((status == WRONG).sum()),
            "image_independent": int((status == INDEPENDENT).sum()),
        }
        if not done.any():
            return found

        def column(name: str) -> Array:
            of_all = self.table.column(name)
            return of_all.compress(done, axis=0)

        coefficients = column("coefficients")
        heads = coefficients.shape[2]
        needed = column("needed").astype(bool)
        spelled, effects = (
            [row for row, attributed in zip(self.table.rows(name), done, strict=True) if attributed]
            for name in ("spelled", "text_effects")
        )
        top = np.argsort(-coefficients.mean(axis=0).ravel(), kind="stable")[: 2 * TOP_HEADS]
        return {
            **found,
            "r2": mean(column("r2")[:, 0]),
            "pearson": mean(column("pearson")[:, 0]),
            "masks_used": mean(column("masks")[:, 0]),
            "coefficients": mean(coefficients),
            "needed_share": plain(needed.mean(axis=0)),
            "top_heads": [[int(n) // heads, int(n) % heads] for n in top],
            "words": frequent_words(spelled),
            "text_tokens": strongest_tokens(spelled, effects),
            "heads_needed": {
                f"faithfulness > {FAITHFUL:g}": self._by_order(column("faithful_heads")),
                f"completeness < {COMPLETE:g}": self._by_order(column("complete_heads")),
            },
            "curves": {
                "heads": grid(coefficients[0].size),
                **{
                    order: {"faithfulness": mean(values[:, 0]), "completeness": mean(values[:, 1])}
                    for order, values in zip(ORDERS, column("curves").swapaxes(0, 1), strict=True)
                },
            },
            "clusters": head_clusters(coefficients),
            "attention_correlation": mean(column("attention_correlation")[:, 0]),
            "receiving_text_tokens": mean(column("receiving")[:, 0]),
            "text_tokens_suffice": mean(column("text_sufficient")[:, 0]),
            "image_r2": mean(column("image_r2")[:, 0]),
            "image_attention_correlation": mean(column("image_correlation")[:, 0]),
            "interpolated_mean": proportion(int(column("interpolated").sum()), int(done.sum())),
            "cosine": mean_cosines(
                coefficients.reshape(len(coefficients), -1),
                column("prompt")[:, 0].tolist(),
                column("image")[:, 0].tolist(),
            ),
        }

    @staticmethod
    def _by_order(values: Array) -> dict[str, Any]:
        return {order: mean(values[:, number]) for number, order in enumerate(ORDERS)}


def _others(samples: SampleSet, attributed: int, wanted: int) -> list[Sample]:
    """Samples for the mean image: not among the attributed ones, and no image of theirs nor any image twice.

    Raises:
        CalibrationError: there is none.
    """
    used = {image_number(sample) for sample in samples[:attributed]}
    others: list[Sample] = []
    for sample in samples[attributed:]:
        if len(others) == wanted:
            break
        image = image_number(sample)
        if image not in used:
            used.add(image)
            others.append(sample)
    if not others:
        raise CalibrationError(
            f"all {len(samples)} samples (or all their images) are attributed, so none is left for the mean image",
            "Give more samples, or attribute fewer",
        )
    return others
