"""What each family's checkpoint holds besides the weights: processor, special tokens and chat template, in small.

Configurations come from `tests.tiny`. Sizes of pictures are the towers' own; the families that resize freely (Qwen-VL
and GLM-4V) have the real patch sizes and the real limits, so that their tokens per picture are the released models'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.tiny.configs import PATCH, SIDE

#: Side of a tile for the families that cut pictures into tiles.
TILE = 32
_QWEN2 = (56 * 56, 28 * 28 * 1280)
_QWEN = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


@dataclass(frozen=True)
class Template:
    """A chat template of one shape: what stands before the user's turn and behind it, and for a picture or video."""

    before: str
    after: str
    image: str
    video: str = ""

    def jinja(self) -> str:
        """As transformers wants it."""
        parts = {"image": self.image, "video": self.video, "text": "{{ part['text'] }}"}
        shown = "".join(f"{{% if part['type'] == '{kind}' %}}{text}{{% endif %}}" for kind, text in parts.items())
        turn = f"{self.before}{{% for part in message['content'] %}}{shown}{{% endfor %}}{self.after}"
        return f"{{% for message in messages %}}{turn}{{% endfor %}}"


@dataclass(frozen=True)
class Family:
    """The processor of a family, and what in the configuration follows from it.

    Attributes:
        processor, image_processor, video_processor: class names of transformers and their arguments.
        tokens: special tokens by what the configuration calls their ids (``image_token_id``).
        named: special tokens by the attribute that the processor asks the tokenizer for.
        more: further special tokens.
        template: None where the released models have none (PaliGemma).
        vision: changes to the vision configuration of `tests.tiny`.
        adds_bos: whether the released tokenizers put a first token in front of every text.
    """

    processor: tuple[str, dict[str, Any]]
    image_processor: tuple[str, dict[str, Any]]
    tokens: dict[str, str]
    template: Template | None
    video_processor: tuple[str, dict[str, Any]] | None = None
    named: dict[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    vision: dict[str, Any] = field(default_factory=dict)
    adds_bos: bool = True


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _qwen(processor: str, video: str, patch: int, pixels: tuple[int, int], **vision: Any) -> Family:
    return Family(
        adds_bos=False,
        processor=(processor, {}),
        image_processor=(
            "Qwen2VLImageProcessor",
            {"patch_size": patch, "size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}},
        ),
        # The least that a video is resized to would be 128 tokens a frame.
        video_processor=(video, {"patch_size": patch, "size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}),
        tokens={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        more=("<|im_start|>", "<|im_end|>"),
        template=Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", *_QWEN),
        vision={"patch_size": patch, **vision},
    )


def _clip(side: int) -> tuple[str, dict[str, Any]]:
    return ("CLIPImageProcessor", {"size": {"shortest_edge": side}, "crop_size": _square(side)})


_LLAVA = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_USER = Template("USER: ", " ASSISTANT:", "<image>\n", "<video>\n")
_PINPOINTS = [[24, 48], [48, 24], [48, 48]]
_TILED = (
    "GotOcr2ImageProcessor",
    {"size": _square(TILE), "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
)
_SPLIT = {"size": {"longest_edge": 4 * TILE}, "max_image_size": {"longest_edge": TILE}}
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS = Template("<|im_start|>User:", "<end_of_utterance>\nAssistant:", "<image>", "<video>")
_COHERE = Template(
    "<bos><|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<image>",
)
_COHERE_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
_PIXTRAL = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}

FAMILIES: dict[str, Family] = {
    "llava": Family(
        processor=("LlavaProcessor", _LLAVA),
        image_processor=_clip(SIDE),
        tokens={"image_token_id": "<image>"},
        template=_USER,
    ),
    "llava_next": Family(
        processor=("LlavaNextProcessor", {**_LLAVA, "patch_size": 8}),
        image_processor=(
            "LlavaNextImageProcessor",
            {"size": {"shortest_edge": SIDE}, "crop_size": _square(SIDE), "image_grid_pinpoints": _PINPOINTS},
        ),
        tokens={"image_token_id": "<image>"},
        template=Template("[INST] ", " [/INST]", "<image>\n"),
    ),
    "llava_onevision": Family(
        adds_bos=False,
        processor=("LlavaOnevisionProcessor", {"num_image_tokens": 9, "vision_feature_select_strategy": "full"}),
        image_processor=("LlavaOnevisionImageProcessor", {"size": _square(SIDE), "image_grid_pinpoints": _PINPOINTS}),
        video_processor=("LlavaOnevisionVideoProcessor", {"size": _square(SIDE)}),
        tokens={"image_token_id": "<image>", "video_token_id": "<video>"},
        more=("<|im_start|>", "<|im_end|>"),
        template=Template("<|im_start|>user ", "<|im_end|><|im_start|>assistant\n", "<image>\n", "<video>\n"),
    ),
    "vipllava": Family(
        processor=("LlavaProcessor", _LLAVA),
        image_processor=_clip(SIDE),
        tokens={"image_token_id": "<image>"},
        template=_USER,
    ),
    "video_llava": Family(
        processor=("VideoLlavaProcessor", _LLAVA),
        image_processor=("VideoLlavaImageProcessor", _clip(SIDE)[1]),
        video_processor=("VideoLlavaVideoProcessor", _clip(SIDE)[1]),
        tokens={"image_token_id": "<image>", "video_token_id": "<video>"},
        template=_USER,
    ),
    "qwen2_vl": _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor", 14, _QWEN2),
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 14, _QWEN2, window_size=112),
    "qwen3_vl": _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16, (65_536, 16_777_216)),
    "internvl": Family(
        adds_bos=False,
        processor=("InternVLProcessor", {"image_seq_length": 16}),
        image_processor=_TILED,
        video_processor=("InternVLVideoProcessor", {"size": _square(TILE)}),
        tokens={"image_token_id": "<IMG_CONTEXT>"},
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        more=("<|im_start|>", "<|im_end|>"),
        template=Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<IMG_CONTEXT>\n", "<video>\n"),
    ),
    "idefics3": Family(
        adds_bos=False,
        processor=("Idefics3Processor", {"image_seq_len": 16}),
        image_processor=("Idefics3ImageProcessor", _SPLIT),
        tokens={"image_token_id": "<image>"},
        more=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *_ROWS),
        template=_IDEFICS,
    ),
    "smolvlm": Family(
        adds_bos=False,
        processor=("SmolVLMProcessor", {"image_seq_len": 16}),
        image_processor=("SmolVLMImageProcessor", _SPLIT),
        video_processor=("SmolVLMVideoProcessor", _SPLIT),
        tokens={"image_token_id": "<image>"},
        more=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", "<|im_start|>", *_ROWS),
        template=_IDEFICS,
    ),
    "gemma3": Family(
        processor=("Gemma3Processor", {"image_seq_length": 16}),
        image_processor=("Gemma3ImageProcessor", {"size": _square(TILE)}),
        tokens={
            "image_token_id": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        more=("<start_of_turn>", "<end_of_turn>"),
        template=Template("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<start_of_image>"),
    ),
    "paligemma": Family(
        processor=("PaliGemmaProcessor", {}),
        image_processor=("SiglipImageProcessor", {"size": _square(SIDE), "image_seq_length": (SIDE // PATCH) ** 2}),
        tokens={"image_token_id": "<image>"},
        template=None,
    ),
    "mistral3": Family(
        processor=("PixtralProcessor", {"patch_size": 4, "spatial_merge_size": 2, **_PIXTRAL}),
        image_processor=("PixtralImageProcessor", {"size": {"longest_edge": 48}, "patch_size": 4}),
        tokens={"image_token_id": "[IMG]"},
        more=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        template=Template("<bos>[INST]", "[/INST]", "[IMG]"),
    ),
    "aya_vision": Family(
        processor=("AyaVisionProcessor", {"patch_size": 8, "img_size": TILE}),
        image_processor=_TILED,
        tokens={"image_token_id": "<|IMG_PATCH|>"},
        more=(
            *("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"),
            *(f"TILE_{number}" for number in range(1, 13)),
            *_COHERE_TURNS,
        ),
        template=_COHERE,
    ),
    "cohere2_vision": Family(
        processor=("Cohere2VisionProcessor", {}),
        image_processor=(
            "Cohere2VisionImageProcessor",
            {"size": _square(TILE), "patch_size": 4, "downsample_factor": 2, "max_patches": 12},
        ),
        tokens={"image_token_id": "<|IMG_PATCH|>"},
        named={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        more=_COHERE_TURNS,
        template=Template(_COHERE.before, _COHERE.after, "<|IMG_PATCH|>"),
    ),
    "glm4v": Family(
        adds_bos=False,
        processor=("Glm4vProcessor", {}),
        image_processor=("Glm4vImageProcessor", {}),
        video_processor=("Glm4vVideoProcessor", {}),
        tokens={
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        more=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
        template=Template(
            "[gMASK]<sop><|user|>\n",
            "<|assistant|>\n",
            "<|begin_of_image|><|image|><|end_of_image|>",
            "<|begin_of_video|><|video|><|end_of_video|>",
        ),
        vision={"patch_size": 14, "image_size": 336},
    ),
}
