"""From samples to model inputs: chat template, processor, padding on the left, and the text of answers back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Transpose

from calibrate.inputs.samples import Sample
from planner.errors import SampleError, UnsupportedModelError

Inputs = dict[str, torch.Tensor]


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
        """The prompt as text: the chat template with the images first; without one, image tokens, newline, text."""
        if not self._template:
            return str(self._image_token) * len(sample.images) + "\n" + sample.prompt
        content: list[dict[str, str]] = [{"type": "image"} for _ in sample.images]
        conversation = [{"role": "user", "content": [*content, {"type": "text", "text": sample.prompt}]}]
        return str(self.processor.apply_chat_template(conversation, add_generation_prompt=True))

    def __call__(self, samples: Sequence[Sample], flip: bool = False) -> Inputs:
        """Inputs of a batch, padded on the left; with `flip` every image is turned upside down first.

        Raises:
            SampleError: an image cannot be read or processed.
        """
        images = [sample.pictures() for sample in samples]
        if flip:
            images = [[picture.transpose(Transpose.FLIP_TOP_BOTTOM) for picture in group] for group in images]
        text = [self.prompt(sample) for sample in samples]
        # A template that writes the text's first special token makes the tokenizer's own a second one.
        start = self.tokenizer.bos_token
        doubled = bool(self._template and start and all(one.startswith(start) for one in text))
        settings: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if doubled:
            settings["add_special_tokens"] = False
        try:
            encoded = self.processor(images=images, text=text, **settings)
        except ValueError as error:
            where = ", ".join(sample.where for sample in samples)
            cause = f"the processor refuses a sample of {where}: {error}"
            raise SampleError(cause, "Check images and prompts") from error
        inputs = {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}
        without = ~torch.isin(inputs["input_ids"], self.visual_ids).any(dim=1)
        if without.any():
            where = samples[int(without.nonzero()[0])].where
            raise SampleError(f"{where}: the encoded prompt has no visual token", "Check the chat template")
        return inputs

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Generated tokens ``[B, n]`` to texts, special tokens left out."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def settings(self) -> dict[str, Any]:
        """What was done to images and text, for the profile: class, image processor arguments, template digest."""
        template = self._template if isinstance(self._template, str) else json.dumps(self._template, sort_keys=True)
        image_processor = getattr(self.processor, "image_processor", None)
        arguments = json.loads(image_processor.to_json_string()) if image_processor is not None else {}
        return {
            "class": type(self.processor).__name__,
            "image_processor": arguments,
            "padding_side": "left",
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if self._template else None,
        }


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
