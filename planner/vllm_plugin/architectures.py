"""Model classes of vLLM that a plan can be put on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A model class of vLLM.

    Attributes:
        family: model type of the plans for it.
        file, name: where vLLM has the class, below ``vllm.model_executor.models``; by itself the family's name, and the
            checkpoint's.
        axes: whether it places image tokens on several axes, so that those that stay keep their positions.
        attention: whether the attention in its vision tower can be followed to its tokens.
    """

    family: str
    file: str = ""
    name: str = ""
    axes: bool = False
    attention: bool = False

    @property
    def module(self) -> str:
        """Where vLLM has the class."""
        return f"vllm.model_executor.models.{self.file or self.family}"


#: By the name that a checkpoint's configuration gives.
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlavaForConditionalGeneration": Architecture("llava", attention=True),
    "LlavaNextForConditionalGeneration": Architecture("llava_next"),
    "LlavaOnevisionForConditionalGeneration": Architecture("llava_onevision"),
    "InternVLForConditionalGeneration": Architecture("internvl", "interns1", "InternS1ForConditionalGeneration"),
    "InternVLChatModel": Architecture("internvl"),
    "Idefics3ForConditionalGeneration": Architecture("idefics3"),
    "SmolVLMForConditionalGeneration": Architecture("smolvlm"),
    "Qwen2VLForConditionalGeneration": Architecture("qwen2_vl", axes=True),
    "Qwen2_5_VLForConditionalGeneration": Architecture("qwen2_5_vl", axes=True),
    "Qwen3VLForConditionalGeneration": Architecture("qwen3_vl", axes=True),
}


def of_family(family: str) -> Architecture | None:
    """One of a family's classes, which differ in their names alone; None where the family is not covered."""
    return next((one for one in ARCHITECTURES.values() if one.family == family), None)


def families() -> list[str]:
    """Families that are covered."""
    return list(dict.fromkeys(one.family for one in ARCHITECTURES.values()))
