"""Families that place image tokens on several axes (Qwen-VL): tokens that stay keep the place they had in the picture.

vLLM asks for a prompt's positions before its pictures are encoded. Those of text are known then: behind a picture it
counts on from the size of the grid, whatever is dropped. The tokens of a picture are put at its beginning. Each brings
its place in the picture as three further channels of what was encoded, and is moved there when the decoder begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planner.errors import UnsupportedModelError
from planner.vllm_plugin.planned import PlannedModel

#: Time, row and column.
_AXES = 3


class PlannedAxes(PlannedModel):
    """A planned model whose positions are of several axes.

    Raises:
        UnsupportedModelError: vLLM is to prune videos too, or to spread the layers over several devices, of which
            only the first sees what was encoded.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise UnsupportedModelError(
                "places of image tokens do not reach the later stages of a pipeline", "Use --pipeline-parallel-size 1"
            )
        if vllm_config.model_config.multimodal_config.video_pruning_rate:
            raise UnsupportedModelError(
                "a server with a plan takes no videos, so that none can be pruned", "Leave --video-pruning-rate out"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._merge = int(vllm_config.model_config.hf_config.vision_config.spatial_merge_size)
        self._moved: tuple[Tensor, Tensor] | None = None

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
        """Positions ``[3, tokens]`` of a new prompt, and how far the next one is ahead of the number of tokens."""
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

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Embeddings of the tokens that come next; the places of those of pictures are kept for `forward`.

        Args:
            input_ids: ``[tokens]``.
            multimodal_embeddings: as `embed_multimodal` gave them.
            is_multimodal: ``[tokens]`` those that they are for.
        """
        self._moved = None
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            places = torch.cat([one[:, -_AXES:] for one in multimodal_embeddings]).long()
            self._moved = is_multimodal.nonzero()[:, 0], places.T
            multimodal_embeddings = [one[:, :-_AXES] for one in multimodal_embeddings]
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The decoder, with image tokens at their places.

        Args:
            input_ids, intermediate_tensors, inputs_embeds: as vLLM gives them.
            positions: ``[3, tokens]``, vLLM's own buffer, which graphs read; vLLM fills it anew for every step.
        """
        moved, self._moved = self._moved, None
        if moved is not None:
            rows, places = moved
            positions[:, rows.to(positions.device)] += places.to(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]
