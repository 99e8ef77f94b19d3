"""Attention in one prompt while its context is pruned: entropy, visual dependency, information flow.

The measures are those of context pruning, sections 3 and 4.

The runtime drops tokens; here they are hidden instead, in every layer after the one that ranked them, which is the
same to all rows that stay and leaves every row in place to be compared with the dense run. It also knows a pooling
over heads that no plan offers (the mean).

Information flow needs gradients: ``I = sum_h |A_h * dL/dA_h|`` (eq. 17). The gradient of an attention weight is
the gradient of the row's output times the key's value vector, so only the outputs' gradients are kept, never an n x n
matrix: rows are processed in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from calibrate.inputs.encode import Inputs
from calibrate.probes.context.flow import flows
from calibrate.probes.context.rows import CHUNK, row_weights, visible
from calibrate.probes.stats import Array
from planner.errors import UnsupportedModelError
from planner.runtime.model.adapters import Parts, check_attending
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.tensors.layout import Layout, read_layout
from planner.schedule import Schedule, kept

Pooling = Literal["max", "mean"]


@dataclass
class Attended:
    """One prompt, one run; L layers.

    Attributes:
        logits: of the last row, ``[vocabulary]``.
        entropy: of the attention rows of the protected tokens, mean over heads and rows, ``[L]`` nats (eq. 5).
        variance: of their weights over the keys they see, mean over heads and rows, ``[L]`` (eq. 8).
        visual: weight of the last row on the image, mean over heads, ``[L]`` (eq. 2 at the first answer token).
        kept: rows that are left after each layer, ``[L, n]``.
        preserved, pruned: text rows after the image, the last one (the target) left out, ``[n]``.
        flow: means of `FLOWS` per layer, ``[L, 6]`` (eq. 18-23); None where no gradient was asked for.
    """

    logits: torch.Tensor
    entropy: Array
    variance: Array
    visual: Array
    kept: torch.Tensor
    preserved: torch.Tensor
    pruned: torch.Tensor
    flow: Array | None = None


@dataclass
class _Run:
    """Collects one run layer by layer."""

    layout: Layout
    protect: int
    schedule: Schedule | None
    pooling: Pooling
    gradients: bool
    dropped: torch.Tensor
    entropy: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    visual: list[float] = field(default_factory=list)
    calls: list[tuple[Call, torch.Tensor]] = field(default_factory=list)
    hidden: tuple[torch.Tensor | None, torch.Tensor] | None = None

    def attend(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        if call.softcap is not None:
            raise UnsupportedModelError(
                f"layer {call.layer} caps its attention scores, which the context probe does not reproduce",
                "Leave the context probe out for this model",
            )
        mask = self._mask(call)
        call = replace(call, mask=mask)
        output, weights = call.run()
        if self.gradients:
            # The first output starts the graph; parameters are frozen.
            output = output if output.requires_grad else output.requires_grad_()
            self.calls.append((call, output))
        with torch.no_grad():
            self._look(call, mask)
            self._select(call, mask)
            self.kept.append(~self.dropped)
        return output, weights

    def _mask(self, call: Call) -> torch.Tensor:
        """The layer's mask without the dropped columns; one tensor for all layers between two selections."""
        if self.hidden is None or self.hidden[0] is not call.mask:
            self.hidden = call.mask, _hide(call, self.dropped)
        return self.hidden[1]

    def _look(self, call: Call, mask: torch.Tensor) -> None:
        rows = self.layout.protected(max(self.protect, 1))[0].nonzero().flatten()
        weights = row_weights(call, rows)
        self.entropy.append(float(-torch.xlogy(weights, weights).sum(-1).mean()))
        keys = visible(mask, rows).sum(-1)
        # The mean of weights that sum to 1 is one over their number.
        self.variance.append(float((weights.square().sum(-1) / keys - 1 / keys.square()).mean()))
        self.visual.append(float(weights[:, -1, self.layout.visual[0].to(weights.device)].sum(-1).mean()))

    def _select(self, call: Call, mask: torch.Tensor) -> None:
        if self.schedule is None:
            return
        stage = self.schedule.stage_of(call.layer)
        if call.layer != stage.last - 1:
            return
        for select in stage.selects:
            ranked = self.layout.after & ~self.layout.protected(select.protect)
            columns = (ranked[0] & ~self.dropped).nonzero().flatten()
            score = _received(call, mask, self.layout.after[0] & ~self.dropped, columns, self.pooling)
            stays = int(kept(select.keep, len(columns)))
            order = score.argsort(descending=True, stable=True)
            self.dropped[columns[order[stays:].to(columns.device)]] = True
            self.hidden = None


