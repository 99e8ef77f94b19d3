"""Visual tokens of a workload by what an entry's budget is for: the prompt, each picture, or each tile."""

from __future__ import annotations

from planner.errors import InputError
from planner.schedule import Select
from planner.spec.facts import ModelSpec
from planner.spec.images import encode_all
from planner.workload import Workload


def pieces(spec: ModelSpec, workload: Workload, entry: Select | None) -> tuple[int, ...]:
    """Visual tokens of each piece; all together those of the workload.

    Raises:
        InputError: the workload's images have another number of tokens.
    """
    visual = workload.visual_tokens
    if entry is None or entry.per == "prompt" or spec.images is None or not visual:
        return (visual,)
    if not workload.images:
        tile = spec.images.tile_tokens if entry.per == "tile" else 0
        whole, rest = divmod(visual, tile) if tile else (0, visual)
        return (tile,) * whole + (rest,) * bool(rest)
    encoded = encode_all(spec, workload.images)
    if entry.per == "tile":
        found = tuple(grid.tokens for image in encoded for grid in image.grids)
    else:
        found = tuple(image.visual_tokens for image in encoded)
    if sum(found) != visual:
        raise InputError(
            f"workload: its images have {sum(found)} visual tokens and visual_tokens is {visual}",
            f"Say visual_tokens={sum(found)}, or leave the images out",
        )
    return found
