"""The image stream: the output of the shallow layers for an image, independent of the question.

While visual rows see only themselves, what they become depends on the image alone: not on the question, the position
or the batch. Where they see the text before them, it depends on that too (`planner.runtime.imaging.prefixes`), which is
the same for every question under one system prompt. So it can be computed once and cached, or computed ahead and stored
with the image:

    stream = plan.encode_image(model, **inputs)      # any prompt that holds the image, behind the same system prompt
    stream.save("cat.safetensors")

    stream = ImageStream.load("cat.safetensors")     # in another process
    with plan.apply(model, image_stream=stream):
        model.generate(**question)                   # no vision encoder, no shallow layers for the image

What is kept is the hidden state entering the first layer after the shallow stage, and entering those shallow layers
whose keys text reads (a merge at layer 0). One image takes ``visual tokens * hidden size * element size`` bytes per
kept state: 4.7 MB for 576 tokens of a 7B LLaVA in half precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from planner.document import write_atomic
from planner.errors import InputError, PlanMismatchError

_FORMAT = "planner image streams 4"
#: Files of the third format hold images that depend on nothing before them.
_READABLE = (_FORMAT, "planner image streams 3")

#: One image: hidden states ``[tokens, d]`` by the layer they enter.
States = dict[int, Tensor]


class Key(NamedTuple):
    """What the stream of an image depends on.

    Attributes:
        model: digest of configuration and weights (`planner.runtime.model.fingerprint`).
        layers: the shallow layers of the plan, and which of their states are kept.
        image: digest of the pixels and of what the processor says of them.
        prefix: digest of what stands before the image, empty where its rows do not see it.
    """

    model: str
    layers: str
    image: str
    prefix: str = ""


class ImageStream:
    """The streams of some images, in the order in which they were encoded. It never changes.

    Args:
        images: states by key; they are not copied.
    """

    def __init__(self, images: Mapping[Key, States]) -> None:
        self.images = dict(images)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(map(size_bytes, self.images.values()))

    def check(self, model: str, layers: str) -> None:
        """Refuse a model or a plan for which nothing is here.

        Raises:
            InputError: nothing is here at all.
            PlanMismatchError: naming which of the two differs.
        """
        if not self.images:
            raise InputError("the image stream holds no image", "Encode one with plan.encode_image")
        if not any(key.model == model for key in self.images):
            raise PlanMismatchError(
                "the image stream was made by another model (its configuration, weights or precision differ)",
                "Encode the image with this model: plan.encode_image(model, **inputs)",
            )
        if not any((key.model, key.layers) == (model, layers) for key in self.images):
            made = sorted({key.layers for key in self.images if key.model == model})
            raise PlanMismatchError(
                f"the image stream was made under a plan with shallow layers {', '.join(made)}, this one has {layers}",
                "Encode the image under this plan: plan.encode_image(model, **inputs)",
            )

    def find(self, keys: list[Key]) -> list[States]:
        """The streams of a prompt's images.

        Raises:
            InputError: an image is not here, or behind another text.
        """
        for number, key in enumerate(keys, start=1):
            if key in self.images:
                continue
            which = f"image {number} of {len(keys)} in the prompt"
            if any(held[:3] == key[:3] for held in self.images):
                raise InputError(
                    f"{which} is in the image stream behind another text, which its visual tokens see under this plan",
                    "Encode it behind the same system prompt and images, or use image_cache=ImageCache()",
                )
            raise InputError(
                f"{which} is not in the image stream, which holds {len(self)}",
                "Encode it with plan.encode_image, or use image_cache=ImageCache() to compute what is missing",
            )
        return [self.images[key] for key in keys]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        from safetensors.torch import save

        tensors = {
            f"{number}/{layer}": state.contiguous()
            for number, states in enumerate(self.images.values())
            for layer, state in states.items()
        }
        names = json.dumps(["/".join(key) for key in self.images])
        about = {"format": _FORMAT, "images": names, "sha256": _digest(names, tensors)}
        write_atomic(path, save(tensors, metadata=about))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> ImageStream:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, is not one that `save` wrote, or was damaged since.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                about = file.metadata() or {}
                if about.get("format") not in _READABLE:
                    raise InputError(f"{path} holds no image streams", "Give a file written by ImageStream.save")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if about.get("sha256") != _digest(about["images"], tensors):
                raise InputError(f"{path} is damaged: its content does not fit its digest", "Encode the image again")
            found: list[tuple[Key, States]] = [(Key(*name.split("/")), {}) for name in json.loads(about["images"])]
            for name, tensor in tensors.items():
                number, layer = name.split("/")
                found[int(number)][1][int(layer)] = tensor
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"cannot read image streams from {path}: {error}", "Check the path") from error
        return cls(dict(found))


def _digest(names: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(names.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def size_bytes(states: Mapping[int, Tensor]) -> int:
    """Bytes of one image's states."""
    return sum(state.numel() * state.element_size() for state in states.values())


def join_states(parts: Iterable[States]) -> States:
    """States of several images as one: ``[tokens of all, d]`` by layer."""
    images = list(parts)
    return {layer: torch.cat([states[layer].to(images[0][layer]) for states in images]) for layer in images[0]}
