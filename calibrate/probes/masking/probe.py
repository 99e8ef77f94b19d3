"""Where the text needs the image: hide it from the text in a range of layers and compare the answers (VisiPruner 3-5).

For every k, a curve says how often the first answer token stays the dense model's and, where samples have answers, how
often it starts an accepted one:

    prefix_before       in [0, k) visual rows see the text before them and themselves, and text does not see the image
                        (what a plan executes)
    prefix_open_before  the same, and text sees the image
    alone_before        in [0, k) visual rows see themselves only, and text does not see the image
    self_before         the same, and text sees the image
    merged_before       layer 0 merges the image into one token; [1, k) as in alone_before (section 3.3)
    masked_before       in [0, k) text does not see the image; visual tokens attend as usual (figure 3)
    masked_from         text does not see the image from layer k on: visual tokens may be dropped (figure 3, table 10)
    skipped             layer k alone hides the image from the text (section 5.1, against dropping from k on)
    uncached            generated text does not see the image in [0, k) or in [k, L): its keys and values are not cached
                        (table 2)

Layers that keep states or read the keys of others run what they can (`executed`): curves lack points there, and
``uncached`` is not measured.

In models of many layers the ``*_before`` curves are bisected, sample by sample (`depths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.first_token import right, shares
from calibrate.probes.masking.curves import CURVES, RULES, TEXT_ONLY, point_of, points_of
from calibrate.probes.masking.depths import anchors, bisect, passes, settled
from calibrate.probes.masking.executed import Executed
from calibrate.probes.masking.replay import Replay
from calibrate.probes.masking.uncached import cache_ranges, uncached
from calibrate.probes.stats import Array, mean
from calibrate.running.execute import divergence
from planner.errors import InputError
from planner.profile import PromptShape
from planner.runtime.model.adapters import find_parts

#: Models of at most so many layers are measured at every point.
FEW_LAYERS = 16


class MaskingProbe(ExecutedProbe):
    """Masking curves on few samples.

    Args:
        samples: how many.
        curves: which of `CURVES`, and ``uncached``.
        answer_tokens: length of the answers generated for ``uncached``, whose first token never changes.
        every_point: measure all points of all curves; None: in models of at most `FEW_LAYERS` layers.

    Raises:
        InputError: an unknown curve, or answers without a token.
    """

    name: ClassVar[str] = "masking"
    attends: ClassVar[bool] = False
    default_samples: ClassVar[int] = 32

    def __init__(
        self,
        samples: int | None = None,
        curves: Sequence[str] = (*CURVES, "uncached"),
        answer_tokens: int = 8,
        every_point: bool | None = None,
    ) -> None:
        super().__init__(samples)
        unknown = set(curves) - {*CURVES, "uncached"}
        if unknown:
            raise InputError(
                f"no masking curve {', '.join(sorted(unknown))}", f"There are {', '.join(CURVES)}, uncached"
            )
        if answer_tokens < 1:
            raise InputError(f"answers of {answer_tokens} tokens cannot be compared", "Give answer_tokens of 1 or more")
        self.curves, self.answer_tokens, self.every_point = tuple(curves), answer_tokens, every_point

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "curves": list(self.curves),
            "answer_tokens": self.answer_tokens,
            "every_point": self.every_point,
        }

    # -- cost --------------------------------------------------------------------------------------------------------

    def forwards(self, layers: int) -> int:
        curves = [name for name in self.curves if name in CURVES]
        found = 1 + sum(self._passes(name, layers) + (name in RULES) for name in curves)
        return found + (2 + len(cache_ranges(layers)) if "uncached" in self.curves else 0)

    def work(self, layers: int, prompt: PromptShape) -> float:
        share = prompt.text_tokens / (prompt.system_tokens + prompt.visual_tokens + prompt.text_tokens)
        total = 1.0
        for name in (name for name in self.curves if name in CURVES):
            rows = share if name in TEXT_ONLY else 1.0
            total += rows * (self._behind(name, layers) + (name in RULES))
        if "uncached" in self.curves:
            answers = self.answer_tokens / (prompt.visual_tokens + prompt.text_tokens + prompt.system_tokens)
            total += 2 + answers * len(cache_ranges(layers))
        return total

    def _bisected(self, name: str, layers: int) -> bool:
        every_point = layers <= FEW_LAYERS if self.every_point is None else self.every_point
        return name in RULES and name not in TEXT_ONLY and not every_point

    def _behind(self, name: str, layers: int) -> float:
        """What a curve's points run, in passes through all layers: each the layers behind it."""
        points = points_of(name, layers)
        places = anchors(len(points)) if self._bisected(name, layers) else range(len(points))
        between = self._passes(name, layers) - len(places)
        return sum(layers - points[place] for place in places) / layers + between / 2

    def _passes(self, name: str, layers: int) -> int:
        points = len(points_of(name, layers))
        return passes(points) if self._bisected(name, layers) else points

    # -- measuring ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> None:
        parts = find_parts(batch.model)
        layers = len(parts.layers)
        # Else each point is executed from the first layer on.
        whole = not (parts.recurrent or parts.lenders or parts.fed_per_layer)
        with Replay(batch.model, batch.inputs) if whole else nullcontext() as replay:
            run = Executed(batch.model, batch.inputs, layers) if replay is None else replay
            columns = {"dense_right": right(batch, run.dense.argmax(dim=-1))[:, None]}
            for name in (name for name in self.curves if name in CURVES):
                columns |= self._curve(name, batch, run)
        if "uncached" in self.curves and whole:
            columns["uncached.agree"], decoded = uncached(batch, self.answer_tokens)
            columns["uncached.decoded"] = decoded[:, None]
        for position, sample in enumerate(batch.ids):
            self.table.add(sample, layers=layers, **{name: values[position] for name, values in columns.items()})

    def _curve(self, name: str, batch: Batch, run: Replay | Executed) -> dict[str, Array]:
        """Agreement, right first tokens and divergence ``[B, points]``, NaN where not measured."""
        points, dense = points_of(name, run.layers), run.dense
        able = run.able(name) if isinstance(run, Executed) else list(points)
        execute = partial(run.point, name) if isinstance(run, Executed) else point_of(name, run)
        everyone = list(range(len(batch.ids)))
        answer = dense.argmax(dim=-1)
        found = {
            f"{name}.{what}": np.full((len(everyone), len(points)), np.nan, np.float32)
            for what in ("agree", "right", "kl")
        }

        def measure(place: int, samples: Sequence[int]) -> list[bool]:
            chosen, point = list(samples), points.index(able[place])
            logits = execute(able[place], chosen)
            picks = torch.zeros_like(answer)
            picks[chosen] = logits.argmax(dim=-1)
            same = (picks == answer)[chosen]
            found[f"{name}.agree"][chosen, point] = same.numpy()
            found[f"{name}.right"][chosen, point] = right(batch, picks)[chosen]
            found[f"{name}.kl"][chosen, point] = divergence(dense[chosen], logits).numpy()
            return [bool(one) for one in same]

        if able and self._bisected(name, run.layers):
            bisect(len(able), len(everyone), measure)
        else:
            for place in range(len(able)):
                measure(place, everyone)
        return found

    # -- findings ----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        layers = int(self.table.column("layers")[0, 0])
        values: dict[str, Any] = {"dense_first_token_accuracy": shares(self.table.column("dense_right"))[0]}
        for name in (name for name in self.curves if name in CURVES):
            if not np.isnan(self.table.column(f"{name}.agree")).all():
                values[name] = self._summary_of(name, layers)
        if "uncached.agree" in self.table.names:
            decoded = self.table.column("uncached.decoded")
            values["uncached"] = {
                "ranges": [list(one) for one in cache_ranges(layers)],
                "agreement": shares(self.table.column("uncached.agree")),
                "decoded_tokens": mean(decoded[:, 0]),
                "nothing_decoded": int((decoded == 0).sum()),
            }
        left_out = [name for name in self.curves if name not in values]
        return {**values, "left_out": left_out} if left_out else values

    def _summary_of(self, name: str, layers: int) -> dict[str, Any]:
        """The points that some sample was measured at. Accuracy and divergence are given where every sample was."""
        agree = self.table.column(f"{name}.agree")
        measured = (~np.isnan(agree)).sum(axis=0)
        listed = measured > 0
        partly = listed & (measured < len(agree))
        starts, kl = (np.where(partly, np.nan, self.table.column(f"{name}.{what}")) for what in ("right", "kl"))
        accuracy = [None if part else entry for entry, part in zip(shares(starts), partly, strict=True)]
        return {
            "k": [k for k, some in zip(points_of(name, layers), listed, strict=True) if some],
            "measured": measured[listed].tolist(),
            "agreement": shares(settled(agree)[:, listed]),
            "first_token_accuracy": [entry for entry, some in zip(accuracy, listed, strict=True) if some],
            "kl": mean(kl[:, listed]),
        }
