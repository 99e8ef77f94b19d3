"""From vision tower to decoder: the projector's facts and the rule that turns pixels into tokens, one reader per kind;
a family's file names its reader (`planner.spec.config`).

Readers take the configurations of the whole model and of its tower, the tower's facts, and the decoder's hidden size.
"""

from __future__ import annotations

from typing import Literal

from planner.errors import InputError, UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Marks, Projector, Tower

ProjectorParts = tuple[Projector, ImageRule]


def _two_layers(inner: int, hidden: int) -> int:
    return inner * hidden + hidden * hidden


def _feature_layers(model: Config) -> int:
    return max(len(model.numbers("vision_feature_layer", "vision_feature_layers")), 1)


def _keeps_class_token(model: Config, tower: Tower) -> bool:
    strategy = model.get("vision_feature_select_strategy", default="default")
    if strategy not in ("default", "full"):
        raise UnsupportedModelError(f"vision_feature_select_strategy '{strategy}' is not known", "Known: default, full")
    return strategy == "full" and tower.extra_tokens > 0


def llava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two layers on every patch. A tower whose images share a sequence takes them at their own size."""
    class_token = _keeps_class_token(model, tower)
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, _two_layers(_feature_layers(model) * tower.hidden_size, hidden), class_token=class_token)
    if any(block.span == "batch" for block in tower.blocks):
        return projector, ImageRule("shrink", patch, patch, longest_edge=side, marks=Marks(row=1))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2 + class_token)


def vipllava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, _two_layers(_feature_layers(model) * tower.hidden_size, hidden))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def mobilevlm(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """MobileVLM V2: two layers on every patch, 2x2 average pooling, then a depthwise 3x3 convolution."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(4, macs=9 * hidden, patch_macs=_two_layers(tower.hidden_size, hidden))
    return projector, ImageRule("fixed", side, patch, merge=2, tile_tokens=(side // patch // 2) ** 2)


def anyres(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    projector, fixed = llava(model, vision, tower, hidden)
    pinpoints = model.get("image_grid_pinpoints")
    if not pinpoints:
        raise InputError(
            f"the configuration of '{model.where}' has no 'image_grid_pinpoints'", "Give them, or the family's defaults"
        )
    resolutions = tuple((int(height), int(width)) for height, width in pinpoints)
    aspect = str(model.get("vision_aspect_ratio", default=""))
    limit = int(aspect.rpartition("_")[2]) if aspect.startswith("anyres_max_") else 0
    return projector, ImageRule(
        "anyres", fixed.side, fixed.patch, tile_tokens=fixed.tile_tokens, resolutions=resolutions, limit=limit
    )


def patch_merger(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen2-VL's and 2.5-VL's merger: four patches side by side, through two layers."""
    merge = vision.size("spatial_merge_size")
    inner = merge * merge * tower.hidden_size
    out = vision.size("out_hidden_size", default=hidden)
    projector = Projector(merge * merge, inner * inner + inner * out)
    return projector, _resize(vision.side("patch_size"), merge, 56 * 56, 12_845_056)


def deepstacked(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen3-VL: the same merger once more for every deepstack layer."""
    projector, _ = patch_merger(model, vision, tower, hidden)
    mergers = 1 + len(vision.numbers("deepstack_visual_indexes"))
    rule = _resize(vision.side("patch_size"), vision.size("spatial_merge_size"), 65_536, 16_777_216)
    return Projector(projector.merge, mergers * projector.macs), rule


def glm4v(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A strided convolution merges, then a projection and a gated block."""
    merge, out = vision.size("spatial_merge_size"), vision.size("out_hidden_size")
    inner = merge * merge * tower.hidden_size
    wide = model.traits.get("inner_times_channels")
    middle = out * vision.size("in_channels") if wide else vision.size("intermediate_size")
    projector = Projector(merge * merge, inner * out + out * out + 3 * out * middle)
    return projector, _resize(vision.side("patch_size"), merge, 112 * 112, 9_633_792, frames=2)


def _resize(patch: int, merge: int, least: int, most: int, frames: int = 1) -> ImageRule:
    side = patch * merge
    return ImageRule("resize", side, patch, merge, min_pixels=least, max_pixels=most, frames=frames)


def internvl(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle by the inverse of `downsample_ratio`; twelve tiles at most or as it says, and a thumbnail."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    merge = round(1 / float(model.get("downsample_ratio", default=0.5)))
    projector = Projector(merge * merge, _two_layers(merge * merge * tower.hidden_size, hidden))
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule(
        "aspect", side, patch, merge, tile_tokens=tokens, max_tiles=model.size("max_dynamic_patch", default=12)
    )


def idefics3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and one layer; tiles of an image enlarged to a longest edge, and the whole image once more."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), model.size("scale_factor")
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("split", side, patch, merge, tile_tokens=tokens, longest_edge=4 * side)


def gemma3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Average pooling to a fixed number of tokens, then one matrix."""
    side, patch, tokens = vision.side("image_size"), vision.side("patch_size"), model.size("mm_tokens_per_image")
    projector = Projector((side // patch) ** 2 // tokens, tower.hidden_size * hidden)
    return projector, ImageRule("fixed", side, patch, tile_tokens=tokens)


def paligemma(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, tower.hidden_size * vision.size("projection_dim", default=hidden))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def mistral3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A patch merger back to the tower's width, then two layers."""
    patch, merge, width = vision.side("patch_size"), model.size("spatial_merge_size"), tower.hidden_size
    projector = Projector(
        merge * merge, merge * merge * width * width + _two_layers(_feature_layers(model) * width, hidden)
    )
    edge = vision.side("image_size")
    return projector, ImageRule("shrink", side=patch * merge, patch=patch, merge=merge, longest_edge=edge)


def shuffled_gate(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Aya Vision and Cohere2 Vision: pixel shuffle and a gated layer of stated width; up to twelve tiles and a
    thumbnail."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), model.size("downsample_factor")
    inner = model.size("alignment_intermediate_size", default=hidden)
    kind: Literal["aspect", "fit"] = model.traits.get("tiling", "fit")
    # An odd number of patches a side is padded before merging.
    tokens = (-(-(side // patch) // merge)) ** 2
    projector = Projector(merge * merge, merge * merge * tower.hidden_size * inner + (inner // 2) * hidden)
    return projector, ImageRule(kind, side, patch, merge, tile_tokens=tokens, max_tiles=12)


def llama4(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and two layers inside the tower, then one matrix."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    merge = round(1 / float(vision.get("pixel_shuffle_ratio", default=0.5)))
    inner, out = vision.size("projector_input_dim"), vision.size("projector_output_dim")
    adapter = vision.size("intermediate_size") * inner + out * out
    projector = Projector(merge * merge, adapter + vision.size("vision_output_dim") * hidden)
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("fit", side, patch, merge, tile_tokens=tokens, max_tiles=16)


def mllama(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix over the last state beside several earlier ones; the class token is a visual token too."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, vision.size("vision_output_dim") * hidden, class_token=True)
    tokens = (side // patch) ** 2 + 1
    return projector, ImageRule("grid", side, patch, tile_tokens=tokens, max_tiles=vision.size("max_num_tiles"))


def merged(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Patches side by side through two layers; the inner one as wide as what comes in, unless it is stated."""
    merge, patch = _merge(vision), vision.side("patch_size")
    inner = merge * merge * tower.hidden_size
    middle = model.size("projector_hidden_size", default=inner)
    return Projector(merge * merge, inner * middle + middle * hidden), _resize(patch, merge, 56 * 56, 12_845_056)


def _merge(vision: Config) -> int:
    return vision.side("spatial_merge_size", "merge_kernel_size", "merge_size")


def patch_merger_projected(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Qwen2.5-VL's tower with its own merger, and one more matrix."""
    out = vision.size("out_hidden_size")
    projector, rule = patch_merger(model, vision, tower, out)
    return Projector(projector.merge, projector.macs + out * hidden), rule


def video_llama_3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two layers on every patch of a picture."""
    return Projector(1, _two_layers(tower.hidden_size, hidden)), _resize(vision.side("patch_size"), 1, 56 * 56, 1003520)


def ovis2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Patches become weights over a visual vocabulary, and those the weighted mean of its embeddings."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), vision.size("hidden_stride")
    words = vision.size("vocab_size")
    head = merge * merge * tower.hidden_size * (words - vision.size("num_visual_indicator_tokens"))
    tokens = (-(-(side // patch) // merge)) ** 2
    rule = ImageRule("cover", side, patch, merge, tile_tokens=tokens, max_tiles=9)
    return Projector(merge * merge, head + words * model.size("hidden_size", default=hidden)), rule


def granite_docling(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Idefics 3's pixel shuffle on the coarse path, one matrix more, and a merger for every deepstack layer."""
    side, patch, merge = vision.side("image_size"), vision.side("patch_size"), vision.size("scale_factor")
    out, inner = vision.size("out_hidden_size"), merge * merge * tower.hidden_size
    mergers = len(vision.numbers("deepstack_visual_indexes"))
    projector = Projector(merge * merge, inner * out + out * out + mergers * _two_layers(inner, out))
    tokens = (side // patch // merge) ** 2
    return projector, ImageRule("split", side, patch, merge, tile_tokens=tokens, longest_edge=4 * side)


def gemma4(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Averages over squares of patches, then one matrix."""
    patch, merge = vision.side("patch_size"), vision.size("pooling_kernel_size")
    rule = ImageRule("budget", patch * merge, patch, merge, max_patches=280 * merge * merge)
    return Projector(merge * merge, tower.hidden_size * hidden), rule


def lfm2_vl(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle and two layers of stated width."""
    patch, merge, middle = (
        vision.side("patch_size"),
        model.size("downsample_factor"),
        model.size("projector_hidden_size"),
    )
    side = 32 * patch
    rule = ImageRule(
        "large", side, patch, merge, tile_tokens=(side // patch // merge) ** 2, min_pixels=64 * (patch * merge) ** 2,
        max_pixels=256 * (patch * merge) ** 2, max_tiles=10, max_patches=(side // patch) ** 2,
    )  # fmt: skip
    return Projector(merge * merge, merge * merge * tower.hidden_size * middle + middle * hidden), rule


def muse_glimmer(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Pixel shuffle, two layers of one width, and a matrix."""
    merge, out, middle = vision.size("merge_size"), model.size("out_hidden_size"), model.size("projector_hidden_size")
    projector = Projector(merge * merge, out * middle + middle * middle + middle * hidden)
    return projector, _resize(vision.side("patch_size"), merge, 56 * 56, 12_845_056)


def janus(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A chain of `depth` layers on every patch."""
    side, patch, width = vision.side("image_size"), vision.side("patch_size"), vision.size("projection_dim")
    projector = Projector(1, tower.hidden_size * width + (vision.size("depth") - 1) * width * width)
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def minicpm(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Four tokens side by side through two layers, behind the tower's own merging layer where it has one."""
    patch, inner = vision.side("patch_size"), 4 * tower.hidden_size
    merge = 4 if any(block.patches > 1 for block in tower.blocks) else 2
    if model.size("merger_times", default=1) != 1 or (model.get("downsample_mode") == "4x") != (merge == 2):
        raise UnsupportedModelError(
            "this way of merging ('merger_times', 'downsample_mode') is not known", "Known: the family's own"
        )
    rule = ImageRule("slices", merge * patch, patch, merge, max_tiles=9, longest_edge=model.side("image_size"))
    return Projector(merge * merge, inner * inner + inner * hidden), rule


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
    """BLIP-2's queries: they attend to each other in every layer, and to the patches in every second one."""
    former, tokens = model.block("qformer_config"), model.size("num_query_tokens")
    width, depth = former.size("hidden_size", default=768), former.layers("num_hidden_layers", default=12)
    inner = former.size("intermediate_size", default=3072)
    asking = -(-depth // former.size("cross_attention_frequency", default=2))
    square, patches = width * width, (vision.side("image_size") // vision.side("patch_size")) ** 2 + tower.extra_tokens
    projector = Projector(
        merge=1,
        macs=depth * (4 * square + 2 * width * inner + tokens * 2 * width)
        + asking * (2 * square + patches * 2 * width)
        + width * hidden,
        patch_macs=asking * 2 * tower.hidden_size * width,
        class_token=tower.extra_tokens > 0,
        latents=tokens,
    )
    side, patch = vision.side("image_size"), vision.side("patch_size")
    return projector, ImageRule("fixed", side, patch, tile_tokens=tokens)


def got_ocr2(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two convolutions of three by three that halve each side, and one matrix."""
    side, patch, channels = vision.side("image_size"), vision.side("patch_size"), vision.size("output_channels")
    halving = 4 * 9 * channels * 2 * channels + 9 * 2 * channels * hidden
    projector = Projector(16, halving + hidden * hidden)
    return projector, ImageRule("fixed", side, patch, 4, tile_tokens=(side // patch // 4) ** 2)


def embedded(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Gemma 4 without a tower: large patches, one matrix to a width of their own, and one more."""
    patch = vision.side("patch_size") * vision.size("pooling_kernel_size")
    width = vision.size("output_proj_dims", "mm_embed_dim")
    return Projector(1, 0, width * hidden), ImageRule("budget", patch, patch, max_patches=280)
