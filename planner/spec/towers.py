"""The vision towers' facts, one reader per architecture; a family's file names its reader (`planner.spec.config`).

Readers take the vision configuration and its model type, and give a `Tower`. Feature layers behind the selected one
still run in transformers, so they count.
"""

from __future__ import annotations

from planner.spec.config import Config
from planner.spec.facts import Block, Tower


def _patch_macs(config: Config, width: int) -> int:
    """A convolution whose stride is its kernel: every input element meets every output channel once."""
    patch = config.side("patch_size", "spatial_patch_size")
    frames = config.size("temporal_patch_size", default=1)
    return width * config.size("num_channels", "in_channels", "in_chans", default=3) * frames * patch * patch


def clip(config: Config, model_type: str) -> Tower:
    """CLIP, SigLIP and their kin: square tiles, four square projections, a plain two-layer block."""
    width = config.size("hidden_size")
    block = _plain(config, width, config.layers("num_hidden_layers"))
    class_token = int(bool(config.traits.get("class_token")))
    # SigLIP's pooling head: one learned query attends to all patches, then a block of its own. Its result is not
    # used by a decoder, yet computed.
    pooled = bool(config.traits.get("pooling_head")) and bool(config.get("vision_use_head", default=True))
    feed_forward = 2 * width * config.size("intermediate_size")
    return Tower(
        family=model_type,
        hidden_size=width,
        patch_macs=_patch_macs(config, width),
        blocks=(block,),
        extra_tokens=class_token,
        token_macs=2 * width * width + 2 * width if pooled else 0,
        tile_macs=2 * width * width + feed_forward if pooled else 0,
        score_rows=class_token,
        score_macs=width,
    )


def _plain(config: Config, width: int, repeat: int, span: str = "tile") -> Block:
    macs = 4 * width * width + 2 * width * config.size("intermediate_size")
    return Block(repeat, macs, 2 * width, span)  # type: ignore[arg-type]


def pixtral(config: Config, model_type: str) -> Tower:
    """Pixtral: gated blocks; all images stand in one masked sequence."""
    width = config.size("hidden_size")
    macs = 4 * width * width + 3 * width * config.size("intermediate_size")
    block = Block(config.layers("num_hidden_layers"), macs, 2 * width, "batch")
    return Tower(model_type, width, _patch_macs(config, width), (block,), score_macs=width)


def qwen2(config: Config, model_type: str) -> Tower:
    width = config.size("embed_dim")
    ratio = config.get("mlp_ratio", default=4)
    macs = 4 * width * width + 2 * width * int(width * ratio)
    block = Block(config.layers("depth", "num_hidden_layers"), macs, 2 * width, "image")
    return Tower(model_type, width, _patch_macs(config, width), (block,), score_macs=width)


def qwen2_5(config: Config, model_type: str) -> Tower:
    """Windows in all blocks but a few; gated blocks."""
    width, depth = config.size("hidden_size"), config.layers("depth", "num_hidden_layers")
    macs = 4 * width * width + 3 * width * config.size("intermediate_size")
    whole = len(set(config.numbers("fullatt_block_indexes")) & set(range(depth)))
    blocks = (Block(depth - whole, macs, 2 * width, "window"), Block(whole, macs, 2 * width, "image"))
    window = config.size("window_size") // config.side("patch_size")
    return Tower(model_type, width, _patch_macs(config, width), blocks, window=window, score_macs=width)


def qwen3(config: Config, model_type: str) -> Tower:
    width = config.size("hidden_size")
    block = _plain(config, width, config.layers("depth", "num_hidden_layers"), "image")
    return Tower(model_type, width, _patch_macs(config, width), (block,), score_macs=width)


def glm4v_vision(config: Config, model_type: str) -> Tower:
    """Gated blocks as wide as the output, not as `intermediate_size`, which is the merger's."""
    width = config.size("hidden_size")
    macs = 4 * width * width + 3 * width * config.size("out_hidden_size")
    block = Block(config.layers("depth", "num_hidden_layers"), macs, 2 * width, "image")
    return Tower(model_type, width, _patch_macs(config, width), (block,), score_macs=width)


def mllama_vision(config: Config, model_type: str) -> Tower:
    """All tiles of an image attend to each other; tiles are padded to eight tokens; a second, gated encoder follows
    the first."""
    width = config.size("hidden_size")
    depth = config.layers("num_hidden_layers") + config.layers("num_global_layers")
    block = _plain(config, width, depth, "image")
    return Tower(
        family=model_type,
        hidden_size=width,
        patch_macs=_patch_macs(config, width),
        blocks=(block,),
        extra_tokens=1,
        pad_to=8,
        mask_macs=1,
        score_rows=1,
        score_macs=width,
    )
