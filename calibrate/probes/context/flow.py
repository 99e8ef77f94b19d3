"""Information flow between parts of a prompt in one layer (context pruning eq. 17-23)."""

from __future__ import annotations

import numpy as np
import torch

from calibrate.probes.context.rows import CHUNK, row_weights
from calibrate.probes.stats import Array
from planner.runtime.model.attention import Call
from planner.runtime.tensors.layout import Layout

#: From visual tokens to preserved text (r), pruned text (c) and the target (t); from r and c to t; other pairs (w).
FLOWS = ("vr", "vc", "rt", "ct", "vt", "ww")


def flows(
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
    for chunk in position.split(CHUNK):
        weights = row_weights(call, chunk).float()
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
