"""Many ablations at once, through the text rows only.

A batch of M masks is a batch of M copies of the text rows in the model's own text tower: its norms, projections, rotary embedding and
feed-forward layers run unmodified, and only the attention between projections is ours. There, the queries of all masks whose head is
intact meet the image's keys in one matrix product, and those of all masks whose head is ablated meet the mean keys in another. Both
key sets belong to the prefix and are shared by every mask, so nothing is repeated per mask but the text rows.

Sorting the masks of a head by intact and ablated *before* the product costs a small gather of queries and halves the work of computing
both score matrices and selecting afterwards. The select form remains for heads that read some rows or some visual tokens intact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from calibrate.attribution.mean import MeanImage
from calibrate.attribution.parts import Parts, attention_as, working_dtype
from calibrate.attribution.prefix import Capture
from calibrate.attribution.rotary import rotate
from planner.errors import UnsupportedModelError

_NAME = "planner_attribution_replay"
#: Elements of one head group's score matrix that stay in a core's cache; larger batches were slower on CPU.
_CPU_SCORES = 1 << 19
_GPU_SCORES = 1 << 26


@dataclass(frozen=True)
class Ablation:
    """What reads the image; M ablations, True is intact, False reads the mean image.

    Attributes:
        heads: ``[M, L, H]``.
        rows: text rows, ``[M, T]`` or None for all intact (S4's u).
        image: visual tokens, ``[M, V]`` or None for all intact (S4's v).
    """

    heads: torch.Tensor
    rows: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.heads.shape[0]

    def split(self, size: int) -> Iterator[Ablation]:
        """Consecutive pieces of at most ``size`` ablations."""
        for first in range(0, len(self), size):
            piece = slice(first, first + size)
            yield Ablation(
                self.heads[piece],
                None if self.rows is None else self.rows[piece],
                None if self.image is None else self.image[piece],
            )


@dataclass(frozen=True)
class _Layer:
    """Prefix keys and values of one layer, of the image and with the mean in its place, ``[K, P, e]``."""

    key: torch.Tensor
    value: torch.Tensor
    mean_key: torch.Tensor
    mean_value: torch.Tensor
    scaling: float
    hidden_prefix: torch.Tensor | None
    """Prefix keys a text row may **not** see (padding, sliding windows), ``[T, P]``; None where it sees all."""
    hidden_text: torch.Tensor
    """The same of text keys (causality), ``[T, T]``."""


@dataclass(frozen=True)
class _Order:
    """For each layer and KV head: (mask, head of the group) pairs sorted into intact, ablated and mixed, and how many of each."""

    pairs: torch.Tensor
    counts: list[list[tuple[int, int, int]]]


class TextRows:
    """Replays the text rows of one captured sample under ablations.

    Args:
        parts: the model's parts.
        capture: the sample's ordinary pass.
        mean: what ablated heads read.
        grids: the sample's image grids, see `image_grids`.
        batch_size: ablations per forward; None chooses one by the score matrices' size.
    """

    def __init__(
        self, parts: Parts, capture: Capture, mean: MeanImage, grids: tuple[tuple[int, int], ...], batch_size: int | None = None
    ) -> None:
        self._parts = parts
        self._capture = capture
        keys, values, self.mean_grid = mean.on(grids)
        self._layers = tuple(
            _substituted(capture, layer, keys[layer], values[layer]) for layer in range(parts.layers)
        )
        self._group = parts.heads // parts.kv_heads
        rows = capture.text_rows
        elements = _CPU_SCORES if capture.embeddings.device.type == "cpu" else _GPU_SCORES
        self.batch_size = batch_size or max(4, elements // (self._group * rows * (capture.start + rows)))
        self._ablation = Ablation(torch.empty(0, parts.layers, parts.heads))
        self._order = _Order(torch.empty(0), [])
        self._index = {id(attention): layer for layer, attention in enumerate(parts.attentions)}

    @torch.no_grad()
    def hidden(self, ablation: Ablation) -> torch.Tensor:
        """The last row's final hidden states, ``[M, d]``, as they enter the output embedding."""
        out = []
        with self._replaced():
            for piece in ablation.split(self.batch_size):
                self._ablation, self._order = piece, self._sorted(piece)
                embeddings = self._capture.embeddings.expand(len(piece), -1, -1)
                states = self._parts.tower(
                    inputs_embeds=embeddings, position_ids=self._capture.position_ids, use_cache=False
                ).last_hidden_state
                out.append(states[:, -1])
        return torch.cat(out)

    @torch.no_grad()
    def logits(self, ablation: Ablation) -> torch.Tensor:
        """Logits of the last row, ``[M, vocabulary]``."""
        return self._parts.head(self.hidden(ablation))  # type: ignore[no-any-return]

    @torch.no_grad()
    def answer_logit(self, ablation: Ablation, token: int) -> torch.Tensor:
        """The token's logit minus the vocabulary mean (S4 4.1), ``[M]`` in float64.

        The output embedding is linear, so that difference is one dot product with a fixed direction.
        """
        weight = self._parts.head.weight
        direction = weight[token].double() - weight.mean(dim=0, dtype=torch.float64)
        bias = getattr(self._parts.head, "bias", None)
        constant = 0.0 if bias is None else float(bias[token].double() - bias.double().mean())
        return self.hidden(ablation).double() @ direction + constant

    def check(self, token: int) -> None:
        """Compare the replay with everything intact with the model's own logits.

        Raises:
            UnsupportedModelError: they differ, so the model does something between the layers and the logits that is not replayed.
        """
        own = self._capture.logits.double()
        expected = float(own[token] - own.mean())
        got = float(self.answer_logit(self.uniform(True), token)[0])
        # Half precision rounds each logit to about 1 in 2^8 or 2^11; a missing operation is off by far more.
        slack = 64 * torch.finfo(self._capture.logits.dtype).eps * float(own.abs().max())
        if not abs(expected - got) <= slack:
            raise UnsupportedModelError(
                f"replaying the text rows gives the answer the logit {got:.6g}, the model itself {expected:.6g}",
                "The model scales, caps or adds something that head attribution does not know; leave the probe out.",
            )

    def uniform(self, intact: bool) -> Ablation:
        """One ablation with every head intact, or none."""
        return Ablation(torch.full((1, self._parts.layers, self._parts.heads), intact))

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Our attention in place, and the last layer's per-row work done for the last row only.

        Of the last layer only the last row is read, so its output projection and feed-forward run on that row; their one-row results
        are broadcast over the residual stream, where the other rows become meaningless and unread.
        """
        last = self._parts.attentions[-1].o_proj, getattr(self._parts.tower.layers[-1], "mlp", None)  # type: ignore[index, union-attr]
        hooks = [module.register_forward_pre_hook(_last_row) for module in last if module is not None]
        try:
            with attention_as(self._parts.tower, _NAME, self._attend, _no_mask):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _sorted(self, ablation: Ablation) -> _Order:
        masks, layers, heads = ablation.heads.shape
        kv_heads = self._parts.kv_heads
        # 0 reads the image, 1 the mean, 2 something of both.
        kind = (~ablation.heads.bool()).long()
        if ablation.rows is not None or ablation.image is not None:
            kind = torch.where(ablation.heads.bool(), 2, kind)
        grouped = kind.view(masks, layers, kv_heads, self._group).permute(1, 2, 0, 3).reshape(layers, kv_heads, -1)
        numbers = torch.stack([(grouped == which).sum(-1) for which in range(3)], dim=-1).tolist()
        order = grouped.argsort(dim=-1, stable=True).to(self._capture.embeddings.device)
        return _Order(order, [[(a, b, c) for a, b, c in layer] for layer in numbers])

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        index = self._index[id(module)]
        layer = self._layers[index]
        masks, heads, rows, size = query.shape
        dtype, work = query.dtype, working_dtype(query.dtype)
        query = query.to(work).view(masks, -1, self._group, rows, size)
        key, value = key.to(work), value.to(work)
        out = torch.empty(masks, self._parts.kv_heads, self._group, rows, value.shape[-1], dtype=work, device=query.device)
        for kv_head, counts in enumerate(self._order.counts[index]):
            pairs = self._order.pairs[index, kv_head].to(query.device)
            mask_of = pairs.div(self._group, rounding_mode="floor")
            head_of = pairs - mask_of * self._group
            group = self._group_out(
                layer,
                kv_head,
                query[mask_of, kv_head, head_of] * layer.scaling,
                key[mask_of, kv_head],
                value[mask_of, kv_head],
                counts,
                mask_of,
            )
            out[mask_of, kv_head, head_of] = group
        return out.view(masks, heads, rows, -1).transpose(1, 2).to(dtype), None

    def _group_out(
        self,
        layer: _Layer,
        kv_head: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        counts: tuple[int, int, int],
        mask_of: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one KV head for pairs sorted by kind; query, key, value ``[pairs, T, e]``."""
        pairs, rows, size = query.shape
        prefix = layer.key.shape[1]
        flat = query.reshape(-1, size)
        image, mean, mixed = (count * rows for count in counts)
        scores = torch.empty(pairs * rows, prefix + rows, dtype=query.dtype, device=query.device)
        torch.mm(flat[:image], layer.key[kv_head].T, out=scores[:image, :prefix])
        torch.mm(flat[image : image + mean], layer.mean_key[kv_head].T, out=scores[image : image + mean, :prefix])
        reads = None
        if mixed:
            reads = self._reads(layer, mask_of[counts[0] + counts[1] :], rows)
            both = flat[image + mean :]
            torch.where(
                reads, both @ layer.key[kv_head].T, both @ layer.mean_key[kv_head].T, out=scores[image + mean :, :prefix]
            )
        by_pair = scores.view(pairs, rows, -1)
        if layer.hidden_prefix is not None:
            by_pair[:, :, :prefix].masked_fill_(layer.hidden_prefix, -torch.inf)
        # Batched products are slow on strided slices, so the small text block is made apart and copied in.
        by_pair[:, :, prefix:] = torch.bmm(query, key.transpose(1, 2)).masked_fill_(layer.hidden_text, -torch.inf)
        weights = torch.softmax(scores, dim=-1)
        out = torch.bmm(weights.view(pairs, rows, -1)[:, :, prefix:].contiguous(), value).view(pairs * rows, -1)
        out[:image].addmm_(weights[:image, :prefix], layer.value[kv_head])
        out[image : image + mean].addmm_(weights[image : image + mean, :prefix], layer.mean_value[kv_head])
        if reads is not None:
            read = weights[image + mean :, :prefix]
            out[image + mean :].addmm_(read * reads, layer.value[kv_head])
            out[image + mean :].addmm_(read * ~reads, layer.mean_value[kv_head])
        return out.view(pairs, rows, -1)

    def _reads(self, layer: _Layer, mask_of: torch.Tensor, rows: int) -> torch.Tensor:
        """Which prefix keys each row of each mixed pair reads from the image: ``[pairs * T, P]``."""
        device = layer.key.device
        reads = torch.ones(len(mask_of), rows, layer.key.shape[1], dtype=torch.bool, device=device)
        if self._ablation.image is not None:
            columns = self._capture.visual.to(device)
            reads[:, :, columns] = self._ablation.image.to(device)[mask_of][:, None, :]
        if self._ablation.rows is not None:
            reads &= self._ablation.rows.to(device)[mask_of][:, :, None]
        return reads.view(-1, layer.key.shape[1])


def _last_row(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0][:, -1:], *args[1:])


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The replay hides keys itself, by the mask that the ordinary pass was given."""


def _substituted(capture: Capture, layer: int, mean_keys: torch.Tensor, mean_values: torch.Tensor) -> _Layer:
    seen = capture.layers[layer]
    columns = capture.visual.to(seen.key.device)
    key, value = seen.key[:, : capture.start].contiguous(), seen.value[:, : capture.start].contiguous()
    mean_key, mean_value = key.clone(), value.clone()
    mean_key[:, columns] = rotate(mean_keys.to(key), seen.cos[columns], seen.sin[columns])
    mean_value[:, columns] = mean_values.to(value)
    hidden_prefix, hidden_text = (~seen.visible).split([capture.start, capture.text_rows], dim=1)
    return _Layer(
        key, value, mean_key, mean_value, seen.scaling, hidden_prefix if bool(hidden_prefix.any()) else None, hidden_text
    )
