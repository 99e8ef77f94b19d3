"""A fixed number of queries asks the patches."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from planner.errors import InputError, UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Projector, Tower
from planner.spec.projectors.every_patch import anyres
from planner.spec.projectors.parts import ProjectorParts


def idefics2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A gated block on every patch, then a perceiver: in each layer latents ask the patches and themselves."""
    text, sampler = Config(model.get("text_config", default={}), "text_config"), model.block("perceiver_config")
    inner = text.size("intermediate_size", default=14336)
    latents, depth = sampler.size("resampler_n_latents", default=64), sampler.size("resampler_depth", default=3)
    heads, head_dim = sampler.size("resampler_n_heads", default=16), sampler.size("resampler_head_dim", default=96)
    kept = 2 * hidden * sampler.size("num_key_value_heads", default=4) * head_dim
    pair = 2 * heads * head_dim
    projector = Projector(
        merge=1,
        macs=depth * (2 * hidden * heads * head_dim + kept + 12 * hidden * hidden + latents * pair),
        patch_macs=2 * tower.hidden_size * inner + inner * hidden + depth * (kept + latents * pair),
        latents=latents,
    )
    rule = ImageRule("edges", 1, vision.side("patch_size"), tile_tokens=latents, longest_edge=980, shortest_edge=378)
    return projector, rule


def aria(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Queries ask the patches through projections of their own and of the attention, then two layers."""
    side, patch, width = 980, vision.side("patch_size"), tower.hidden_size
    queries = {int(key): int(value) for key, value in model.get("projector_patch_to_query_dict").items()}
    patches = (side // patch) ** 2
    if patches not in queries:
        raise UnsupportedModelError(
            f"{patches} patches of an image have no number of queries", "Check the configuration"
        )
    latents, square = queries[patches], width * width
    projector = Projector(
        merge=1,
        macs=4 * square + width * hidden + hidden * hidden,
        patch_macs=4 * square + latents * 2 * width,
        latents=latents,
    )
    return projector, ImageRule("fixed", side, patch, tile_tokens=latents)


def q_former(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """BLIP-2's queries: they attend to each other in every layer, and to the patches in every second one.

    InstructBLIP's attend to the instruction too, whose words have a feed-forward of their own. Words are counted as the
    decoder's tokenizer makes them.
    """
    tokens, side, patch = model.size("num_query_tokens"), vision.side("image_size"), vision.side("patch_size")
    patches, read = (side // patch) ** 2 + tower.extra_tokens, model.traits.get("reads_text")
    width, depth, inner, asking = _former(model.block("qformer_config"))
    projector = Projector(
        merge=1,
        macs=_asked(model.block("qformer_config"), tokens, patches) + width * hidden,
        patch_macs=asking * 2 * tower.hidden_size * width,
        class_token=tower.extra_tokens > 0,
        latents=tokens,
        text_macs=depth * (4 * width * width + 2 * width * inner) if read else 0,
        text_pair_macs=depth * 2 * width if read else 0,
    )
    return projector, ImageRule("fixed", side, patch, tile_tokens=tokens)


def _former(former: Config) -> tuple[int, int, int, int]:
    """Width, layers, inner width of a feed-forward, and layers that ask the patches."""
    depth = former.layers("num_hidden_layers", default=12)
    asking = -(-depth // former.size("cross_attention_frequency", default=2))
    return former.size("hidden_size", default=768), depth, former.size("intermediate_size", default=3072), asking


def _asked(former: Config, queries: int, patches: int) -> int:
    """Of one query among others, over so many patches."""
    width, depth, inner, asking = _former(former)
    alone = 4 * width * width + 2 * width * inner + queries * 2 * width
    return depth * alone + asking * (2 * width * width + patches * 2 * width)


def windowed_q_formers(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Granite Vision 4: queries of each window ask its patches, and a matrix; once for every layer of the decoder that
    visual features are added to."""
    rate = model.get("downsample_rate")
    if not isinstance(rate, str):
        raise InputError(f"downsample_rate {rate!r} is no fraction such as '3/8'", "Give the model's own config.json")
    query_side, window_side = map(int, rate.split("/"))
    former, width = model.block("qformer_config"), tower.hidden_size
    values = {"num_hidden_layers": 1, "cross_attention_frequency": 1, **former.values, "hidden_size": width}
    former = Config(values, former.where)
    count = len(model.get("deepstack_layer_map", default=())) + 4
    projector, rule = anyres(model, vision, tower, hidden)
    tokens = int(Fraction(rate) * math.isqrt(rule.tile_tokens)) ** 2
    projector = Projector(
        merge=1,
        macs=count * (_asked(former, query_side**2, window_side**2) + width * hidden),
        patch_macs=count * _former(former)[3] * 2 * width * width,
        latents=tokens,
        unread_blocks=None,
    )
    return projector, replace(rule, tile_tokens=tokens)


def kosmos2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A matrix on every patch; learned queries ask those and themselves once."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = _asked_once(model, tower, hidden)
    return projector, ImageRule("fixed", side, patch, tile_tokens=projector.latents)


def kosmos2_5(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """The same; a picture is as large as a fixed number of patches allows, and filled up to it."""
    side, projector = math.isqrt(vision.size("max_num_patches")), _asked_once(model, tower, hidden)
    return projector, ImageRule("fixed", 16 * side, 16, tile_tokens=projector.latents)


def _asked_once(model: Config, tower: Tower, hidden: int) -> Projector:
    latents = model.size("latent_query_num")
    kept = 2 * hidden * hidden + latents * 2 * hidden
    return Projector(
        merge=1,
        macs=2 * hidden * hidden + kept,
        patch_macs=tower.hidden_size * hidden + kept,
        class_token=tower.extra_tokens > 0,
        latents=latents,
    )


def resampled(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """MiniCPM-V: learned queries ask the patches of each slice once, and one more matrix."""
    latents, square, patch = model.size("query_num"), hidden * hidden, vision.side("patch_size")
    # Patches are brought to the decoder's width first, unless they have it.
    brought = tower.hidden_size * hidden if tower.hidden_size != hidden else 0
    projector = Projector(1, 3 * square, patch_macs=brought + 2 * square + latents * 2 * hidden, latents=latents)
    rule = ImageRule(
        "slices",
        patch,
        patch,
        tile_tokens=latents,
        max_tiles=model.size("max_slice_nums"),
        longest_edge=model.size("scale_resolution"),
    )
    return projector, rule


def molmo2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """The mean of each square of patches asks those patches, filled up at the edges; then a gated block."""
    adapter, side, patch, merge = model.block("adapter_config"), vision.side("image_size"), vision.side("patch_size"), 2
    width = adapter.size("hidden_size", default=1152)
    read = width * max(len(adapter.numbers("vision_feature_layer")), 1)
    heads, head_dim = adapter.size("num_attention_heads", default=16), adapter.size("head_dim", default=72)
    kept = adapter.size("num_key_value_heads", default=heads) * head_dim
    asking = read * heads * head_dim + heads * head_dim * width
    asked = merge * merge * (2 * read * kept + 2 * heads * head_dim)
    gated = (2 * width + hidden) * adapter.size("intermediate_size", default=18944)
    rule = ImageRule("overlapping", side, patch, merge, max_tiles=8, margin=8)
    return Projector(merge * merge, asking + asked + gated), rule
