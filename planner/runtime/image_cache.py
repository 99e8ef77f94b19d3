"""The image stream of the shallow layers, kept from one question to the next.

While visual rows see only themselves, what they become depends on the image alone: not on the question, the position
or the batch. So it can be computed once per image, kept, and even computed ahead and shipped. What is kept is the
hidden state entering the first layer after the shallow stage, and entering those shallow layers whose keys text reads
(a merge at layer 0).

    cache = ImageCache(max_bytes=2 << 30)
    with plan.apply(model, image_cache=cache):
        model.generate(**first_question)
        model.generate(**second_question)      # same image: no vision encoder, no shallow layers for its tokens

One image takes ``visual tokens * hidden size * element size`` bytes per kept state: 4.7 MB for 576 tokens of a 7B
LLaVA in half precision.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planner.errors import InputError
from planner.runtime.rows import Rows
from planner.schedule import Schedule

#: One image: hidden states ``[tokens, d]`` by the layer they enter.
States = dict[int, Tensor]


class ImageCache:
    """Image streams by content and model, least recently used first out.

    Args:
        max_bytes: bound on what is held; an image larger than this is not kept at all.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise InputError(f"an image cache of {max_bytes} bytes holds nothing", "Give max_bytes above 0")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._held: OrderedDict[str, States] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return sum(_bytes(states) for states in self._held.values())

    def get(self, keys: list[str]) -> list[States] | None:
        """The streams of some images, or None unless all are here."""
        if not all(key in self._held for key in keys):
            self.misses += 1
            return None
        self.hits += 1
        for key in keys:
            self._held.move_to_end(key)
        return [self._held[key] for key in keys]

    def put(self, key: str, states: States) -> None:
        """Keep one image's stream, and let go of the oldest ones where that is too much."""
        if _bytes(states) > self.max_bytes:
            return
        self._held[key] = {layer: state.detach().clone() for layer, state in states.items()}
        self._held.move_to_end(key)
        while self.bytes > self.max_bytes:
            self._held.popitem(last=False)

    def clear(self) -> None:
        """Let go of everything."""
        self._held.clear()

    def save(self, path: str | Path) -> None:
        """Write all streams to a safetensors file, for `load` in another process."""
        from safetensors.torch import save_file

        tensors = {
            f"{key}/{layer}": state.contiguous()
            for key, states in self._held.items()
            for layer, state in states.items()
        }
        save_file(tensors, str(path), metadata={"format": "planner image streams 1"})

    def load(self, path: str | Path, device: str | torch.device = "cpu") -> int:
        """Add the streams of a file; returns how many images it held.

        Raises:
            InputError: the file is missing or is not one that `save` wrote.
        """
        from safetensors import SafetensorError, safe_open

        found: dict[str, States] = {}
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                if (file.metadata() or {}).get("format") != "planner image streams 1":
                    raise InputError(f"{path} holds no image streams", "Give a file written by ImageCache.save")
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    key, layer = name.rsplit("/", 1)
                    found.setdefault(key, {})[int(layer)] = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"cannot read image streams from {path}: {error}", "Check the path") from error
        for key, states in found.items():
            self.put(key, states)
        return len(found)


@dataclass
class Stream:
    """The image stream of one prefill.

    Attributes:
        depth: first layer that does not belong to it.
        layers: states that are kept: those entering these layers.
        keys, counts: images of the batch in order, and the visual tokens of each.
        given: states from the cache, ``[visual tokens of the batch, d]`` by layer; None: they have to be computed.
        taken: states computed here, in the same form.
    """

    depth: int
    layers: frozenset[int]
    keys: list[str]
    counts: list[int]
    given: States | None = None
    taken: States = field(default_factory=dict)

    def take(self, layer: int, hidden: Tensor, rows: Rows) -> None:
        """Note the rows entering a layer."""
        if layer in self.layers:
            self.taken[layer] = hidden[rows.filled.to(hidden.device)]

    def give(self, layer: int, rows: Rows, like: Tensor) -> Tensor:
        """The rows entering a layer, ``[B, a, d]``."""
        assert self.given is not None
        state = self.given[layer].to(like.device, like.dtype)
        hidden = state.new_zeros(*rows.index.shape, state.shape[-1])
        hidden[rows.filled.to(like.device)] = state
        return hidden

    def store(self, cache: ImageCache) -> None:
        """Keep what was computed, image by image."""
        if set(self.taken) != set(self.layers):
            return
        parts = {layer: torch.split(state, self.counts) for layer, state in self.taken.items()}
        for number, key in enumerate(self.keys):
            cache.put(key, {layer: states[number] for layer, states in parts.items()})


def extent(schedule: Schedule) -> tuple[int, frozenset[int]]:
    """How deep the image stream of a schedule reaches, and which states have to be kept; depth 0: it has none."""
    depth, read = 0, set()
    if schedule.entry is None:
        for stage in schedule.stages:
            if stage.visual_attention != "self" or stage.redistribute is not None:
                break
            if stage.text_to_visual != "none":
                read |= set(range(int(stage.first), int(stage.last)))
            depth = int(stage.last)
            if any(select.of == "visual" for select in stage.selects):
                break
    return depth, frozenset(read | ({depth} if depth and depth < schedule.layers else set()))


def images_of(model: Any, kwargs: dict[str, Any], visual_tokens: int, salt: str) -> tuple[list[str], list[int]]:
    """A key and a number of visual tokens for each image of a forward.

    Images (or tiles) of a fixed number of tokens, and images with a patch grid, are told apart; otherwise the images
    of the whole batch count as one.

    Args:
        salt: what the stream depends on beside the pixels.
    """
    pixels, grids = kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
    others = [kwargs.get(name) for name in ("pixel_values_videos", "image_sizes", "pixel_attention_mask")]
    if isinstance(pixels, Tensor) and all(other is None for other in others):
        merge = getattr(model.config.vision_config, "spatial_merge_size", 1)
        if grids is not None:
            sizes = [int(size) for size in grids.prod(dim=1)]
            counts = [size // merge**2 for size in sizes]
            if sum(sizes) == pixels.shape[0] and sum(counts) == visual_tokens:
                pairs = zip(torch.split(pixels, sizes), grids, strict=True)
                return [_digest(salt, part, grid) for part, grid in pairs], counts
        elif pixels.ndim == 4 and visual_tokens % pixels.shape[0] == 0:
            count = visual_tokens // pixels.shape[0]
            return [_digest(salt, part) for part in pixels], [count] * pixels.shape[0]
    tensors = [value for name, value in sorted(kwargs.items()) if isinstance(value, Tensor) and _of_image(name)]
    return [_digest(salt, *tensors)], [visual_tokens]


def fingerprint(model: Any, layers: frozenset[int], depth: int, modules: list[torch.nn.Module]) -> str:
    """What the stream depends on beside the pixels: configuration, dtype, depth, a sample of the weights it meets."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(f"{depth}:{sorted(layers)}".encode())
    for module in modules:
        for name, parameter in module.named_parameters():
            sample = parameter.detach().flatten()[:64].double().cpu()
            digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _of_image(name: str) -> bool:
    return name.startswith(("pixel", "image_", "video_"))


def _digest(salt: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(salt.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bytes(states: States) -> int:
    return sum(state.numel() * state.element_size() for state in states.values())
