"""Families that place image tokens on several axes (Qwen-VL): tokens that stay keep the place they had in the picture.

vLLM asks for positions twice. For a new request, before its pictures are encoded: then those of all text are known, as
text behind a picture counts on from the size of its grid, whatever is dropped. And with the encoded pictures: then the
places of the tokens that stayed are known, since each brings its own as three further channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from planner.vllm_plugin.planned import PlannedModel

#: Time, row and column.
_AXES = 3


class PlannedAxes(PlannedModel):
    """A planned model whose positions are of several axes."""

    supports_multimodal_pruning: ClassVar[bool] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._merge, self._token = int(config.vision_config.spatial_merge_size), int(config.image_token_id)
        # With encoded pictures, vLLM asks for positions where videos are pruned. None comes here, so any rate will do.
        vllm_config.model_config.multimodal_config.video_pruning_rate = 0.5

    def kept(self, features: Tensor, index: int, kwargs: dict[str, Any]) -> Tensor:
        """What is kept of one picture, ``[kept, D + 3]``: behind each token its place."""
        rows, tokens = self.entry.chosen(features, self.width, self.beside(index, kwargs))
        axes = [torch.arange(size) for size in self._grid(kwargs["image_grid_thw"][index])]
        places = torch.cartesian_prod(*axes).to(tokens)  # half precision is exact up to 256 rows and columns
        return torch.cat([tokens, places[rows]], dim=1)

    def _grid(self, sizes: Tensor) -> tuple[int, int, int]:
        frames, rows, columns = sizes.tolist()
        return frames, rows // self._merge, columns // self._merge

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Positions ``[3, tokens]`` of a new prompt, and how far the next one is ahead of the number of tokens.

        All tokens of a picture are at its beginning until it is encoded.
        """
        positions = torch.empty(len(input_tokens), dtype=torch.long)
        place = reached = 0
        for feature in sorted(mm_features, key=lambda one: int(one.mm_position.offset)):
            start = feature.mm_position.offset
            positions[place:start] = torch.arange(reached, reached + start - place)
            reached += start - place
            place = start + feature.mm_position.length
            positions[start:place] = reached
            reached += max(self._grid(feature.data["image_grid_thw"].data))
        positions[place:] = torch.arange(reached, reached + len(positions) - place)
        return positions.repeat(_AXES, 1), reached - place

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Encoded pictures without their places, positions ``[3, tokens]``, and how far the next one is ahead.

        Args:
            input_ids: of the prompt.
            multimodal_embeddings: what comes next of its pictures, as `embed_multimodal` gave it.
            mrope_positions: of the prompt so far.
            num_computed_tokens: how many of its tokens come before those.
        """
        ids, positions = torch.as_tensor(input_ids, device=mrope_positions.device), mrope_positions.clone()
        text = ids != self._token
        count = sum(map(len, multimodal_embeddings))
        rows = (~text).nonzero()[:, 0]
        rows = rows[rows >= num_computed_tokens][:count]
        if count:
            order = torch.arange(len(ids), device=ids.device)
            last = torch.where(text, order, -1).cummax(0).values[rows]  # a picture begins behind this token
            begins = torch.where(last < 0, -1, positions[0, last.clamp(min=0)]) + 1
            places = torch.cat([one[:, -_AXES:] for one in multimodal_embeddings]).long()
            positions[:, rows] = places.T.to(positions.device) + begins
        ahead = int(positions[:, -1].max()) + 1 - len(ids)
        return [one[:, :-_AXES] for one in multimodal_embeddings], positions, ahead
