"""Scores that exist before the decoder runs: how much attention a patch receives inside the vision encoder (VisionZip).

The scoring layer is the one whose output the projector reads (``vision_feature_layer``), else the last. Where the
encoder has a class token its query row says which patches matter; elsewhere all rows are averaged. Heads are
averaged, and so are the rows that may see a patch: patches of other images in the same sequence do not. Where an
encoder attends within windows, its last layer with full attention scores. Patches that the projector merges into one
visual token share their mean; where the model reorders, unpads or packs what it encoded, scores take the model's own
way (`planner.runtime.selection.encoder_routes`). A family whose patches cannot be followed to visual tokens is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import UnsupportedModelError
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.selection.encoder_routes import routes_of
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.weights import attention_weights

#: Scores that need no attention of an encoder.
_INSTEAD = "Rank by encoder_norm, or by what tokens are like (diverse)"


class _Seen(threading.local):
    """Scores of the calling thread's images: of patches, tile by tile, and of visual tokens once the model's own way
    has been taken.
    """

    def __init__(self) -> None:
        self.tiles: list[Tensor] = []
        self.tokens: list[Tensor] = []


class EncoderScores:
    """Collects the scores of every image of a forward.

    Args:
        model: the vision-language model.

    Raises:
        UnsupportedModelError: the family's patches cannot be followed to its visual tokens, or the encoder's
            attention cannot be seen.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        tower = find_encoder(model)
        self.attentions = [
            m for m in tower.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config")
        ]
        if not self.attentions:
            raise UnsupportedModelError(
                f"the vision encoder of {config.model_type} does not show its attention", _INSTEAD
            )
        self.layer = _scoring_layer(config, len(self.attentions))
        self.class_token = any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
        self.keeps_class = self.class_token and getattr(config, "vision_feature_select_strategy", "default") == "full"
        # Qwen's encoder gives the patches of one visual token side by side; others give them row by row.
        self.blocks = hasattr(config.vision_config, "spatial_merge_size") and hasattr(
            config.vision_config, "temporal_patch_size"
        )
        self.routes = routes_of(model, tower)
        self.pools_videos = hasattr(getattr(model, "model", model), "apply_pooling")
        self._seen = _Seen()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect while the block runs; the encoder's own attention goes on unchanged."""
        with ExitStack() as stack:
            stack.enter_context(attention_hook(dict(enumerate(self.attentions)), self._attend))
            for route in self.routes:
                stack.enter_context(route(self._taken, self._give))
            yield

    def _taken(self) -> list[Tensor]:
        tiles, self._seen.tiles = self._seen.tiles, []
        return tiles

    def _give(self, tokens: list[Tensor]) -> None:
        self._seen.tokens += tokens

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        if call.layer == self.layer:
            query, key, mask = call.query, call.key, call.mask
            received = received_attention(query, key, mask, call.scaling, call.softcap, self.class_token)
            self._seen.tiles += list(received if self.keeps_class or not self.class_token else received[:, 1:])
        return call.run()

    def take(self, layout: Layout, samples: int) -> Tensor:
        """Scores of the visual rows of the batch that has just been encoded, ``[B, n]``, 0 elsewhere.

        Args:
            layout: parts of the prompts.
            samples: that were encoded; beams and several answers repeat each of them.

        Raises:
            UnsupportedModelError: patches and visual tokens do not match.
        """
        tiles, tokens = self._taken(), self._seen.tokens
        self.forget()
        times = len(layout.ids) // max(samples, 1)
        counts = layout.visual_counts[::times]
        total = sum(counts)
        if self.routes:
            flat = torch.cat(tokens) if tokens else torch.zeros(0)
            if flat.shape[0] != total:
                raise UnsupportedModelError(
                    f"the vision encoder ranked {flat.shape[0]} of {total} visual tokens",
                    _INSTEAD,
                )
            return _spread(flat, layout, counts, times)
        patches = sum(tile.shape[0] for tile in tiles)
        merged = patches // total if total else 0
        side = round(merged**0.5)
        if side * side * total != patches or not tiles:
            raise UnsupportedModelError(
                f"the vision encoder ranked {patches} patches for {total} visual tokens", _INSTEAD
            )
        return _spread(torch.cat([self._merge(tile, side) for tile in tiles]), layout, counts, times)

    def check(self, kwargs: dict[str, Any]) -> None:
        """Refuse videos that the model pools on their way to the decoder, before they are encoded.

        Raises:
            UnsupportedModelError: there is one.
        """
        if self.pools_videos and kwargs.get("pixel_values_videos") is not None:
            raise UnsupportedModelError(
                "the vision encoder's attention cannot be followed to the tokens of a video, which this family pools",
                "Rank by encoder_norm (prellm:rank_by=norm), or give images only",
            )

    def forget(self) -> None:
        """Drop what an unfinished forward left."""
        self._seen.tiles, self._seen.tokens = [], []

    def _merge(self, scores: Tensor, side: int) -> Tensor:
        if side == 1:
            return scores
        if self.blocks:
            return scores.reshape(-1, side * side).mean(1)
        grid = round(scores.shape[0] ** 0.5)
        return nn.functional.avg_pool2d(scores.reshape(1, 1, grid, grid), side).flatten()


def received_attention(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, class_token: bool
) -> Tensor:
    """Attention that each row of a tile receives, mean over heads and over the rows that may see it, ``[tiles, n]``.

    Args:
        query, key: ``[tiles, H, n, dh]``.
        mask: ``[tiles, 1, n, n]`` or None.
        scaling, softcap: of the scores.
        class_token: only the first row asks.
    """
    query = query[:, :, :1] if class_token else query
    mask = mask[:, :, : query.shape[2]] if mask is not None else None
    weights = attention_weights(query, key, mask, scaling, softcap)
    return weights.mean(1).sum(1) / _askers(mask, query.shape[2])


def find_encoder(model: Any) -> nn.Module:
    """The vision encoder of a model.

    Raises:
        UnsupportedModelError: there is none.
    """
    vision = getattr(model.config, "vision_config", None)
    for module in model.modules() if vision is not None else ():
        if getattr(module, "config", None).__class__ is vision.__class__:
            return module  # type: ignore[no-any-return]
    raise UnsupportedModelError(f"no vision encoder in {type(model).__name__}", _INSTEAD)


def _scoring_layer(config: Any, layers: int) -> int:
    whole = getattr(config.vision_config, "fullatt_block_indexes", None)
    if whole:
        return int(max(whole))
    chosen = getattr(config, "vision_feature_layer", None)
    if chosen is None:
        chosen = getattr(config, "vision_feature_layers", None)  # VipLLaVA's name for it in older releases
    chosen = -1 if chosen is None else chosen
    index = max(
        layers + one if one < 0 else one - 1 for one in (chosen if isinstance(chosen, (list, tuple)) else [chosen])
    )
    return min(max(index, 0), layers - 1)


def _askers(mask: Tensor | None, rows: int) -> Tensor | int:
    """How many rows may see each patch, ``[B, n]``, or the number of all."""
    if mask is None:
        return rows
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return allowed[:, 0].sum(1).clamp(min=1)


def _spread(flat: Tensor, layout: Layout, counts: tuple[int, ...], times: int) -> Tensor:
    """Scores in the order of the visual tokens at their rows, ``[B, n]``, 0 elsewhere; each sample's so many times."""
    found = torch.zeros(layout.visual.shape, dtype=flat.dtype, device=layout.visual.device)
    repeated = torch.cat([scores for scores in flat.split(counts) for _ in range(times)])
    return found.masked_scatter(layout.visual, repeated.to(found.device))
