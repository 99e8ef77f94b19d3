"""A model's facts, as far as they cost something: frozen, hashable, and independent of any configuration's spelling.

Work is stated in multiply-adds (``_macs``) per token, so that a convention can call each one or two FLOPs. Biases,
norms, activations, rotary embeddings and softmax are elementwise and not part of any count here, as they are not in
torch's or fvcore's counters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

AttentionKind = Literal["full", "sliding", "chunked", "cross", "linear"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one decoder layer.

    Attributes:
        kind: ``full``; ``sliding`` or ``chunked`` over `window` tokens; ``cross`` (text reads visual tokens that are
            never in the sequence); ``linear`` (a recurrent state of fixed size in place of a cache).
        heads, kv_heads: query heads and the key/value heads they share.
        head_dim, value_dim: size of a head's queries and keys, and of its values.
        query_macs, key_macs, value_macs, output_macs: projections, multiply-adds per token.
        window: tokens a sliding or chunked layer can see, itself included; 0 means no limit.
        cached_elements: elements the KV cache holds per token.
        expand_macs, expanded_elements: of multi-head latent attention, making keys and values of one cached latent, at
            every step, and the elements a cache of those would hold; 0 elsewhere.
        shares_kv: keys and values are an earlier layer's: nothing is projected or cached. Like `expanded_elements` it
            tells models apart: the digest that binds a plan to its model covers it.
        separable: queries, keys and values come from projections of their own, so that any of them can be left out.
        state_macs: of a linear layer, its short convolution, per token.
        state_lead: tokens more that the convolution runs over in a prefill; a decode step runs it over two.
        chunk, chunk_macs: of a linear layer with a recurrent state, tokens that a prefill takes at a time, the last
            ones filled up, and the work on each such chunk.
        state_elements, float_state_elements: that a linear layer keeps, in the cache's format and always in float32.
    """

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query_macs: int
    key_macs: int
    value_macs: int
    output_macs: int
    window: int = 0
    cached_elements: int = 0
    expand_macs: int = 0
    expanded_elements: int = 0
    shares_kv: bool = False
    separable: bool = True
    state_macs: int = 0
    state_lead: int = 0
    chunk: int = 0
    chunk_macs: int = 0
    state_elements: int = 0
    float_state_elements: int = 0

    @property
    def projection_macs(self) -> int:
        """All projections of one token, its own latent's expansion included."""
        return self.query_macs + self.key_macs + self.value_macs + self.expand_macs + self.output_macs

    @property
    def pair_macs(self) -> int:
        """One query-key pair over all heads: the score, and the weighted value."""
        return self.heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Feed-forward block of one layer: dense, or a mixture of experts.

    Attributes:
        dense_macs: multiply-adds per token outside routed experts: the whole dense block, or router and shared experts.
        expert_macs: one routed expert, per token.
        experts: routed experts stored.
        experts_run: routed experts executed per token. Llama 4's implementation runs all of them.
        routed: experts that the router picks per token where transformers runs more, 0 elsewhere. Serving engines run
            these alone; the computation that `ModelSpec.digest` stands for does not depend on it.
    """

    dense_macs: int
    expert_macs: int = 0
    experts: int = 0
    experts_run: int = 0
    routed: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds executed per token."""
        return self.dense_macs + self.experts_run * self.expert_macs


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer."""

    attention: Attention
    ffn: FeedForward


@dataclass(frozen=True)
class Decoder:
    """The text decoder.

    Attributes:
        family: model type of the text configuration.
        intermediate_size: width of the dense feed-forward block, which paper conventions call m.
        head_macs: language-model head, per position.
        deepstack: how many first layers add visual features to their output (elementwise, but it binds the runtime).
        modelled: some layers' cost is a model of an algorithm, not of what a kernel executes.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    deepstack: int = 0
    modelled: bool = False

    @property
    def head_macs(self) -> int:
        return self.hidden_size * self.vocab_size

    @cached_property
    def cross(self) -> bool:
        """True when the image is read by cross-attention and visual tokens are not in the sequence."""
        return any(layer.attention.kind == "cross" for layer in self.layers)

    @cached_property
    def kinds(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        """Each distinct layer with ``prefix``: how many such layers there are before layer i, for i in 0..layers."""
        prefixes: dict[LayerSpec, list[int]] = {layer: [0] for layer in self.layers}
        for layer in self.layers:
            for kind, prefix in prefixes.items():
                prefix.append(prefix[-1] + (kind is layer or kind == layer))
        return tuple((kind, tuple(prefix)) for kind, prefix in prefixes.items())


@dataclass(frozen=True, slots=True)
class Block:
    """`repeat` equal encoder layers: `macs` per token, `pair_macs` per attended pair of a `span`.

    A span is a ``tile``, a ``window`` of one (``filled``: up to its size at the edges too), an ``image`` or the
    ``batch``, all images in one masked sequence. Behind a merging layer a token stands for several `patches`.
    """

    repeat: int
    macs: int
    pair_macs: int
    span: Literal["tile", "window", "filled", "image", "batch"] = "tile"
    patches: int = 1


@dataclass(frozen=True, slots=True)
class Tower:
    """The vision encoder.

    Attributes:
        family: model type of the vision configuration.
        hidden_size: width.
        patch_macs: patch embedding, per patch.
        blocks: encoder layers in order. Layers behind the selected feature layer are included: they run.
        extra_tokens: class token, per tile.
        pad_to: tokens of a tile are padded to a multiple of this.
        window: side of an attention window in patches, for blocks that span one.
        token_macs, tile_macs: pooling head, per token and per tile.
        mask_macs: per pair of an image's tokens, once: a mask that is built as a matrix product.
        pooled: patches that become one by averaging as a matrix product over a whole tile; 0 where it is none.
        score_rows: query rows per tile that say which patches matter (1: the class token's; 0: every row, averaged),
            for policies that prune before the decoder, and `score_macs` per query-key pair.
    """

    family: str
    hidden_size: int
    patch_macs: int
    blocks: tuple[Block, ...]
    extra_tokens: int = 0
    pad_to: int = 1
    window: int = 0
    token_macs: int = 0
    tile_macs: int = 0
    mask_macs: int = 0
    pooled: int = 0
    score_rows: int = 0
    score_macs: int = 0


@dataclass(frozen=True, slots=True)
class Projector:
    """From the tower's output to the decoder's input.

    Attributes:
        merge: patches that become one token.
        macs: per token that comes out.
        patch_macs: per patch that goes in.
        class_token: the class token of each tile is projected too.
        latents: tokens of each tile that come out whatever goes in, of resamplers; 0: one for every `merge` patches.
    """

    merge: int
    macs: int
    patch_macs: int = 0
    class_token: bool = False
    latents: int = 0


@dataclass(frozen=True, slots=True)
class Marks:
    """Text tokens that a processor puts around and among the visual tokens of one image.

    Attributes:
        before, after: ahead of the first visual token and behind the last one.
        row: behind every row of visual tokens.
        tile, tile_row: for each tile and each row of tiles of an image that is cut into several; a thumbnail is not
            among them.
    """

    before: int = 0
    after: int = 0
    row: int = 0
    tile: int = 0
    tile_row: int = 0


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How pixels become patches and visual tokens (`planner.spec.images`).

    Attributes:
        kind: ``fixed``: every image is resized to one size; ``anyres``: a base view and tiles of the best-fitting
            resolution, unpadded; ``resize``: near its own size, in multiples of `side`, within pixel limits;
            ``shrink``: its own size unless an edge is too long; ``aspect``, ``fit``: a grid of tiles nearest in
                aspect ratio, or in size, and a
            thumbnail; ``split``: scaled to a longest edge, cut into tiles, and a thumbnail; ``grid``: always all tiles.
        side: of a tile in pixels, or the multiple that sides are rounded to.
        patch: side of a patch in pixels.
        merge: side of a merged token in patches.
        tile_tokens: visual tokens of one tile; 0 where there are no tiles.
        resolutions: ``(height, width)`` candidates of ``anyres``.
        limit: tiles' worth of tokens that ``anyres`` keeps at most; 0 is no limit.
        min_pixels, max_pixels, frames: limits of ``resize``, and frames a still image counts as in them.
        max_tiles: of ``aspect``, ``fit``, ``grid`` and the others that cut.
        longest_edge, shortest_edge: of ``shrink``, ``split`` and ``edges``, in pixels.
        max_patches: of one tile; ``budget`` and ``large`` fill their tiles up to it.
        marks: text tokens that come with an image.
    """

    kind: Literal[
        "fixed", "anyres", "resize", "shrink", "aspect", "fit", "split", "grid",
        "navit", "budget", "edges", "large", "slices", "cover",
    ]  # fmt: skip
    side: int
    patch: int
    merge: int = 1
    tile_tokens: int = 0
    resolutions: tuple[tuple[int, int], ...] = ()
    limit: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    frames: int = 1
    max_tiles: int = 0
    longest_edge: int = 0
    shortest_edge: int = 0
    max_patches: int = 0
    marks: Marks = Marks()


@dataclass(frozen=True, slots=True)
class VideoRule:
    """How a video becomes frames and visual tokens (`planner.spec.video`).

    Attributes:
        kind: ``frame``: near its own size, within pixel limits for each frame; ``volume``: within limits for all frames
            together; ``tile``: every frame is resized to one tile of the model's images.
        temporal: frames that become one grid of patches.
        frame_tokens: visual tokens of a frame of kind ``tile``.
        end_tokens: visual tokens behind the last frame.
        min_pixels, max_pixels: of ``frame`` and ``volume``.
        fps: frames a second that the processor takes; 0: all of them.
        min_frames, max_frames: at least and at most so many; 0 is no limit.
        frame_marks: text tokens around each grid of patches that are there whatever its time.
    """

    kind: Literal["frame", "volume", "tile"]
    temporal: int = 1
    frame_tokens: int = 0
    end_tokens: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    fps: float = 0
    min_frames: int = 0
    max_frames: int = 0
    frame_marks: int = 0


@dataclass(frozen=True, slots=True)
class Storage:
    """How a checkpoint stores its weights.

    Attributes:
        tied: the language-model head is the input embedding.
        layer_bits: bits per weight of the decoder layers' matrices, scales included; 0: as all others; None: the
            configuration does not say. Tower, projector, embedding and head are not quantised.
        quantization: its method's name.
    """

    tied: bool = False
    layer_bits: float | None = 0.0
    quantization: str = ""


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """Everything about a model that a cost or a schedule depends on. Two are the same computation if their `digest` is.

    Attributes:
        family: model type of the whole model (``llava``, ``qwen2_vl``, ...).
        decoder, vision, projector: the parts; the latter two are None for a text-only model.
        image_token_id: id of the placeholder token in a prompt, None for a text-only model.
        images: how pixels become tokens, None for a text-only model.
        video: how a video does, None where a model takes none.
        name: as the user called it.
        storage: how the weights are stored, which the computation does not depend on.
    """

    family: str
    decoder: Decoder
    vision: Tower | None = None
    projector: Projector | None = None
    image_token_id: int | None = None
    images: ImageRule | None = None
    video: VideoRule | None = None
    name: str = ""
    storage: Storage = Storage()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | str | os.PathLike[str], processor: Mapping[str, Any] | None = None
    ) -> ModelSpec:
        """Read the facts from a Hugging Face configuration.

        Args:
            config: the configuration as a dict (``config.to_dict()``), a ``config.json``, a model directory, or the
                name of a shipped or bundled model (``reference/plain``).
            processor: what ``preprocessor_config.json`` says of sizes, which decides how many tokens an image becomes;
                where it is not given, it is read from the files beside ``config.json``.

        Raises:
            InputError: there is no such file or shipped model, it is not JSON, or a field is missing or absurd.
            UnsupportedModelError: the family or a layer type is unknown.
        """
        from planner.spec.read import read

        return read(config, processor)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.decoder.hidden_size

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the facts the computation depends on: the same for every spelling of a configuration."""
        facts = {
            "family": self.family,
            "decoder": dataclasses.asdict(self.decoder, dict_factory=_told),
            "vision": dataclasses.asdict(self.vision, dict_factory=_told) if self.vision else None,
            "projector": dataclasses.asdict(self.projector, dict_factory=_told) if self.projector else None,
            "image_token_id": self.image_token_id,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


#: Facts that came after the first plans, and what they are where there is nothing to tell: then a digest leaves them
#: out, so that those plans still fit their models.
_LATER = {
    "modelled": False,
    "state_lead": 0,
    "chunk": 0,
    "chunk_macs": 0,
    "float_state_elements": 0,
    "patches": 1,
    "pooled": 0,
    "latents": 0,
}


_NOTHING = object()


def _told(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    # Nothing that transformers computes depends on how many experts other engines run.
    return {name: value for name, value in fields if name != "routed" and value != _LATER.get(name, _NOTHING)}
