"""Scores that exist before the decoder runs: how much attention a patch receives inside the vision encoder (VisionZip).

The scoring layer is the one whose output the projector reads (``vision_feature_layer``), else the last. Where the
encoder has a class token its query row says which patches matter; elsewhere all rows are averaged. Heads are
averaged. Patches that the projector merges into one visual token share their mean. A family whose patches cannot be
followed to visual tokens that way is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import UnsupportedModelError
from planner.runtime.attention import Call, seam
from planner.runtime.layout import Layout
from planner.runtime.weights import attention_weights

#: Families whose visual tokens are not the encoder's patches in order, nor square blocks of them.
_SCRAMBLED = {
    "llava_next": "unpadded tiles with newline tokens",
    "llava_onevision": "unpadded tiles with newline tokens",
    "qwen2_5_vl": "window attention in permuted order",
    "mistral3": "patches of all images in one sequence",
}


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
        if config.model_type in _SCRAMBLED:
            raise UnsupportedModelError(
                f"{config.model_type} has {_SCRAMBLED[config.model_type]}: its encoder cannot rank its visual tokens",
                "Rank by encoder_norm instead",
            )
        tower = _encoder(model)
        self.attentions = [
            m for m in tower.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config")
        ]
        if not self.attentions:
            raise UnsupportedModelError(
                f"the vision encoder of {config.model_type} does not show its attention", "Rank by encoder_norm instead"
            )
        self.layer = _scoring_layer(config, len(self.attentions))
        self.class_token = any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
        self.keeps_class = self.class_token and getattr(config, "vision_feature_select_strategy", "default") == "full"
        # Qwen's encoder gives the patches of one visual token side by side; others give them row by row.
        self.blocks = hasattr(config.vision_config, "spatial_merge_size") and hasattr(
            config.vision_config, "temporal_patch_size"
        )
        self._tiles: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect while the block runs; the encoder's own attention goes on unchanged."""
        with seam(self.attentions, self._attend):
            yield

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        if call.layer == self.layer:
            query = call.query[:, :, :1] if self.class_token else call.query
            mask = call.mask[:, :, : query.shape[2]] if call.mask is not None else None
            received = attention_weights(query, call.key, mask, call.scaling, call.softcap).mean((1, 2))
            self._tiles += list(received if self.keeps_class or not self.class_token else received[:, 1:])
        return call.run()

    def take(self, layout: Layout) -> Tensor:
        """Scores of the visual rows of the batch that has just been encoded, ``[B, n]``, 0 elsewhere.

        Raises:
            UnsupportedModelError: patches and visual tokens do not match.
        """
        tiles, self._tiles = self._tiles, []
        total = sum(layout.visual_counts)
        patches = sum(tile.shape[0] for tile in tiles)
        merged = patches // total if total else 0
        side = round(merged**0.5)
        if side * side * total != patches or not tiles:
            raise UnsupportedModelError(
                f"the vision encoder ranked {patches} patches for {total} visual tokens", "Rank by encoder_norm instead"
            )
        flat = torch.cat([self._merge(tile, side) for tile in tiles])
        found = torch.zeros(layout.visual.shape, dtype=flat.dtype, device=layout.visual.device)
        return found.masked_scatter(layout.visual, flat.to(found.device))

    def forget(self) -> None:
        """Drop what an unfinished forward left."""
        self._tiles = []

    def _merge(self, scores: Tensor, side: int) -> Tensor:
        if side == 1:
            return scores
        if self.blocks:
            return scores.reshape(-1, side * side).mean(1)
        grid = round(scores.shape[0] ** 0.5)
        return nn.functional.avg_pool2d(scores.reshape(1, 1, grid, grid), side).flatten()


def _encoder(model: Any) -> nn.Module:
    vision = model.config.vision_config
    for module in model.modules():
        if getattr(module, "config", None).__class__ is vision.__class__:
            return module  # type: ignore[no-any-return]
    raise UnsupportedModelError(f"no vision encoder in {type(model).__name__}", "Rank by encoder_norm instead")


def _scoring_layer(config: Any, layers: int) -> int:
    chosen = getattr(config, "vision_feature_layer", None)
    chosen = -1 if chosen is None else chosen
    index = max(
        layers + one if one < 0 else one - 1 for one in (chosen if isinstance(chosen, (list, tuple)) else [chosen])
    )
    return min(max(index, 0), layers - 1)
