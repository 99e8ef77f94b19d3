"""The attention that patches receive in vLLM's vision towers, whose kernels do not show it.

The tower ends at the layer whose output the projector reads, so its last layer scores. Queries and keys of that layer
are computed once more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from planner.errors import UnsupportedModelError
from planner.runtime.selection.encoder import received_attention


class TowerAttention:
    """What the patches of each encoded tile receive, until it is taken.

    Args:
        tower: a CLIP or SigLIP tower.
        keeps_class: whether the projector gets the class token too.

    Raises:
        UnsupportedModelError: it is another tower, or its heads are spread over several devices.
    """

    def __init__(self, tower: nn.Module, keeps_class: bool) -> None:
        layers: list[Any] = [one for one in tower.modules() if hasattr(one, "qkv_proj") and hasattr(one, "scale")]
        if not layers or layers[-1].tp_size > 1:
            raise UnsupportedModelError(
                "the attention of this vision tower is not seen, or is spread over several devices",
                "Use a plan that ranks by features, such as diverse or dart, or --tensor-parallel-size 1",
            )
        self._class_token = any(name.endswith("class_embedding") for name, _ in tower.named_parameters())
        self._skipped = int(self._class_token and not keeps_class)
        self._tiles: list[Tensor] = []
        layers[-1].register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        query, key, _ = (
            part.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            for part in layer.qkv_proj(hidden)[0].chunk(3, dim=-1)
        )
        received = received_attention(query, key, None, layer.scale, None, self._class_token)
        self._tiles += list(received[:, self._skipped :])

    def take(self) -> list[Tensor]:
        """``[patches]`` of each tile encoded since it was last asked."""
        tiles, self._tiles = self._tiles, []
        return tiles
