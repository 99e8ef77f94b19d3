"""Which visual tokens matter where: some are hidden from the text in some layers, and answers compared (VisiPruner).

    first two layers    the top 10 % by attention of the last token, of all text, or those nearest to the text; the
                        other 90 %; the first or second half in order (section 3.2, tables 1 and 7; the paper calls the
                        halves left and right)
    middle layers       the top 10 %, the bottom 10 %, all but the top 5 % (sections 4.1 and 4.2); all of them merged
                        into one (section 4.1)
    one range           all tokens in shallow, middle or deep layers (table 8)
    layer 0             merged into the first, the last, or a token between them, or hidden (table 9)

The paper's ranges of 32 layers are scaled to the model's; a model that reads the image elsewhere (the masking curves
tell) gets a middle range of its own by `middle`. Tokens are ranked layer by layer, by the dense model's
attention there, head mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.first_token import right, shares
from calibrate.probes.masking.replay import Replay
from calibrate.probes.masking.sight import Sight, Sights
from calibrate.probes.stats import mean
from calibrate.running.execute import divergence
from planner.errors import InputError
from planner.profile import PromptShape
from planner.runtime import LayerView, observe
from planner.runtime.tensors.layout import Layout

#: Layers ``[first, last)`` of 32, counted from 0, in which the paper hides visual tokens.
PAPER_RANGES = {"first": (0, 2), "shallow": (0, 7), "middle": (8, 15), "deep": (26, 32)}
#: Where in the sequence of visual tokens the merge token stands, as a share of it.
MERGE_TOKENS = {"first": 0.0, "quarter": 0.25, "half": 0.5, "last": 1.0}


def ranges_of(layers: int, middle: Sequence[int] | None = None) -> dict[str, tuple[int, int]]:
    """The paper's ranges, scaled; each holds a layer. The first two layers stay two.

    Args:
        middle: first layer and end of the middle range, in place of the paper's.

    Raises:
        InputError: there are no such layers.
    """
    found = {}
    for name, (first, last) in PAPER_RANGES.items():
        scaled = (first, last) if name == "first" else (round(first * layers / 32), round(last * layers / 32))
        begin = min(scaled[0], layers - 1)
        found[name] = (begin, min(max(scaled[1], begin + 1), layers))
    if middle is not None:
        if middle[1] > layers:
            raise InputError(f"the middle layers end at {middle[1]}, and the model has {layers}", "Give layers it has")
        found["middle"] = (middle[0], middle[1])
    return found


class TokenMaskingProbe(ExecutedProbe):
    """First answers with chosen visual tokens hidden from the text.

    Args:
        samples: how many.
        top: share of the visual tokens that counts as most, or least, attended.
        kept: share that stays where all but the most attended are hidden.
        middle: first layer and end of the middle range; None: the paper's, scaled.

    Raises:
        InputError: a share outside of 0..1, or a range without a layer.
    """

    name: ClassVar[str] = "token_masking"
    default_samples: ClassVar[int] = 32

    def __init__(
        self,
        samples: int | None = None,
        top: float = 0.1,
        kept: float = 0.05,
        middle: Sequence[int] | None = None,
    ) -> None:
        super().__init__(samples)
        if middle is not None and not (len(middle) == 2 and 0 <= middle[0] < middle[1]):
            raise InputError(f"{'/'.join(map(str, middle))} is no range of layers", "Write it like 8/15")
        if not (0 < top < 1 and 0 < kept < 1):
            raise InputError("shares of the visual tokens lie between 0 and 1", "VisiPruner uses 0.1 and 0.05")
        self.top, self.kept, self.middle = top, kept, None if middle is None else tuple(middle)

    @property
    def settings(self) -> dict[str, Any]:
        middle = None if self.middle is None else list(self.middle)
        return {"samples": self.samples, "top": self.top, "kept": self.kept, "middle": middle}

    def forwards(self, layers: int) -> int:
        return 2 + len(_names())

    def work(self, layers: int, prompt: PromptShape) -> float:
        rows = prompt.text_tokens / (prompt.system_tokens + prompt.visual_tokens + prompt.text_tokens)
        return 2 + rows * len(_names())

    def run(self, batch: Batch) -> None:
        last, text = _attention(batch)
        with Replay(batch.model, batch.inputs) as replay:
            conditions = self._conditions(replay.layout, last, text)
            found = {name: replay.rule(sights)[0] for name, sights in conditions.items()}
            dense = replay.dense
        answer = dense.argmax(dim=-1)
        columns = {"dense_right": right(batch, answer)}
        for name, logits in found.items():
            picks = logits.argmax(dim=-1)
            columns[f"{name}.agree"] = (picks == answer).numpy().astype(np.float32)
            columns[f"{name}.right"] = right(batch, picks)
            columns[f"{name}.kl"] = divergence(dense, logits).numpy()
        for position, sample in enumerate(batch.ids):
            values = {name: column[position] for name, column in columns.items()}
            self.table.add(sample, layers=len(last), **values)

    def _conditions(self, layout: Layout, last: list[Tensor], text: list[Tensor]) -> dict[str, Sights]:
        """Per condition, what the text sees in each layer.

        Args:
            last, text: attention ``[B, n]`` of the last row, and of all text after the image, per layer.
        """
        layers, visual = len(last), layout.visual.cpu()
        ranges = ranges_of(layers, self.middle)
        order = visual.cumsum(1).float()  # 1 for the first visual token
        half = order > visual.sum(1, keepdim=True) / 2

        def hide(where: str, tokens: Callable[[int], Tensor]) -> Sights:
            first, end = ranges[where]
            return [Sight(hidden=tokens(layer)) if first <= layer < end else None for layer in range(layers)]

        def everywhere(where: str, sight: Sight) -> Sights:
            first, end = ranges[where]
            return [sight if first <= layer < end else None for layer in range(layers)]

        def most(scores: Tensor, share: float) -> Tensor:
            return highest(scores, visual, share)

        found = {
            "first.top_by_last": hide("first", lambda k: most(last[k], self.top)),
            "first.top_by_text": hide("first", lambda k: most(text[k], self.top)),
            "first.nearest": hide("first", lambda k: most(order, self.top)),
            "first.others": hide("first", lambda k: visual & ~most(last[k], self.top)),
            "first.first_half": hide("first", lambda k: visual & ~half),
            "first.second_half": hide("first", lambda k: visual & half),
            "middle.top": hide("middle", lambda k: most(last[k], self.top)),
            "middle.bottom": hide("middle", lambda k: most(-last[k], self.top)),
            "middle.all_but_top": hide("middle", lambda k: visual & ~most(last[k], self.kept)),
            "middle.merged": everywhere("middle", Sight(text="merge")),
            **{f"all.{where}": everywhere(where, Sight(text="none")) for where in ("shallow", "middle", "deep")},
            "merge.hidden": [Sight(text="none"), *[None] * (layers - 1)],
        }
        for name, share in MERGE_TOKENS.items():
            merged = Sight(text="merge", merged=_token(visual, share))
            found[f"merge.{name}"] = [merged, *[None] * (layers - 1)]
        return found

    def summary(self) -> dict[str, Any]:
        layers = int(self.table.column("layers")[0, 0])
        return {
            "dense_first_token_accuracy": shares(self.table.column("dense_right"))[0],
            "ranges": {name: list(bounds) for name, bounds in ranges_of(layers, self.middle).items()},
            "conditions": {
                name: {
                    "agreement": shares(self.table.column(f"{name}.agree"))[0],
                    "first_token_accuracy": shares(self.table.column(f"{name}.right"))[0],
                    "kl": mean(self.table.column(f"{name}.kl")[:, 0]),
                }
                for name in _names()
            },
        }


def highest(scores: Tensor, visual: Tensor, share: float) -> Tensor:
    """``[B, n]`` each sample's visual tokens of the highest scores, a share of them, at least one; ties go to the
    first."""
    chosen = torch.zeros_like(visual)
    for sample, mask in enumerate(visual):
        columns = mask.nonzero().flatten()
        count = min(len(columns), max(1, round(share * len(columns))))
        best = scores[sample, columns].argsort(descending=True, stable=True)[:count]
        chosen[sample, columns[best]] = True
    return chosen


def _names() -> tuple[str, ...]:
    first = ("top_by_last", "top_by_text", "nearest", "others", "first_half", "second_half")
    groups: Mapping[str, tuple[str, ...]] = {
        "first": first,
        "middle": ("top", "bottom", "all_but_top", "merged"),
        "all": ("shallow", "middle", "deep"),
        "merge": ("hidden", *MERGE_TOKENS),
    }
    return tuple(f"{group}.{name}" for group, names in groups.items() for name in names)


def _attention(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Head-mean attention ``[B, n]`` per layer: of the last row, and the mean over text rows after the image."""
    last: list[Tensor] = []
    text: list[Tensor] = []

    def look(view: LayerView) -> None:
        last.append(view.weights()[:, :, 0].mean(dim=1).cpu())
        after = view.valid & (view.visual.cumsum(1) > 0) & ~view.visual
        rows = after.any(0).nonzero().flatten().expand(len(after), -1)
        asks = after.gather(1, rows).float()[:, :, None]
        weights = view.weights(rows).mean(dim=1)  # [B, R, n]
        text.append(((weights * asks).sum(1) / asks.sum(1).clamp(min=1)).cpu())

    with observe(batch.model, look):
        batch.model(**batch.inputs, use_cache=False, logits_to_keep=1)
    return last, text


def _token(visual: Tensor, share: float) -> Tensor:
    """``[B]`` columns of the visual token that stands at a share of their sequence."""
    count = visual.sum(1)
    number = (share * (count - 1)).round().long() + 1
    return ((visual.cumsum(1) == number[:, None]) & visual).int().argmax(1)
