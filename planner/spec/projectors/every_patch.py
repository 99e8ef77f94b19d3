"""One token of every patch."""

from __future__ import annotations

from planner.errors import InputError, UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Marks, Projector, Tower
from planner.spec.projectors.parts import ProjectorParts, feature_layers, near_its_size, two_layers, unread_blocks


def _keeps_class_token(model: Config, tower: Tower) -> bool:
    strategy = model.get("vision_feature_select_strategy", default="default")
    if strategy not in ("default", "full"):
        raise UnsupportedModelError(f"vision_feature_select_strategy '{strategy}' is not known", "Known: default, full")
    return strategy == "full" and tower.extra_tokens > 0


def llava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two layers on every patch. A tower whose images share a sequence takes them at their own size."""
    class_token = _keeps_class_token(model, tower)
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(
        1,
        two_layers(feature_layers(model) * tower.hidden_size, hidden),
        class_token=class_token,
        unread_blocks=unread_blocks(model, tower),
    )
    if any(block.span == "batch" for block in tower.blocks):
        return projector, ImageRule("shrink", patch, patch, longest_edge=side, marks=Marks(row=1))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2 + class_token)


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


def vipllava(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, two_layers(feature_layers(model) * tower.hidden_size, hidden), unread_blocks=None)
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def paligemma(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, tower.hidden_size * vision.size("projection_dim", default=hidden))
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def video_llama_3(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Two layers on every patch of a picture."""
    return Projector(1, two_layers(tower.hidden_size, hidden)), near_its_size(
        vision.side("patch_size"), 1, 56 * 56, 1003520
    )


def janus(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """A chain of `depth` layers on every patch."""
    side, patch, width = vision.side("image_size"), vision.side("patch_size"), vision.size("projection_dim")
    projector = Projector(1, tower.hidden_size * width + (vision.size("depth") - 1) * width * width)
    return projector, ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def mllama(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """One matrix over the last state beside several earlier ones; the class token is a visual token too."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    projector = Projector(1, vision.size("vision_output_dim") * hidden, class_token=True)
    tokens = (side // patch) ** 2 + 1
    return projector, ImageRule("grid", side, patch, tile_tokens=tokens, max_tiles=vision.size("max_num_tiles"))


def unprojected(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Fuyu's patches are as wide as its decoder; pictures keep their size, or shrink into a box."""
    patch = vision.side("patch_size")
    return Projector(1, 0), ImageRule("boxed", patch, patch, longest_edge=1920, shortest_edge=1080)


def deepseek_vl_hybrid(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """The second tower's last state and an earlier one, each through two convolutions that halve each side; half of a
    token's width from either tower, and one matrix."""
    side, patch = vision.side("image_size"), vision.side("patch_size")
    channels = vision.block("high_res_vision_config").size("output_channels", default=256)
    halved = 4 * 9 * channels * 2 * channels + 9 * 2 * channels * 4 * channels
    joined = (tower.hidden_size + 4 * channels) * (hidden // 2) + hidden * hidden
    return Projector(1, 2 * halved + joined), ImageRule("fixed", side, patch, tile_tokens=(side // patch) ** 2)


def embedded(model: Config, vision: Config, tower: Tower, hidden: int) -> ProjectorParts:
    """Gemma 4 without a tower: large patches, one matrix to a width of their own, and one more."""
    patch = vision.side("patch_size") * vision.size("pooling_kernel_size")
    width = vision.size("output_proj_dims", "mm_embed_dim")
    return Projector(1, 0, width * hidden), ImageRule("budget", patch, patch, max_patches=280)
