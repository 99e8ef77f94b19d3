"""Model classes of vLLM that a plan can be put on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A model class of vLLM.

    Attributes:
        family: model type of the plans for it.
        file, name: where vLLM has the class, below ``vllm.model_executor.models``.
        axes: whether it places image tokens on several axes, so that those that stay keep their positions.
    """

    family: str
    file: str
    name: str
    axes: bool = False

    @property
    def module(self) -> str:
        """Where vLLM has the class."""
        return f"vllm.model_executor.models.{self.file}"


#: By the name that a checkpoint's configuration gives.
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlavaForConditionalGeneration": Architecture("llava", "llava", "LlavaForConditionalGeneration"),
    "LlavaNextForConditionalGeneration": Architecture("llava_next", "llava_next", "LlavaNextForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": Architecture(
        "llava_onevision", "llava_onevision", "LlavaOnevisionForConditionalGeneration"
    ),
    "InternVLForConditionalGeneration": Architecture("internvl", "interns1", "InternS1ForConditionalGeneration"),
    "InternVLChatModel": Architecture("internvl", "internvl", "InternVLChatModel"),
    "Idefics3ForConditionalGeneration": Architecture("idefics3", "idefics3", "Idefics3ForConditionalGeneration"),
    "SmolVLMForConditionalGeneration": Architecture("smolvlm", "smolvlm", "SmolVLMForConditionalGeneration"),
    "Qwen2VLForConditionalGeneration": Architecture("qwen2_vl", "qwen2_vl", "Qwen2VLForConditionalGeneration", True),
    "Qwen2_5_VLForConditionalGeneration": Architecture(
        "qwen2_5_vl", "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", True
    ),
    "Qwen3VLForConditionalGeneration": Architecture("qwen3_vl", "qwen3_vl", "Qwen3VLForConditionalGeneration", True),
}


def families() -> dict[str, bool]:
    """Families that are covered, and whether they place image tokens on several axes."""
    return {one.family: one.axes for one in ARCHITECTURES.values()}
