"""Images that a model sees as one view of the whole and tiles beside it, in the ways of single families; each as the
family's own processor does. Tokens between views and behind rows of tokens are visual ones where the model writes
features of its own there, else marks.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.spec.encoded import Encoded
from planner.spec.facts import ImageRule

#: Step fills pictures up to squares that are narrower than this many pixels, and four times as long as narrow.
NARROW = 32


def _side(rule: ImageRule, pixels: int) -> tuple[int, int]:
    """Patches of a square view, a side of it, and tokens that they become, a side; an odd patch is filled up."""
    patches = pixels // rule.patch
    return patches, -(-patches // rule.merge)


def _whole_first(rule: ImageRule, rows: int, columns: int, tiled: bool) -> Encoded:
    """The whole view and, where there are any, tiles put together; a break behind every row, a separator between."""
    (whole, whole_tokens), (side, tokens) = _side(rule, rule.view), _side(rule, rule.side)
    places, visual = whole_tokens**2, whole_tokens * (whole_tokens + 1) + 1
    tiles: tuple[tuple[int, int], ...] = ((whole, whole),)
    if tiled:
        tiles += ((side, side),) * (rows * columns)
        places += rows * columns * tokens**2
        visual += rows * tokens * (columns * tokens + 1)
    return Encoded(tiles, visual, cut=(rows, columns), projected=places * rule.merge**2)


def _panels(rule: ImageRule, width: int, height: int) -> Encoded:
    """DeepSeek-VL2: always tiles, of the candidate resolution that keeps most pixels and wastes least."""
    from planner.spec.images import best_resolution

    rows, columns = best_resolution(rule, width, height)
    return _whole_first(rule, rows // rule.side, columns // rule.side, tiled=True)


def _document(rule: ImageRule, width: int, height: int) -> Encoded:
    """DeepSeek-OCR: two tiles or more of an image that is larger than one, nearest in aspect ratio."""
    from planner.spec.images import nearest_cut

    if max(width, height) <= rule.side:
        return _whole_first(rule, 1, 1, tiled=False)
    rows, columns = nearest_cut(rule, width, height, least=2)
    return _whole_first(rule, rows, columns, tiled=True)


def _pages(rule: ImageRule, width: int, height: int) -> Encoded:
    """DeepSeek-OCR 2: the same tiles, none put together, without breaks, and the whole view behind them."""
    cut = _document(rule, width, height).cut
    (whole, whole_tokens), (side, tokens) = _side(rule, rule.view), _side(rule, rule.side)
    count = cut[0] * cut[1] if max(width, height) > rule.side else 0
    places = count * tokens**2 + whole_tokens**2
    tiles = ((side, side),) * count + ((whole, whole),)
    return Encoded(tiles, places + 1, cut=cut, projected=places * rule.merge**2)


def _masked(rule: ImageRule, width: int, height: int) -> Encoded:
    """Phi-4: as many tiles as the image covers, or those nearest in aspect ratio; tokens of filling are left out."""
    from planner.spec.images import nearest_cut

    rows, columns = -(-height // rule.side), -(-width // rule.side)
    if rows * columns > rule.max_tiles:
        rows, columns = nearest_cut(rule, width, height)
    scale = min(columns * rule.side / width, rows * rule.side / height)
    side, whole = _side(rule, rule.side)
    filled = [
        -(-(parts * side - (parts * rule.side - int(length * scale)) // rule.patch) // rule.merge)
        for parts, length in ((rows, height), (columns, width))
    ]
    visual = whole * (whole + 1) + 1 + filled[0] * (filled[1] + 1)
    tiles = ((side, side),) * (1 + rows * columns)
    return Encoded(tiles, visual, cut=(rows, columns), projected=visual * rule.merge**2)


def _overlapping(rule: ImageRule, width: int, height: int) -> Encoded:
    """Molmo 2: tiles that share a margin with their neighbours, of the grid nearest in size, and the whole image."""
    from planner.spec.images import nearest_in_size

    (side, whole), margin = _side(rule, rule.side), rule.margin
    window = (side - margin) * rule.patch
    sizes = (length - margin * rule.patch for length in (width, height))
    rows, columns = nearest_in_size(rule.max_tiles, window, *sizes)
    down, across = (-(-(parts * (side - margin) + margin) // rule.merge) for parts in (rows, columns))
    tiles, visual = ((side, side),) * (1 + rows * columns), whole * whole + down * across
    return Encoded(tiles, visual, cut=(rows, columns), rows=whole + down, projected=visual * rule.merge**2)


def _windows(rule: ImageRule, width: int, height: int) -> Encoded:
    """Step: the whole image, and windows of a long or large one, every one resized to a tile."""
    longest = rule.longest_edge
    if min(width, height) < NARROW and max(width, height) > 4 * min(width, height):
        width = height = max(width, height)
    if max(width, height) > longest:
        scale = longest / max(width, height)
        width, height = int(width * scale), int(height * scale)
    short, long = sorted((width, height))
    window = rule.side
    if long <= rule.view:
        window = short if long / short > 1.5 else 0
    elif long / short > 4:
        window = min(short, rule.side)
    (whole, whole_tokens), (side, tokens) = _side(rule, rule.view), _side(rule, rule.side)
    if not window:
        return Encoded(((whole, whole),), whole_tokens**2)
    rows, columns = (
        length // window + (length % window > 0.2 * window) if length >= window else 1 for length in (height, width)
    )
    count = rows * columns
    return Encoded(((whole, whole), *((side, side),) * count), whole_tokens**2 + count * tokens**2, cut=(rows, columns))


VIEWS: dict[str, Callable[[ImageRule, int, int], Encoded]] = {
    "panels": _panels,
    "document": _document,
    "pages": _pages,
    "masked": _masked,
    "overlapping": _overlapping,
    "windows": _windows,
}
