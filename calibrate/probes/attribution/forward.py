"""Many ablations at once, through the text rows only.

A batch of M ablations is a batch of M copies of the text rows in the model's own text tower: its norms, projections,
rotary embedding and feed-forward layers run unmodified, and only the attention between the projections is replaced
(`shared.attend`). Nothing is repeated per mask but the text rows, and these only from the layer on in which masks
differ (`branches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device

from calibrate.probes.attribution.branches import Piece, pieces
from calibrate.probes.attribution.masks import Ablation
from calibrate.probes.attribution.mean import Grid, MeanImage
from calibrate.probes.attribution.parts import AttributionParts
from calibrate.probes.attribution.prefix import PrefixCapture
from calibrate.probes.attribution.shared import attend, share_prefix
from planner.errors import UnsupportedModelError
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.tensors.weights import working_dtype

#: Elements of one key/value head's score matrix per batch, if all its ablations differ from the first layer on.
_CPU_SCORES = 3 << 19
_ACCELERATOR_SCORES = 1 << 26


class TextRows:
    """Replays the text rows of one captured sample under ablations.

    Args:
        parts: the model's parts.
        capture: the sample's ordinary pass.
        mean: what ablated heads read.
        grids: the sample's image grids, see `image_grids`.
        batch_size: ablations per forward; None chooses one by the score matrices' size.

    Attributes:
        mean_grid: how the mean image was laid out, ``equal`` or ``interpolated ...``.
    """

    def __init__(
        self,
        parts: AttributionParts,
        capture: PrefixCapture,
        mean: MeanImage,
        grids: tuple[Grid, ...],
        batch_size: int | None = None,
    ) -> None:
        self._parts = parts
        self._capture = capture
        keys, values, self.mean_grid = mean.on(grids)
        self._layers = tuple(
            share_prefix(seen, capture.visual, key, value)
            for seen, key, value in zip(capture.layers, keys, values, strict=True)
        )
        rows = capture.text_rows
        elements = _CPU_SCORES if capture.embeddings.device.type == "cpu" else _ACCELERATOR_SCORES
        per_mask = parts.heads // parts.kv_heads * rows * (capture.start + rows)
        self.batch_size = batch_size or max(4, elements // per_mask)
        self._piece: Piece
        self._direction: tuple[int, torch.Tensor, float] | None = None

    @torch.no_grad()
    def hidden(self, ablation: Ablation) -> torch.Tensor:
        """The last row's final hidden states, ``[M, d]``, as they enter the output embedding."""
        out: torch.Tensor | None = None
        with self._replaced():
            for piece in pieces(ablation, self.batch_size):
                self._piece = piece
                states: torch.Tensor = self._parts.tower(
                    inputs_embeds=self._capture.embeddings.expand(len(piece.layers[0]), -1, -1),
                    position_ids=self._capture.position_ids,
                    use_cache=False,
                ).last_hidden_state[:, -1]
                if out is None:
                    out = states.new_empty(len(ablation), states.shape[-1])
                out[piece.which.to(out.device)] = states[piece.of_each.to(states.device)]
        assert out is not None
        return out

    @torch.no_grad()
    def logits(self, ablation: Ablation) -> torch.Tensor:
        """Logits of the last row, ``[M, vocabulary]``."""
        logits: torch.Tensor = self._parts.head(self.hidden(ablation))
        return logits

    @torch.no_grad()
    def answer_logit(self, ablation: Ablation, token: int) -> torch.Tensor:
        """The token's logit minus the vocabulary mean (head attribution, section 4.1), ``[M]`` in float64 on the CPU.

        The output embedding is linear, so that difference is one dot product with a fixed direction.
        """
        if self._direction is None or self._direction[0] != token:
            self._direction = token, *self._toward(token)
        _, direction, constant = self._direction
        return (self.hidden(ablation).to(direction) @ direction + constant).cpu()

    def _toward(self, token: int) -> tuple[torch.Tensor, float]:
        """The token's output embedding minus the vocabulary mean, ``[d]``, and the same of the biases."""
        with align_module_device(self._parts.head):  # fetches weights that accelerate has offloaded
            weight: torch.Tensor = self._parts.head.weight
            direction = weight[token].double() - weight.mean(dim=0, dtype=torch.float64)
            bias = getattr(self._parts.head, "bias", None)
            constant = 0.0 if bias is None else float(bias[token].double() - bias.double().mean())
        return direction, constant

    def check(self, token: int) -> None:
        """Compare the replay with everything intact with the model's own logits.

        Raises:
            UnsupportedModelError: they differ, so the model does something between the layers and the logits that is
                not replayed.
        """
        own = self._capture.logits.double()
        expected = float(own[token] - own.mean())
        got = float(self.answer_logit(self.uniform(True), token)[0])
        # Half precision rounds each logit to about 1 in 2^8 or 2^11; a missing operation is off by far more.
        slack = 64 * torch.finfo(self._capture.logits.dtype).eps * float(own.abs().max())
        if not abs(expected - got) <= slack:
            raise UnsupportedModelError(
                f"replaying the text rows gives the answer the logit {got:.6g}, the model itself {expected:.6g}",
                "The model scales, caps or adds something that head attribution does not know; leave the probe out",
            )

    @property
    def logit_spread(self) -> float:
        """Standard deviation of the model's own logits in the last row."""
        return float(self._capture.logits.double().std())

    def uniform(self, intact: bool) -> Ablation:
        """One ablation with every head intact, or none."""
        return Ablation(torch.full((1, self._parts.layers, self._parts.heads), intact))

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Our attention in place, and the last layer's work per row done for the last row only.

        The layers' inputs branch where ablations do. Of the last layer only the last row is read, so its output
        projection and feed-forward run on that row; their one-row results are broadcast over the residual stream, where
        the other rows become meaningless and stay unread.
        """
        narrowed = [self._parts.attentions[-1].get_submodule("o_proj"), self._parts.last_mlp]
        hooks = [module.register_forward_pre_hook(_last_row) for module in narrowed if module is not None]
        hooks += [
            block.register_forward_pre_hook(self._branch(layer), with_kwargs=True)
            for layer, block in enumerate(self._parts.blocks)
            if layer
        ]
        try:
            with attention_hook(dict(enumerate(self._parts.attentions)), self._attend):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _branch(self, layer: int) -> Any:
        """A hook that gives a layer one input for each of its distinct ablations."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            parents = self._piece.parents[layer - 1]
            if len(parents) > hidden.shape[0]:
                hidden = hidden[parents.to(hidden.device)]
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _attend(self, call: Call) -> tuple[torch.Tensor, None]:
        index, layer, ablation = call.layer, self._layers[call.layer], self._piece.layers[call.layer]
        masks, _, rows, _ = call.query.shape
        work = working_dtype(call.query)
        query, key, value = call.query.to(work), call.key.to(work), call.value.to(work)
        if index == 0 and masks > 2 and not ablation.partial:
            # Nothing has been ablated before layer 0, so a head there has one of two outputs, whatever the mask.
            both = torch.cat([self.uniform(True).heads, self.uniform(False).heads])
            intact, ablated = attend(layer, index, Ablation(both), query[:2], key[:2], value[:2])
            out = torch.where(ablation.heads[:, 0, :, None, None].to(query.device), intact, ablated)
        elif index == len(self._layers) - 1:
            out = attend(layer, index, ablation, query[:, :, -1:], key, value).expand(-1, -1, rows, -1)
        else:
            out = attend(layer, index, ablation, query, key, value)
        return out.transpose(1, 2).to(call.query.dtype), None


def _last_row(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0][:, -1:], *args[1:])