def attended(
    model: Any,
    parts: Parts,
    inputs: Inputs,
    protect: int,
    schedule: Schedule | None = None,
    pooling: Pooling = "max",
    answer: int | None = None,
    split: Attended | None = None,
) -> Attended:
    """Run one prompt and measure its attention.

    Args:
        inputs: batch 1.
        protect: last text tokens that are never pruned (question and role tokens).
        schedule: context selections to follow; None: dense.
        pooling: how attention received is united over heads.
        answer: token whose negative log-likelihood is the loss of the information flow; None: no flow.
        split: take preserved and pruned tokens from this run, for a dense run beside it.

    Raises:
        UnsupportedModelError: the model caps attention scores, or has recurrent layers.
    """
    check_attending(parts, "the context probe")
    with torch.inference_mode(False), torch.set_grad_enabled(answer is not None), _frozen(model):
        # Tensors made in inference mode can neither be part of a graph nor be written to; copies can.
        copies = {name: value.clone() for name, value in inputs.items()}
        layout = read_layout(copies["input_ids"], parts.visual_ids, copies.get("attention_mask"))
        dropped = torch.zeros(layout.length, dtype=torch.bool, device=layout.ids.device)
        run = _Run(layout, protect, schedule, pooling, answer is not None, dropped)
        with attention_hook(parts.attentions, run.attend):
            logits = model(**copies, use_cache=False, logits_to_keep=1).logits[0, -1]
        target = torch.zeros_like(dropped)
        target[int(layout.last[0])] = True
        preserved, pruned = layout.after[0] & ~dropped & ~target, dropped
        if split is not None:
            preserved, pruned = split.preserved, split.pruned
        found = Attended(
            logits=logits.detach(),
            entropy=np.asarray(run.entropy),
            variance=np.asarray(run.variance),
            visual=np.asarray(run.visual),
            kept=torch.stack(run.kept),
            preserved=preserved,
            pruned=pruned,
        )
        if answer is not None:
            loss = -logits.float().log_softmax(-1)[answer]
            gradients = torch.autograd.grad(loss, [output for _, output in run.calls])
            with torch.no_grad():
                found.flow = np.stack(
                    [
                        flows(call, gradient, layout, preserved, pruned, target)
                        for (call, _), gradient in zip(run.calls, gradients, strict=True)
                    ]
                )
    return found


def _received(
    call: Call, mask: torch.Tensor, asking: torch.Tensor, columns: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    """Mean weight that each column gets from the asking rows that can see it, united over heads: ``[r]``."""
    rows = asking.nonzero().flatten()
    total: torch.Tensor | float = 0.0
    for chunk in rows.split(CHUNK):
        total = total + row_weights(call, chunk)[:, :, columns].sum(1)
    mean = torch.as_tensor(total) / visible(mask, rows)[:, columns].sum(0).clamp(min=1)
    return mean.amax(0) if pooling == "max" else mean.mean(0)


def _hide(call: Call, dropped: torch.Tensor) -> torch.Tensor:
    """The call's mask as a tensor, dropped columns masked out; a dropped row sees itself, so that no row is empty."""
    rows = call.query.shape[2]
    device = call.query.device
    itself = torch.eye(rows, dtype=torch.bool, device=device)
    hidden = dropped.to(device)[None, :] & ~itself
    if call.mask is None:
        return (torch.ones(rows, rows, dtype=torch.bool, device=device).tril() & ~hidden)[None, None]
    if call.mask.dtype == torch.bool:
        return call.mask & ~hidden
    return call.mask.masked_fill(hidden, torch.finfo(call.mask.dtype).min)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Parameters without gradients inside the block, so that a graph holds activations of the layers only."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            # Weights that accelerate offloads were made anew in inference mode, and can only be set there.
            with torch.inference_mode(parameter.is_inference()):
                parameter.requires_grad_(needed)
