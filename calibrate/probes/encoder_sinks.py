"""Sinks of the vision encoder, told apart from the decoder's (VAR B; registers of vision transformers).

An encoder stores what it has gathered about the whole picture in some patches of little content: their features are
long (Darcet et al., "Vision Transformers Need Registers"). A visual token is an **encoder sink** when its feature, as
the projector gets it, is at least `norm_multiple` times as long as the median one of its sample. The decoder's visual
sinks are those of `calibrate.probes.sink_masking`. Recorded are how far the two coincide, in which hidden dimensions of
the decoder each stands out, and whether answers survive without the encoder's: if they carry meaning, hiding them does
more harm than hiding as many others.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.massive import FIRST_LAYER, hot_tokens
from calibrate.probes.sink_masking import as_many, hidden_answers
from calibrate.probes.stats import Array, mean
from calibrate.running.execute import first_logits
from planner.errors import InputError, UnsupportedModelError
from planner.runtime import LayerView, observe

#: Dimensions that a summary names.
_DIMS = 5


class EncoderSinksProbe(ExecutedProbe):
    """Long visual features: how many, whether the decoder makes sinks of them, and whether they matter.

    Args:
        samples: how many.
        norm_multiple: how many times the median length makes a feature long.

    Raises:
        InputError: a multiple of 1 or less.
    """

    name: ClassVar[str] = "encoder_sinks"
    default_samples: ClassVar[int] = 64

    def __init__(self, samples: int | None = None, norm_multiple: float = 2.0) -> None:
        super().__init__(samples)
        if not norm_multiple > 1:
            raise InputError(f"{norm_multiple:g} times the median length is nothing out of the ordinary", "Such as 2")
        self.norm_multiple = norm_multiple

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples, "norm_multiple": self.norm_multiple}

    def forwards(self, layers: int) -> int:
        return 3

    def run(self, batch: Batch) -> None:
        """Raises `UnsupportedModelError` where features cannot be followed to visual tokens."""
        features: list[torch.Tensor] = []
        hook = _projector(batch.model).register_forward_pre_hook(
            lambda _module, args: features.append(args[0].detach().flatten(0, -2))
        )
        hot: list[torch.Tensor] = []
        seen: dict[str, torch.Tensor] = {}

        def look(view: LayerView) -> None:
            seen["visual"] = view.visual.cpu()
            if view.layer >= FIRST_LAYER:
                hot.append(hot_tokens(view.hidden, view.valid)[0].cpu())
            if view.layer == FIRST_LAYER:
                seen["largest"] = view.hidden.abs().argmax(dim=-1).cpu()

        try:
            with observe(batch.model, look):
                dense = first_logits(batch.model, batch.inputs)
        finally:
            hook.remove()
        visual = seen["visual"]
        norms = _norms(torch.cat(features), visual)
        long = visual & (norms >= self.norm_multiple * _median(norms, visual)[:, None])
        theirs = visual & (torch.stack(hot).float().mean(dim=0) >= 0.5 if hot else torch.zeros_like(visual))
        there = long.any(dim=1).numpy()
        answers = {
            name: hidden_answers(batch, chosen, dense, there)
            for name, chosen in (("long", long), ("random", as_many(long, visual & ~long, batch.ids)))
        }
        for b, sample in enumerate(batch.ids):
            ratio = norms[b, visual[b]] / _median(norms, visual)[b]
            self.table.add(
                sample,
                tokens=[int(visual[b].sum()), int(long[b].sum()), int(theirs[b].sum()), int((long & theirs)[b].sum())],
                longest=float(ratio.max()),
                long_dims=_largest(seen, long[b], b),
                decoder_dims=_largest(seen, theirs[b], b),
                **{f"{name}_agree": agree[b] for name, (agree, _) in answers.items()},
                **{f"{name}_kl": kl[b] for name, (_, kl) in answers.items()},
            )

    def summary(self) -> dict[str, Any]:
        visual, long, decoder, both = self.table.column("tokens").T
        return {
            "encoder_sinks": mean(long.astype(np.float64)),
            "decoder_sinks": mean(decoder.astype(np.float64)),
            "both": mean(both.astype(np.float64)),
            "share_of_tokens": mean(long / visual),
            "longest": mean(self.table.column("longest")[:, 0]),
            "samples_without": int((long == 0).sum()),
            "encoder_dims": _common(self.table.rows("long_dims")),
            "decoder_dims": _common(self.table.rows("decoder_dims")),
            **{
                name: {
                    "agreement": mean(self.table.column(f"{name}_agree")[:, 0]),
                    "kl": mean(self.table.column(f"{name}_kl")[:, 0]),
                }
                for name in ("long", "random")
            },
        }


def _projector(model: Any) -> torch.nn.Module:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("multi_modal_projector", "embed_vision"):
            found: torch.nn.Module = module
            return found
    raise UnsupportedModelError(
        f"{type(model).__name__} has no projector that takes the vision encoder's features one by one",
        "Leave the probe 'encoder_sinks' out for this model",
    )


def _norms(features: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Length of each visual token's feature, ``[B, n]``, 0 elsewhere; ``features [tokens, d]`` in prompt order."""
    if len(features) != int(visual.sum()):
        raise UnsupportedModelError(
            f"the projector gets {len(features)} features for {int(visual.sum())} visual tokens: none can be followed",
            "Leave the probe 'encoder_sinks' out for this model",
        )
    lengths = torch.linalg.vector_norm(features, dim=-1, dtype=torch.promote_types(features.dtype, torch.float32))
    return torch.zeros(visual.shape, dtype=lengths.dtype).masked_scatter(visual, lengths.cpu())


def _median(norms: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    return norms.masked_fill(~visual, torch.nan).nanmedian(dim=1).values


def _largest(seen: dict[str, torch.Tensor], tokens: torch.Tensor, sample: int) -> Array:
    """The largest hidden dimension of some tokens at the input of the third layer."""
    if "largest" not in seen:
        return np.zeros(0, np.int32)
    return seen["largest"][sample, tokens].numpy().astype(np.int32)


def _common(rows: list[Array]) -> list[int]:
    """The dimensions that most tokens stand out in, most frequent first."""
    counts = Counter(np.concatenate(rows).tolist())
    return [int(dim) for dim, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_DIMS]]
