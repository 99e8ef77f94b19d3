"""From pixels to the decoder's input: the vision tower and the projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Block:
    """`repeat` equal encoder layers: `macs` per token, `pair_macs` per attended pair of a `span`.

    A span is a ``tile``, a ``window`` of one (``filled``: up to its size at the edges too), an ``image`` or the
    ``batch``, all images in one masked sequence. Behind a merging layer a token stands for several `patches`; `extra`
    tokens of each span are the block's own.

    `side_macs`: per token and each row and column of its tile, relative positions as products with every query.

    Where tokens can be merged between its attention and its feed-forward, `fed_macs` of `macs` are the latter's, and
    `match_macs` what comparing two tokens' keys takes, a head's size; else 0.
    """

    repeat: int
    macs: int
    pair_macs: int
    span: Literal["tile", "window", "filled", "image", "batch"] = "tile"
    patches: int = 1
    extra: int = 0
    side_macs: int = 0
    fed_macs: int = 0
    match_macs: int = 0


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
        beside, beside_side: another tower that sees each tile's picture too, at a size of its own, and how many patches
            a side of it has.
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
    beside: Tower | None = None
    beside_side: int = 0

    @property
    def layers(self) -> tuple[Block, ...]:
        """Encoder layers of both towers, where there are two."""
        return self.blocks if self.beside is None else (*self.blocks, *self.beside.layers)


@dataclass(frozen=True, slots=True)
class Projector:
    """From the tower's output to the decoder's input.

    Attributes:
        merge: patches that become one token.
        macs: per token that comes out.
        patch_macs: per patch that goes in.
        row_macs: per row of tokens that comes out, for the one that ends it.
        class_token: the class token of each tile is projected too.
        latents: tokens of each tile that come out whatever goes in, of resamplers; 0: one for every `merge` patches.
        text_macs, text_pair_macs: of a projector that reads the prompt's text beside each tile's latents: per text
            token, and per pair of one with a latent or with another.
        unread_blocks: of the tower, behind the one whose output is read; they run all the same. None: several are read.
    """

    merge: int
    macs: int
    patch_macs: int = 0
    row_macs: int = 0
    class_token: bool = False
    latents: int = 0
    text_macs: int = 0
    text_pair_macs: int = 0
    unread_blocks: int | None = 0
