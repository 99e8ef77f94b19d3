"""Which placeholders of a picture stay in a prompt: known before the picture is encoded."""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import PlanError


def shortened(tokens: Sequence[int], embeds: Sequence[bool], pieces: Sequence[tuple[int, int]]) -> list[int]:
    """What stands for a picture in a prompt, with as many placeholders as a plan leaves.

    Args:
        tokens: what stands for the whole picture, marks between its tiles included.
        embeds: which of them are placeholders of image tokens.
        pieces: tokens of each piece of the picture, and how many of them stay.

    Raises:
        PlanError: marks stand between tokens that share a budget, so that the picture would decide where they stand.
    """
    places = [place for place, embed in enumerate(embeds) if embed]
    gone, start = set(), 0
    for size, kept in pieces:
        own = places[start : start + size]
        if kept < size and own[-1] - own[0] != size - 1:
            raise PlanError(
                "the model puts marks between the tiles of a picture, and the plan's budget is for tiles together",
                "Make a plan with per=tile, or let the processor keep pictures whole",
            )
        gone.update(own[kept:])
        start += size
    return [token for place, token in enumerate(tokens) if place not in gone]
