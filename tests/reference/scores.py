"""Each ranking rule, letter by letter from full attention weights."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from planner.schedule import FEATURE_ORDERS, Select, Threshold, kept
from tests.reference.attention import Record, softmax_over
from tests.reference.orders import picks
from tests.reference.pictures import Lie, cells, tokens


@dataclass
class Prompt:
    """The prompt, ``[B, P]`` each: ids, valid tokens, visual ones, and text with a visual token before it; and for
    each sample how its visual tokens lie."""

    ids: Tensor
    valid: Tensor
    visual: Tensor
    after: Tensor
    pictures: list[list[list[Lie]]]

    def last(self, sample: int) -> int:
        """The last valid row."""
        return int(self.valid[sample].nonzero().max())


def survivors(select: Select, layer: int, prompt: Prompt, alive: Tensor, record: Record) -> Tensor:
    """``[B, P]``: who is alive after a selection.

    Args:
        layer: the layer after which it happens, -1 before the first.
        alive: who was alive before it.
        record: the scoring layer, run with `alive` (with probe: the layer after the stage).
    """
    after = alive.clone()
    for sample in range(alive.shape[0]):
        candidates = _candidates(select, prompt, alive, sample)
        after[sample, candidates] = False
        after[sample, best(select, layer, prompt, alive, record, sample)] = True
    return after


def _candidates(select: Select, prompt: Prompt, alive: Tensor, sample: int) -> list[int]:
    if select.of == "visual":
        return (alive & prompt.visual)[sample].nonzero()[:, 0].tolist()  # type: ignore[no-any-return]
    candidates = (alive & prompt.after)[sample].nonzero()[:, 0].tolist()
    return candidates[: len(candidates) - select.protect] if select.protect else candidates


def best(select: Select, layer: int, prompt: Prompt, alive: Tensor, record: Record, sample: int) -> list[int]:
    """The tokens of a sample that a selection keeps."""
    return [
        token
        for piece in pieces(select, prompt, alive, sample)
        for token in best_of(select, layer, prompt, alive, record, sample, *piece)
    ]


def pieces(select: Select, prompt: Prompt, alive: Tensor, sample: int) -> list[tuple[list[int], list[Lie]]]:
    """Tokens that have a budget of their own, and how they lie."""
    candidates, pictures = _candidates(select, prompt, alive, sample), prompt.pictures[sample]
    if select.per == "prompt":
        return [(candidates, [lie for picture in pictures for lie in picture])]
    lies = pictures if select.per == "picture" else [[lie] for picture in pictures for lie in picture]
    found, start = [], 0
    for own in lies:
        count = sum(tokens(lie) for lie in own)
        found.append((candidates[start : start + count], own))
        start += count
    return found


def best_of(
    select: Select,
    layer: int,
    prompt: Prompt,
    alive: Tensor,
    record: Record,
    sample: int,
    candidates: list[int],
    lies: list[Lie],
) -> list[int]:
    """The candidates that a selection keeps, the best first."""
    if select.rank_by == "none":
        return []
    if select.rank_by in FEATURE_ORDERS:
        inputs, count = record.inputs[sample], int(kept(select.keep, len(candidates)))
        chosen = picks(select.rank_by, inputs[candidates], inputs[prompt.after[sample]], count, select.pivots)
        return [candidates[place] for place in chosen]
    if select.rank_by == "grid":
        count = int(kept(select.keep, len(candidates)))
        middles = [candidates[cell[0]] for cell in cells(lies, count)]
        return sorted(middles) + [token for token in candidates if token not in middles][: count - len(middles)]
    if select.rank_by == "random":
        if layer < 0:
            scores, output_norm = _lots(select.seed, record.inputs[sample, candidates]), 1.0
        else:
            scores, output_norm = _random(select.seed, layer, prompt, sample, len(candidates)), 1.0
    else:
        scores, output_norm = _scores(select, prompt, alive, record, sample, candidates)
    # The best first; of equals, the earlier token.
    ranked = sorted(range(len(candidates)), key=lambda i: (-scores[i], i))
    if isinstance(select.keep, Threshold):
        unit = output_norm if select.keep.relative else 1.0
        reached = sum(score / unit >= select.keep.threshold for score in scores)
        count = min(max(reached, select.keep.at_least), select.keep.at_most)
    else:
        count = int(kept(select.keep, len(candidates)))
    return [candidates[i] for i in ranked[:count]]


def _random(seed: int, layer: int, prompt: Prompt, sample: int, count: int) -> list[float]:
    """By definition: uniform numbers from a generator seeded by a hash of the seed, the layer and the sample's text."""
    words = ",".join(str(int(i)) for i in prompt.ids[sample][prompt.valid[sample] & ~prompt.visual[sample]])
    digest = hashlib.sha256(f"{seed}:{layer}:{words}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()  # type: ignore[no-any-return]


def _lots(seed: int, features: Tensor) -> list[float]:
    """By definition: a uniform number for each channel, then one for each place. A token has that of its place and that
    of the channel in which it is most standard deviations from the mean, added up on a circle."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(features.shape[1] + len(features), generator=generator, dtype=torch.float64).tolist()
    columns = features.T.double().tolist()
    means, spreads = [statistics.fmean(one) for one in columns], [statistics.pstdev(one) for one in columns]
    found = []
    for place, token in enumerate(features.double().tolist()):
        apart = [
            abs(value - mean) / spread if spread else 0.0
            for value, mean, spread in zip(token, means, spreads, strict=True)
        ]
        found.append((uniform[len(columns) + place] + uniform[apart.index(max(apart))]) % 1.0)
    return found


def _scores(
    select: Select, prompt: Prompt, alive: Tensor, record: Record, sample: int, candidates: list[int]
) -> tuple[list[float], float]:
    """One score a candidate, and the norm of the last row's attention output."""
    if select.rank_by == "encoder_norm":  # of features, whatever the layer is
        return [float(record.inputs[sample, token].norm()) for token in candidates], 1.0
    last = prompt.last(sample)
    weights, value = record.weights[sample], record.read[sample]
    if select.probe:
        # The next layer's query of the last row over everything alive, under no rule but the model's own mask.
        weights = softmax_over(record.scores, record.allowed & alive[:, None, :])[sample]
        value = record.value[sample]
    output = torch.einsum("hk,hkd->hd", weights[:, last], value).flatten()
    images = (alive & prompt.visual)[sample].nonzero()[:, 0]
    texts = (record.present & prompt.after)[sample].nonzero()[:, 0]
    scores = []
    for token in candidates:
        match select.rank_by:
            case "last_attention":
                score = weights[:, last, token].mean()
            case "last_attention_detrended":
                line = np.polyfit(candidates, [float(weights[:, last, other].mean()) for other in candidates], 1)
                score = weights[:, last, token].mean() - float(np.polyval(line, token))
            case "text_attention":
                score = weights[:, texts, token].mean()
            case "visual_attention":
                score = weights[:, images, token].mean()
            case "influence_l2" | "influence_cos":
                zeroed = weights[:, last].clone()
                zeroed[:, token] = 0
                changed = torch.einsum("hk,hkd->hd", zeroed, value).flatten()
                if select.rank_by == "influence_l2":
                    score = (output - changed).norm()
                else:
                    score = 1 - torch.dot(output, changed) / (output.norm() * changed.norm())
            case "text_raters":
                # Raters: text whose mean product with the visual hidden states reaches the mean over all text.
                similarity = (record.inputs[sample, texts] @ record.inputs[sample, images].T).mean(1)
                score = weights[:, texts[similarity >= similarity.mean()], token].mean()
            case "cross_self_attention":
                score = (weights[:, texts, token].mean(1) * weights[:, images, token].mean(1)).max()
            case "attention_received":
                asking = record.present[sample].nonzero()[:, 0].tolist()
                seeing = [row for row in asking if row >= token and bool(record.seen[sample, row, token])]
                score = weights[:, seeing, token].mean(1).max()
            case _:
                raise NotImplementedError(select.rank_by)
        scores.append(float(score))
    return scores, float(output.norm())
