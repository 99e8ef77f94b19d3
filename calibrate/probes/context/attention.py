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
from calibrate.probes.stats import Array
from planner.errors import UnsupportedModelError
from planner.runtime.model.adapters import Parts
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.tensors.layout import Layout, read_layout
from planner.runtime.tensors.weights import attention_weights
from planner.schedule import Schedule, kept

Pooling = Literal["max", "mean"]
#: From visual tokens to preserved text (r), pruned text (c) and the target (t); from r and c to t; other pairs (w).
FLOWS = ("vr", "vc", "rt", "ct", "vt", "ww")
_CHUNK = 128


@dataclass
class Attended:
    """One prompt, one run; L layers.

    Attributes:
        logits: of the last row, ``[vocabulary]``.
        entropy: of the attention rows of the protected tokens, mean over heads and rows, ``[L]`` nats (eq. 5).
        visual: weight of the last row on the image, mean over heads, ``[L]`` (eq. 2 at the first answer token).
        preserved, pruned: text rows after the image, the last one (the target) left out, ``[n]``.
        flow: means of `FLOWS` per layer, ``[L, 6]`` (eq. 18-23); None where no gradient was asked for.
    """

    logits: torch.Tensor
    entropy: Array
    visual: Array
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
            self._look(call)
            self._select(call, mask)
        return output, weights

    def _mask(self, call: Call) -> torch.Tensor:
        """The layer's mask without the dropped columns; one tensor for all layers between two selections."""
        if self.hidden is None or self.hidden[0] is not call.mask:
            self.hidden = call.mask, _hide(call, self.dropped)
        return self.hidden[1]

    def _look(self, call: Call) -> None:
        rows = self.layout.protected(max(self.protect, 1))[0].nonzero().flatten()
        weights = _weights(call, rows)
        self.entropy.append(float(-torch.xlogy(weights, weights).sum(-1).mean()))
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
        UnsupportedModelError: the model caps attention scores.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(answer is not None), _frozen(model):
        # Tensors made in inference mode can neither be part of a graph nor be written to; copies can.
        copies = {name: value.clone() for name, value in inputs.items()}
        layout = read_layout(copies["input_ids"], parts.visual_ids, copies.get("attention_mask"))
        dropped = torch.zeros(layout.length, dtype=torch.bool, device=layout.ids.device)
        run = _Run(layout, protect, schedule, pooling, answer is not None, dropped)
        with attention_hook(list(parts.attentions), run.attend):
            logits = model(**copies, use_cache=False, logits_to_keep=1).logits[0, -1]
        target = torch.zeros_like(dropped)
        target[int(layout.last[0])] = True
        preserved, pruned = layout.after[0] & ~dropped & ~target, dropped
        if split is not None:
            preserved, pruned = split.preserved, split.pruned
        found = Attended(logits.detach(), np.asarray(run.entropy), np.asarray(run.visual), preserved, pruned)
        if answer is not None:
            loss = -logits.float().log_softmax(-1)[answer]
            gradients = torch.autograd.grad(loss, [output for _, output in run.calls])
            with torch.no_grad():
                found.flow = np.stack(
                    [
                        _flows(call, gradient, layout, preserved, pruned, target)
                        for (call, _), gradient in zip(run.calls, gradients, strict=True)
                    ]
                )
    return found


def _flows(
    call: Call,
    gradient: torch.Tensor,
    layout: Layout,
    preserved: torch.Tensor,
    pruned: torch.Tensor,
    target: torch.Tensor,
) -> Array:
    """Means of `FLOWS` in one layer, ``[6]``; 0 where a group is empty.

    As in the paper, the image counts as one part: sums over visual tokens are divided by the other side's tokens only.
    The rest, w, is the mean over all other causal pairs of different tokens.
    """
    heads, rows = call.query.shape[1], call.query.shape[2]
    value = call.value.repeat_interleave(heads // call.value.shape[1], dim=1)[0].float()
    device = value.device
    groups = [one.to(device) for one in (layout.visual[0], preserved, pruned, target)]
    sources = torch.stack(groups).float()
    sums = torch.zeros(4, 4, dtype=torch.float64, device=device)  # from group to group
    everything = torch.zeros((), dtype=torch.float64, device=device)
    position = torch.arange(rows, device=device)
    for chunk in position.split(_CHUNK):
        weights = _weights(call, chunk).float()
        by_output = gradient[0, chunk].transpose(0, 1).float()  # [H, R, e]
        flow = (weights * (by_output @ value.transpose(1, 2))).abs().sum(0)
        flow = flow * (position[None, :] < chunk[:, None])
        everything += flow.sum(dtype=torch.float64)
        sums += (sources @ flow.T @ torch.stack([one[chunk] for one in groups], dim=1).float()).double()
    visual, kept_, cut, aim = range(4)
    counts = [int(group.sum()) for group in groups]
    parts = [
        (sums[visual, kept_], counts[kept_]),
        (sums[visual, cut], counts[cut]),
        (sums[kept_, aim], counts[kept_]),
        (sums[cut, aim], counts[cut]),
        (sums[visual, aim], 1),
    ]
    pairs = _causal_pairs(groups[visual], groups[kept_]) + _causal_pairs(groups[visual], groups[cut])
    pairs += counts[kept_] + counts[cut] + counts[visual]  # to the target, which is last
    rest = rows * (rows - 1) // 2 - pairs
    parts.append((everything - sum(total for total, _ in parts), rest))
    return np.asarray([float(total) / count if count else 0.0 for total, count in parts])


def _causal_pairs(sources: torch.Tensor, askers: torch.Tensor) -> int:
    """Pairs of a source and a later asker."""
    return int((sources.cumsum(0) * askers).sum())


def _received(
    call: Call, mask: torch.Tensor, asking: torch.Tensor, columns: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    """Mean weight that each column gets from the asking rows that can see it, united over heads: ``[r]``."""
    rows = asking.nonzero().flatten()
    total: torch.Tensor | float = 0.0
    for chunk in rows.split(_CHUNK):
        total = total + _weights(call, chunk)[:, :, columns].sum(1)
    allowed = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > torch.finfo(mask.dtype).min / 2
    mean = torch.as_tensor(total) / allowed[rows][:, columns].sum(0).clamp(min=1)
    return mean.amax(0) if pooling == "max" else mean.mean(0)


def _weights(call: Call, rows: torch.Tensor) -> torch.Tensor:
    """Weights of some rows, ``[H, R, n]``."""
    mask = None if call.mask is None else call.mask[:1, :, rows]
    return attention_weights(call.query[:, :, rows], call.key, mask, call.scaling)[0]


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
