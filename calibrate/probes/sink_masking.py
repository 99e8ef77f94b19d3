"""Do visual sink tokens matter? They, or as many random visual tokens, are hidden from the text (VAR).

A visual token counts as a sink when it is hot (`calibrate.probes.massive`) at the input of at least half of the layers
from the third on. The paper finds that answers survive without the sinks and suffer without as many other tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.massive import FIRST_LAYER, check_reachable, check_tau, hot_tokens
from calibrate.probes.stats import Array, mean
from calibrate.running.execute import divergence, first_logits
from planner.runtime import LayerView, observe
from planner.runtime.model.adapters import check_attending, find_parts
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.tensors.layout import read_layout
from planner.spec import ModelSpec


class SinkMaskingProbe(ExecutedProbe):
    """First answers with visual sinks hidden, and with equally many random visual tokens hidden.

    Args:
        samples: how many.
        tau: threshold on ``|x_d| / RMS(x)``; None for `planner.policies.var.sink_threshold`.

    Raises:
        InputError: a threshold that is not above 0.
    """

    name: ClassVar[str] = "sink_masking"
    default_samples: ClassVar[int] = 64

    def __init__(self, samples: int | None = None, tau: float | None = None) -> None:
        super().__init__(samples)
        check_tau(tau)
        self.tau = tau

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples, "tau": self.tau}

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        super().check(spec, samples, positions)
        check_reachable(self.tau, spec.hidden_size)

    def forwards(self, layers: int) -> int:
        return 3

    def run(self, batch: Batch) -> None:
        sinks, visual, dense = self._sinks(batch)
        others = as_many(sinks, visual & ~sinks, batch.ids)
        found: dict[str, Array] = {"sinks": sinks.sum(dim=1).numpy()}
        for name, chosen in (("sinks", sinks), ("random", others)):
            agree, kl = hidden_answers(batch, chosen, dense, found["sinks"] > 0)
            found |= {f"{name}_agree": agree, f"{name}_kl": kl}
        for position, sample in enumerate(batch.ids):
            self.table.add(sample, **{name: values[position] for name, values in found.items()})

    def _sinks(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Visual sinks and visual tokens ``[B, n]``, and the dense log-probabilities."""
        hot: list[torch.Tensor] = []
        visual: list[torch.Tensor] = []

        def look(view: LayerView) -> None:
            visual.append(view.visual.cpu())
            if view.layer >= FIRST_LAYER:
                hot.append(hot_tokens(view.hidden, view.valid, self.tau)[0].cpu())

        with observe(batch.model, look):
            dense = first_logits(batch.model, batch.inputs)
        often = torch.stack(hot).float().mean(dim=0) >= 0.5 if hot else torch.zeros_like(visual[0])
        return often & visual[0], visual[0], dense

    def summary(self) -> dict[str, Any]:
        counts = self.table.column("sinks")
        return {
            "visual_sinks": mean(counts[:, 0]),
            "samples_without": int((counts == 0).sum()),
            **{
                name: {
                    "agreement": mean(self.table.column(f"{name}_agree")[:, 0]),
                    "kl": mean(self.table.column(f"{name}_kl")[:, 0]),
                }
                for name in ("sinks", "random")
            },
        }


def hidden_answers(batch: Batch, hidden: torch.Tensor, dense: torch.Tensor, measured: Array) -> tuple[Array, Array]:
    """Agreement with the dense first answer and divergence from it while some tokens are hidden from the text, ``[B]``.

    Args:
        hidden: which, ``[B, n]``.
        dense: log-probabilities of the first answer token, ``[B, V]``.
        measured: samples that count, ``[B]``; the others are NaN.
    """
    with hidden_from_text(batch.model, batch.inputs, hidden):
        logits = first_logits(batch.model, batch.inputs)
    agree = (logits.argmax(dim=-1) == dense.argmax(dim=-1)).float().numpy()
    blank = np.float32(np.nan)
    return np.where(measured, agree, blank), np.where(measured, divergence(dense, logits).numpy(), blank)


def as_many(sinks: torch.Tensor, others: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """For each sample as many of `others` as it has sinks (all, if fewer), drawn by the sample's id."""
    chosen = torch.zeros_like(others)
    for b, sample in enumerate(ids):
        candidates = others[b].nonzero().flatten().numpy()
        count = min(int(sinks[b].sum()), len(candidates))
        drawn = np.random.default_rng(sample).choice(candidates, count, replace=False)
        chosen[b, torch.from_numpy(drawn).long()] = True
    return chosen


@contextmanager
def hidden_from_text(model: Any, inputs: dict[str, torch.Tensor], hidden: torch.Tensor) -> Iterator[None]:
    """Text rows after the image do not see the columns ``hidden [B, n]``, in every layer of a prefill."""
    parts = find_parts(model)
    check_attending(parts, "hiding tokens from the text")
    layout = read_layout(inputs["input_ids"], parts.visual_ids, inputs.get("attention_mask"))
    blocked = layout.after[:, None, :, None] & hidden.to(layout.after.device)[:, None, None, :]

    def attend(call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        block = blocked.to(call.key.device)
        if call.mask is None:  # the kernel would have been causal
            mask = ~block & torch.ones(block.shape[-2:], dtype=torch.bool, device=block.device).tril()
        elif call.mask.dtype == torch.bool:
            mask = call.mask & ~block
        else:
            mask = call.mask.masked_fill(block, torch.finfo(call.mask.dtype).min)
        return replace(call, mask=mask).run()

    with attention_hook(parts.attentions, attend):
        yield
