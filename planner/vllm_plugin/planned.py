"""A model class of vLLM under a plan: of each encoded picture, what the plan keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from planner.schedule import ENCODER_SCORES
from planner.vllm_plugin.attention import TowerAttention
from planner.vllm_plugin.carried import Carried
from planner.vllm_plugin.processing import BESIDE, picture_entry


class PlannedModel:
    """Goes in front of a model class of vLLM.

    Attributes:
        plan: what is kept.
        entry: the plan's selection for this model.
        width: channels of an embedding; what comes behind them belongs to the same token.
    """

    plan: ClassVar[Carried]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        config = vllm_config.model_config.hf_config
        self.entry = picture_entry(self.plan, config)
        self.width = int(config.get_text_config().hidden_size)
        self._received: list[Tensor] = []
        self._attention = None
        if self.plan.select.rank_by in ENCODER_SCORES:
            tower: Any = self.vision_tower  # type: ignore[attr-defined]
            self._attention = TowerAttention(tower, config.vision_feature_select_strategy == "full")

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """What is kept of each picture, ``[kept, D]``."""
        found = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if "image_embeds" in kwargs:  # what a client sends is used as it is
            return found
        if self._attention is not None:
            self._received = self._attention.take()
        return [self.kept(features, index, kwargs) for index, features in enumerate(found)]

    def kept(self, features: Tensor, index: int, kwargs: dict[str, Any]) -> Tensor:
        """What is kept of one picture."""
        received = self._received[index] if self._received else None
        return self.entry.chosen(features, self.width, self.beside(index, kwargs), received)[1]

    def beside(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the processor said of one picture beside its pixels."""
        return {name: kwargs[name][index : index + 1] for name in BESIDE if name in kwargs}

    def get_encoder_cudagraph_config(self) -> Any:
        """No graph of the encoder: it would go past `embed_multimodal`."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]
