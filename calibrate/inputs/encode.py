"""From samples to model inputs: chat template, processor, padding on the left, and the text of answers back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image

from calibrate.inputs.samples import Sample
from planner.document import digest
from planner.errors import SampleError, UnsupportedModelError

Inputs = dict[str, torch.Tensor]
#: Settings of image processors that say what becomes of pixels. Others may hold anything: their digest is kept.
PIXEL_SETTINGS = frozenset(
    {
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "max_image_size", "longest_edge"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"),
        *("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size", "spatial_merge_size"),
        *("do_image_splitting", "image_grid_pinpoints", "crop_to_patches", "min_patches", "max_patches"),
        *("do_pan_and_scan", "max_image_tiles", "image_seq_length"),
    }
)
#: Settings that tell where a processor comes from, and which of equal ones it is.
ORIGIN_SETTINGS = frozenset(
    {"image_processor_type", "processor_class", "auto_map", "_name_or_path", "_processor_class"}
)


class Encoder:
    """Turns batches of samples into inputs on the CPU, the same way for calibration, evaluation and timing.

    Args:
        processor: a transformers processor (or `PlainProcessor`) with a tokenizer.
        visual_ids: placeholder tokens of the model; every encoded sample must contain one.

    Raises:
        UnsupportedModelError: the processor has neither a chat template nor an image token to build a prompt with.
    """

    def __init__(self, processor: Any, visual_ids: tuple[int, ...]) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.visual_ids = torch.tensor(visual_ids)
        self._template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        self._image_token = getattr(processor, "image_token", None)
        if not self._template and not self._image_token:
            raise UnsupportedModelError(
                "the processor has neither a chat template nor an image token", "Add the chat template to the processor"
            )

    def prompt(self, sample: Sample) -> str:
        """The prompt as text: the conversation by the chat template, images first where the sample does not place them;
        without a template, image tokens, newline, text.

        Raises:
            SampleError: the template refuses the conversation, or there is none to write one with.
        """
        if not self._template:
            if sample.turns or sample.videos:
                raise SampleError(
                    f"{sample.where}: the processor has no chat template to write a conversation with",
                    "Give image and prompt, or add the chat template to the processor",
                )
            return str(self._image_token) * len(sample.images) + "\n" + sample.prompt
        return self._written(sample.conversation(), sample.where)

    def _written(self, conversation: list[dict[str, Any]], where: str) -> str:
        try:
            return str(self.processor.apply_chat_template(conversation, add_generation_prompt=True))
        except TemplateError as error:
            cause = f"{where}: the chat template refuses the conversation ({error})"
            raise SampleError(cause, "Leave out what it does not know, such as a system prompt") from error

    def request(self, conversation: list[dict[str, Any]], pictures: Sequence[Image.Image]) -> Inputs:
        """Inputs of one conversation that came to a server, with images or without.

        Args:
            conversation: as chat templates read it.
            pictures: as they were opened, in order.

        Raises:
            SampleError: the template or the processor refuses it.
        """
        where = "the request"
        text = self._written(conversation, where)
        if pictures:
            sample = Sample(tuple(pictures), "", where=where)
            return self._encoded([text], {"images": [sample.pictures()]}, where)
        # Not every processor takes text alone.
        settings = self._settings([text])
        encoded = self.tokenizer([text], **settings)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    @property
    def placeholders(self) -> frozenset[str]:
        """Texts that the processor takes for an image or a part of one."""
        named = {getattr(self.processor, name, None) for name in ("image_token", "video_token", "boi_token")}
        tokens = self.tokenizer.convert_ids_to_tokens(self.visual_ids.tolist())
        return frozenset(str(text) for text in (*named, *tokens) if text)

    def __call__(self, samples: Sequence[Sample], flip: bool = False) -> Inputs:
        """Inputs of a batch, padded on the left; with `flip` every image and video is turned upside down first.

        Raises:
            SampleError: an image or video cannot be read or processed.
        """
        images = [sample.pictures() for sample in samples]
        if flip:
            images = [[picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for picture in group] for group in images]
        shown: dict[str, Any] = {"images": images} if any(images) else {}
        if any(sample.videos for sample in samples):
            shown |= self._videos(samples, flip)
        text = [self.prompt(sample) for sample in samples]
        inputs = self._encoded(text, shown, ", ".join(sample.where for sample in samples))
        without = ~torch.isin(inputs["input_ids"], self.visual_ids).any(dim=1)
        if without.any():
            where = samples[int(without.nonzero()[0])].where
            raise SampleError(f"{where}: the encoded prompt has no visual token", "Check the chat template")
        return inputs

    def _encoded(self, text: list[str], shown: dict[str, Any], where: str) -> Inputs:
        try:
            encoded = self.processor(text=text, **shown, **self._settings(text))
        except ValueError as error:
            cause = f"the processor refuses a sample of {where}: {error}"
            raise SampleError(cause, "Check images and prompts") from error
        # Some processors (PaliGemma's) add labels: with them a forward computes a loss, and generating refuses them.
        return {n: value for n, value in encoded.items() if isinstance(value, torch.Tensor) and n != "labels"}

    def _settings(self, text: list[str]) -> dict[str, Any]:
        settings: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        # A template that writes the text's first special token makes the tokenizer's own a second one.
        start = self.tokenizer.bos_token
        if self._template and start and all(one.startswith(start) for one in text):
            settings["add_special_tokens"] = False
        return settings

    def _videos(self, samples: Sequence[Sample], flip: bool) -> dict[str, Any]:
        if getattr(self.processor, "video_processor", None) is None:
            where = next(sample.where for sample in samples if sample.videos)
            raise SampleError(
                f"{where}: the processor reads no videos",
                "Give pictures, or a family that reads videos (its processor needs torchvision)",
            )
        clips = [clip.flipped() if flip else clip for sample in samples for clip in sample.clips()]
        return {"videos": [clip.frames for clip in clips], "video_metadata": [clip.metadata() for clip in clips]}

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Generated tokens ``[B, n]`` to texts, special tokens left out."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def settings(self) -> dict[str, Any]:
        """What was done to images and text, for profile and plan: class, the image processor's settings that change
        pixels, and digests of all its settings, the tokenizer and the chat template."""
        template = self._template if isinstance(self._template, str) else json.dumps(self._template, sort_keys=True)
        image_processor = getattr(self.processor, "image_processor", None)
        arguments = json.loads(image_processor.to_json_string()) if image_processor is not None else {}
        return {
            "class": type(self.processor).__name__,
            "image_processor": {name: value for name, value in arguments.items() if name in PIXEL_SETTINGS},
            "image_processor_sha256": digest({n: value for n, value in arguments.items() if n not in ORIGIN_SETTINGS}),
            "padding_side": "left",
            "tokenizer_sha256": tokenizer_digest(self.tokenizer),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if self._template else None,
        }


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over what turns text into tokens: vocabulary, merges, normalisation, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        facts = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # what the last call asked for
            facts.pop(state, None)
    else:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        facts = {"class": type(tokenizer).__name__, "vocabulary": vocabulary}
    special = {name: str(token) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()}
    text = json.dumps([facts, special], sort_keys=True)  # escaped: vocabularies hold halves of characters
    return hashlib.sha256(text.encode()).hexdigest()


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs: its first device, or where accelerate runs it while its weights are offloaded."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


def to_device(inputs: Inputs, model: Any) -> Inputs:
    """Inputs where the model takes them, floating-point ones in its dtype."""
    device, dtype = input_device(model), model.dtype
    return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
