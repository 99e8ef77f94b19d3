"""Where the text needs the image: hide it from the text in a range of layers and compare the answers (VisiPruner 3-5).

Every condition is a schedule that the runtime executes. For every k, a curve says how often the first answer token
stays the dense model's and, where samples have answers, how often it starts an accepted one:

    alone_before    in [0, k) text does not see the image and visual rows are isolated (what a plan executes)
    self_before     in [0, k) visual rows are isolated; text sees them
    masked_before   in [0, k) text does not see the image; visual tokens attend as usual (figure 3)
    merged_before   layer 0 merges the image into one token; [1, k) as in alone_before (section 3.3)
    masked_from     text does not see the image from layer k on: visual tokens are dropped (figure 3, tables 8 and 10)
    skipped         layer k alone hides the image from the text (section 5.1, against dropping from k on)
    uncached        generated text does not see the image in [0, k) or in [k, L): its keys and values are not cached
                    (table 2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.stats import Array, mean, proportion
from calibrate.running.execute import divergence, first_logits, first_token_right, generate
from planner.errors import InputError
from planner.profile import ProbeResult
from planner.schedule import Count, Schedule, Select, Stage

Condition = tuple[int, Schedule]


def alone(k: int, layers: int) -> Schedule:
    """In ``[0, k)`` text does not see the image and visual rows are isolated."""
    return _then(layers, Stage(first=0, last=k, visual_attention="self", text_to_visual="none", cache_visual="none"))


def masked(k: int, layers: int) -> Schedule:
    """In ``[0, k)`` text does not see the image."""
    return _then(layers, Stage(first=0, last=k, text_to_visual="none", cache_visual="none"))


def lonely(k: int, layers: int) -> Schedule:
    """In ``[0, k)`` visual rows are isolated, and text sees them."""
    return _then(layers, Stage(first=0, last=k, visual_attention="self"))


def merged(k: int, layers: int) -> Schedule:
    """Layer 0 merges; in ``[1, k)`` text does not see the image; visual rows are isolated."""
    first = Stage(first=0, last=1, visual_attention="self", text_to_visual="merge", cache_visual="none")
    if k == 1:
        return _then(layers, first)
    rest = Stage(first=1, last=k, visual_attention="self", text_to_visual="none", cache_visual="none")
    return _then(layers, first, rest)


def discarded(k: int, layers: int) -> Schedule:
    """Visual tokens leave before layer k; for k = 0 text never sees them, which is the same to it."""
    if k == 0:
        return masked(layers, layers)
    drop = Select(rank_by="none", keep=Count(count=0))
    return Schedule(stages=(Stage(first=0, last=k, selects=(drop,)), Stage(first=k, last=layers)))


def skipped(k: int, layers: int) -> Schedule:
    """Only layer k hides the image from the text."""
    closed = Stage(first=k, last=k + 1, text_to_visual="none", cache_visual="none")
    return _then(layers, *((Stage(first=0, last=k),) if k else ()), closed)


def uncached(first: int, last: int, layers: int) -> Schedule:
    """Decoding cannot attend to visual tokens in ``[first, last)``."""
    before = (Stage(first=0, last=first),) if first else ()
    return _then(layers, *before, Stage(first=first, last=last, cache_visual="none"))


def _then(layers: int, *stages: Stage) -> Schedule:
    """Stages, and dense layers to the end."""
    last = int(stages[-1].last)
    return Schedule(stages=(*stages, *((Stage(first=last, last=layers),) if last < layers else ())))


CURVES: dict[str, Callable[[int], list[Condition]]] = {
    "alone_before": lambda n: [(k, alone(k, n)) for k in range(1, n + 1)],
    "masked_before": lambda n: [(k, masked(k, n)) for k in range(1, n + 1)],
    "self_before": lambda n: [(k, lonely(k, n)) for k in range(1, n + 1)],
    "merged_before": lambda n: [(k, merged(k, n)) for k in range(1, max(2, n // 2))],
    "masked_from": lambda n: [(k, discarded(k, n)) for k in range(n)],
    "skipped": lambda n: [(k, skipped(k, n)) for k in range(n)],
}


def cache_ranges(layers: int) -> list[tuple[int, int]]:
    """Layer ranges whose visual cache is removed: up to and from each quarter, and everywhere."""
    quarters = sorted({layers * q // 4 for q in (1, 2, 3)} - {0})
    return [(0, layers), *((0, k) for k in quarters), *((k, layers) for k in quarters)]


class MaskingProbe(ExecutedProbe):
    """Masking curves on few samples.

    Args:
        samples: how many.
        curves: which of `CURVES`, and ``uncached``.
        answer_tokens: length of the answers generated for ``uncached``, whose first token never changes.

    Raises:
        InputError: an unknown curve, or answers without a token.
    """

    name: ClassVar[str] = "masking"
    default_samples: ClassVar[int] = 32

    def __init__(
        self, samples: int | None = None, curves: Sequence[str] = (*CURVES, "uncached"), answer_tokens: int = 8
    ) -> None:
        super().__init__(samples)
        unknown = set(curves) - {*CURVES, "uncached"}
        if unknown:
            raise InputError(
                f"no masking curve {', '.join(sorted(unknown))}", f"There are {', '.join(CURVES)}, uncached"
            )
        if answer_tokens < 1:
            raise InputError(f"answers of {answer_tokens} tokens cannot be compared", "Give answer_tokens of 1 or more")
        self.curves, self.answer_tokens = tuple(curves), answer_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples, "curves": list(self.curves), "answer_tokens": self.answer_tokens}

    def forwards(self, layers: int) -> int:
        prefills = 1 + sum(len(CURVES[name](layers)) for name in self.curves if name in CURVES)
        return prefills + (1 + len(cache_ranges(layers)) if "uncached" in self.curves else 0)

    def run(self, batch: Batch) -> None:
        layers = batch.model.config.get_text_config().num_hidden_layers
        dense = first_logits(batch.model, batch.inputs)
        answer = dense.argmax(dim=-1)
        columns: dict[str, Array] = {"dense_right": self._right(batch, answer)[:, None]}
        for name in (name for name in self.curves if name in CURVES):
            found = [first_logits(batch.model, batch.inputs, schedule) for _, schedule in CURVES[name](layers)]
            picks = [logits.argmax(dim=-1) for logits in found]
            columns[f"{name}.agree"] = np.stack([(pick == answer).numpy() for pick in picks], axis=1)
            columns[f"{name}.right"] = np.stack([self._right(batch, pick) for pick in picks], axis=1)
            columns[f"{name}.kl"] = np.stack([divergence(dense, logits).numpy() for logits in found], axis=1)
        if "uncached" in self.curves:
            columns["uncached.agree"] = self._uncached(batch, layers)
        for position, sample in enumerate(batch.ids):
            self.table.add(sample, layers=layers, **{name: values[position] for name, values in columns.items()})

    def _right(self, batch: Batch, tokens: Any) -> Array:
        """``[B]`` 1 right, 0 wrong, NaN without an answer."""
        right = np.asarray(first_token_right(batch.encoder, batch.samples, tokens), np.float32)
        return np.where([bool(sample.answers) for sample in batch.samples], right, np.float32(np.nan))

    def _uncached(self, batch: Batch, layers: int) -> Array:
        texts = [
            batch.encoder.decode(generate(batch.model, batch.inputs, self.answer_tokens, schedule))
            for schedule in (None, *(uncached(first, last, layers) for first, last in cache_ranges(layers)))
        ]
        return np.asarray([[text == whole for text in row] for whole, *row in zip(*texts, strict=True)])

    def summary(self) -> dict[str, Any]:
        layers = int(self.table.column("layers")[0, 0])
        values: dict[str, Any] = {"dense_first_token_accuracy": _share(self.table.column("dense_right"))[0]}
        for name in (name for name in self.curves if name in CURVES):
            agree, right = self.table.column(f"{name}.agree"), self.table.column(f"{name}.right")
            values[name] = {
                "k": [k for k, _ in CURVES[name](layers)],
                "agreement": _share(agree.astype(np.float32)),
                "first_token_accuracy": _share(right),
                "kl": mean(self.table.column(f"{name}.kl")),
            }
        if "uncached" in self.curves:
            agree = self.table.column("uncached.agree").astype(np.float32)
            values["uncached"] = {"ranges": [list(one) for one in cache_ranges(layers)], "agreement": _share(agree)}
        return values


def _share(hits: Array) -> list[dict[str, Any]]:
    """Proportion per column of ``[samples, columns]``, NaN left out."""
    return [proportion(int(np.nansum(column)), int((~np.isnan(column)).sum())) for column in hits.T]


#: Curve, what influence suggests that it speaks about, and how that reads.
_CHECKS = (("alone_before", "filter", "hiding the image before"), ("masked_from", "exit", "dropping it from"))


def contradictions(masking: ProbeResult, influence: ProbeResult, limit: float) -> list[str]:
    """Filter and exit layers suggested by influence that the curves contradict, one sentence each.

    A layer is contradicted when even the upper end of the curve's interval there lies below the limit.
    """
    found = []
    for curve, key, what in _CHECKS:
        points = masking.values.get(curve, {"k": []})
        shares: dict[int, list[str]] = {}
        for level, stage in influence.values.get("suggested", {}).items():
            shares.setdefault(stage[key], []).append(level)
        for layer, levels in shares.items():
            agreement = points["agreement"][points["k"].index(layer)] if layer in points["k"] else None
            if agreement is not None and agreement["high"] < limit:
                found.append(
                    f"influence suggests {key} layer {layer} for a share of {' or '.join(levels)} of the samples, but "
                    f"{what} layer {layer} keeps only {agreement['value']:.3f} of the dense model's answers"
                )
    return found
