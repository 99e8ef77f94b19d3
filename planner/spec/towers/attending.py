"""Towers of attention and feed-forward."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import UnsupportedModelError
from planner.spec.config import Config, family
from planner.spec.facts import Block, Tower


def _patch_macs(config: Config, width: int) -> int:
    """A convolution whose stride is its kernel: every input element meets every output channel once."""
    patch = config.side("patch_size", "spatial_patch_size")
    frames = config.size("temporal_patch_size", "patch_temporal", default=1)
    return width * config.size("num_channels", "in_channels", "in_chans", default=3) * frames * patch * patch


def clip(config: Config, model_type: str) -> Tower:
    """CLIP, SigLIP and their kin: square tiles, four square projections, a plain two-layer block."""
    width = config.size("hidden_size")
    block = _plain(config, width, config.layers("num_hidden_layers"))
    class_token = int(bool(config.traits.get("class_token")))
    # SigLIP's pooling head: one learned query attends to all patches, then a block of its own. Its result is not
    # used by a decoder, yet computed.
    pooled = bool(config.traits.get("pooling_head")) and bool(config.get("vision_use_head", default=True))
    feed_forward = 2 * width * config.size("intermediate_size") if pooled else 0
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


def radio(config: Config, model_type: str) -> Tower:
    """`clip` with several class tokens and registers ahead of the patches."""
    ahead = config.size("num_cls_tokens") + config.size("num_registers", least=0)
    return replace(clip(config, model_type), extra_tokens=ahead, score_rows=1)


def _plain(config: Config, width: int, repeat: int, span: str = "tile") -> Block:
    """Four projections, keys and values of fewer heads where there are fewer, and two matrices or three if gated."""
    matrices = 3 if config.traits.get("gated") else 2
    heads = config.size("num_attention_heads", "num_heads", default=1)
    kept = width * config.size("num_key_value_heads", default=heads) // heads
    inner = config.get("intermediate_size", default=int(width * float(config.get("mlp_ratio", default=4))))
    fed = matrices * width * int(inner)
    macs = 2 * width * (width + kept) + fed
    return Block(repeat, macs, 2 * width, span, fed_macs=fed, match_macs=width // heads)  # type: ignore[arg-type]


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
    macs = _plain(config, width, 1).macs
    whole = len(set(config.numbers("fullatt_block_indexes")) & set(range(depth)))
    blocks = (Block(depth - whole, macs, 2 * width, "window"), Block(whole, macs, 2 * width, "image"))
    window = config.size("window_size") // config.side("patch_size")
    return Tower(model_type, width, _patch_macs(config, width), blocks, window=window, score_macs=width)


def native(config: Config, model_type: str) -> Tower:
    """Images at their own size, each a sequence of its own: Qwen3-VL's tower and many others."""
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


def gemma4(config: Config, model_type: str) -> Tower:
    """Gated blocks on patches filled up to a fixed number, then averages over squares as a matrix product."""
    width, side = config.size("hidden_size"), config.size("pooling_kernel_size")
    block = _plain(config, width, config.layers("num_hidden_layers"))
    return Tower(model_type, width, _patch_macs(config, width), (block,), pooled=side * side, score_macs=width)


def windowed(config: Config, model_type: str) -> Tower:
    """Windows in the layers that are listed so; plain blocks."""
    width, depth = config.size("hidden_size"), config.layers("num_hidden_layers")
    listed = config.get("layer_types")
    whole = (
        sum(kind == "full_attention" for kind in listed)
        if listed is not None
        else sum((index + 1) % 4 == 0 or index == depth - 1 for index in range(depth))
    )
    block = _plain(config, width, 1)
    blocks = (Block(depth - whole, block.macs, 2 * width, "window"), Block(whole, block.macs, 2 * width, "image"))
    window = config.size("pos_emb_height")
    return Tower(model_type, width, _patch_macs(config, width), blocks, window=window, score_macs=width)


def convolved(config: Config, model_type: str) -> Tower:
    """Layers of LFM3-VL: gated convolutions over the patches of a picture, and attention where they are listed so, by
    default in every second layer behind the first two."""
    width, depth = config.size("hidden_size"), config.layers("num_hidden_layers")
    listed = config.get("layer_types", default=["conv" if i < 2 or i % 2 else "full_attention" for i in range(depth)])
    attending, taps = sum(kind == "full_attention" for kind in listed), config.size("conv_kernel_size")
    block = _plain(config, width, attending, "image")
    convolution = Block(depth - attending, 4 * width * width + taps * taps * width + block.fed_macs, 0, "image")
    return Tower(model_type, width, _patch_macs(config, width), (convolution, block), score_macs=width)


def minicpm(config: Config, model_type: str) -> Tower:
    """After one of its layers, windows of two by two patches attend within themselves and become one token."""
    width, depth = config.size("hidden_size"), config.layers("num_hidden_layers")
    before, side = config.size("insert_layer_id", least=0) + 1, config.side("window_kernel_size")
    block, merge = _plain(config, width, 1, "image"), side * side
    inner = merge * config.size("intermediate_size")
    blocks = (
        Block(before, block.macs, 2 * width, "image"),
        Block(1, 4 * width * width, 2 * width, "window"),
        Block(1, merge * width * inner + inner * width, 0, "image", merge),
        Block(depth - before, block.macs, 2 * width, "image", merge),
    )
    return Tower(model_type, width, _patch_macs(config, width), blocks, window=side, score_macs=width)


def siglip2(config: Config, model_type: str) -> Tower:
    """SigLIP 2 at an image's own size: as `clip`, with patches embedded by a matrix and no class token."""
    return clip(config, model_type)


def sam(config: Config, model_type: str) -> Tower:
    """Segment Anything's encoder: windows that are filled up at the edges, whole tiles in the listed layers, scores
    with relative positions as products with every query, and a neck of two convolutions."""
    width, depth, window = config.size("hidden_size"), config.layers("num_hidden_layers"), config.size("window_size")
    whole = len(set(config.numbers("global_attn_indexes")) & set(range(depth)))
    feed_forward, neck = 2 * width * config.size("mlp_dim"), config.size("output_channels")
    blocks = (
        Block(depth - whole, 4 * width * width + 2 * window * width, 2 * width, "filled"),
        Block(depth - whole, feed_forward, 0),
        Block(whole, 4 * width * width + feed_forward, 2 * width, side_macs=width),
        Block(1, width * neck + 9 * neck * neck, 0),
    )
    return Tower(model_type, width, _patch_macs(config, width), blocks, window=window, score_macs=width)


def embedder(config: Config, model_type: str) -> Tower:
    """No encoder: one matrix on every large patch."""
    width, side = config.size("mm_embed_dim"), config.side("patch_size") * config.size("pooling_kernel_size")
    return Tower(model_type, width, width * 3 * side * side, ())


def vqgan(config: Config, model_type: str) -> Tower:
    """Chameleon's tokeniser: residual convolutions at sides that halve, attention over what is left, and the distance
    to every word of a visual vocabulary. A patch is what becomes one word."""
    base, multiples = config.size("base_channels"), config.numbers("channel_multiplier")
    if config.get("attn_resolutions") or config.get("attn_type") != "vanilla" or config.get("double_latent"):
        raise UnsupportedModelError(
            f"attention at several sides, none, or twice the latents in '{model_type}' are not known",
            "Known: attn_resolutions null, attn_type vanilla, double_latent false",
        )
    pixels = 4 ** (len(multiples) - 1)  # of a patch, at the present side
    into, macs = base, pixels * 9 * config.size("in_channels") * base
    for level, multiple in enumerate(multiples):
        out = base * multiple
        for _ in range(config.size("num_res_blocks")):
            # Two convolutions, and a matrix where the width changes.
            macs += pixels * (9 * (into * out + out * out) + (into * out if into != out else 0))
            into = out
        if level < len(multiples) - 1:
            pixels //= 4
            macs += pixels * 9 * out * out
    latent, word = config.size("latent_channels"), config.size("embed_dim")
    macs += 4 * 9 * into * into + 9 * into * latent + latent * word + word * config.size("num_embeddings")
    return Tower(model_type, into, macs, (Block(1, 4 * into * into, 2 * into),))


def pix2struct(config: Config, model_type: str) -> Tower:
    """KOSMOS-2.5's: gated blocks on patches filled up to a fixed number, with heads of a stated size."""
    width, inner = config.size("hidden_size"), config.size("num_attention_heads") * config.size("head_dim")
    macs = 4 * width * inner + 3 * width * config.size("intermediate_size")
    block = Block(config.layers("num_hidden_layers"), macs, 2 * inner)
    return Tower(model_type, width, width * config.size("patch_embed_hidden_size"), (block,), score_macs=inner)


def siglip_and_sam(config: Config, model_type: str) -> Tower:
    """DeepSeek-VL's larger one: SigLIP, and beside it `sam` on a larger picture, with a neck of its own for its last
    state and one for that of its first layer that sees the whole."""
    data = family("got_ocr2_vision", "tower")
    larger = Config(config.get("high_res_vision_config", default={}), "high_res_vision_config", data)
    beside, side = sam(larger, "sam_vision_model"), larger.side("image_size") // larger.side("patch_size")
    beside = replace(beside, blocks=(*beside.blocks, beside.blocks[-1]))
    return replace(clip(config, model_type), beside=beside, beside_side=side)


def patches(config: Config, model_type: str) -> Tower:
    """No encoder: one matrix from every patch to the decoder's width."""
    width = config.size("hidden_size")
    return Tower(model_type, width, _patch_macs(config, width), ())


#: CLIP's second half of it; the first is GOT-OCR's encoder.
_CLIP = {
    "defaults": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
}


#: DeepSeek-OCR 2's second half.
_LANGUAGE = {
    "traits": {"gated": True},
    "defaults": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def sam_and_clip(config: Config, model_type: str) -> Tower:
    """DeepSeek-OCR: `sam` and two convolutions that halve each side, and on what they make of sixteen patches CLIP's
    layers."""
    second = Config(config.get("encoder_config", default={}), "encoder_config", _CLIP)
    return _behind_sam(config, model_type, replace(clip(second, model_type).blocks[0], patches=16, extra=1))


def sam_and_queries(config: Config, model_type: str) -> Tower:
    """DeepSeek-OCR 2: the same, with a language model's layers on what is made of them and as many queries."""
    second = Config(config.get("encoder_config"), "encoder_config", _LANGUAGE)
    layers = _plain(second, second.size("hidden_size"), second.layers("num_hidden_layers"))
    return _behind_sam(config, model_type, replace(layers, patches=8))


def _behind_sam(config: Config, model_type: str, layers: Block) -> Tower:
    first = Config(config.get("sam_config", default={}), "sam_config", family("got_ocr2_vision", "tower"))
    tower, neck = sam(first, model_type), first.size("output_channels")
    middle, out = first.numbers("downsample_channels") or tuple(config.traits["downsample_channels"])
    convolutions = (Block(1, 9 * neck * middle, 0, patches=4), Block(1, 9 * middle * out, 0, patches=16))
    return replace(tower, blocks=(*tower.blocks, *convolutions, layers))


def step3(config: Config, model_type: str) -> Tower:
    """Plain layers, and two convolutions that halve each side and double the width."""
    width = config.size("hidden_size")
    # The class makes the inner width of the ratio, whatever else its file says.
    inner = int(width * float(config.get("mlp_ratio")))
    blocks = (
        Block(config.layers("num_hidden_layers"), 4 * width * width + 2 * width * inner, 2 * width),
        Block(1, 9 * width * 2 * width, 0, patches=4),
        Block(1, 9 * 2 * width * 4 * width, 0, patches=16),
    )
    return Tower(model_type, width, _patch_macs(config, width), blocks, score_macs=width)
