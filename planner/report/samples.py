"""Samples on a plan's page: the picture with the patches that each stage kept, the question, and two answers.

A picture is stored once and its patches are drawn over it as vectors, so that a sample takes a few kilobytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from planner.evidence import Evidence

#: The longer side of a stored picture in pixels, at most.
LARGEST_SIDE = 224
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Kept:
    """The patches that a selection kept: where it happens, and how many of how many."""

    title: str
    patches: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def caption(self) -> str:
        """``after layer 5: 20 of 144``."""
        return f"{self.title}: {len(self.patches)} of {self.grid[0] * self.grid[1]}"

    @property
    def dropped_path(self) -> str:
        """SVG path over the patches that were dropped, in units of patches."""
        return _path(sorted(set(range(self.grid[0] * self.grid[1])) - set(self.patches)), self.grid[1])

    @property
    def kept_path(self) -> str:
        """SVG path round each patch that was kept, in units of patches."""
        return "".join(_box(patch, 1, self.grid[1]) for patch in self.patches)


@dataclass(frozen=True)
class Shown:
    """A sample as the page shows it.

    Attributes:
        prompt, kind: as the sample has them.
        accepted: right answers, where they are known.
        dense, planned: the two answers.
        same: they are equal, their ends included.
        picture: a link that holds the picture itself; "" where the sample has none.
        size: of that picture in pixels.
        kept: one for each selection among visual tokens; none where the patches have no places in the picture.
    """

    prompt: str
    dense: str
    planned: str
    same: bool
    kind: str = ""
    accepted: tuple[str, ...] = ()
    picture: str = ""
    size: tuple[int, int] = (0, 0)
    kept: tuple[Kept, ...] = ()


def stored(picture: Image) -> tuple[str, tuple[int, int]]:
    """A picture, made small, as a ``data:`` link, and its size in pixels. PNG or JPEG, whichever is shorter."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    png, jpeg = io.BytesIO(), io.BytesIO()
    small.save(png, "PNG", optimize=True)
    small.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    kind, body = min(("png", png.getvalue()), ("jpeg", jpeg.getvalue()), key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}", small.size


def told(samples: Sequence[Shown], evidence: Evidence | None) -> str:
    """What the samples are, a sentence or two."""
    row = None if evidence is None else evidence.row("plan")
    parted = sum(not one.same for one in samples)
    if row is None:
        return f"{parted} of these {len(samples)} answers part from the dense model's."
    lost = round((1 - row.agreement.value) * row.agreement.n)
    if not lost:
        return f"None of {row.agreement.n:,} answers parts from the dense model's. {len(samples)} of them:"
    which = "the worst come first" if parted < lost else "they come first" if lost > 1 else "it comes first"
    then = ", then some that stayed the same" if parted < len(samples) else ""
    verb = "parts" if lost == 1 else "part"
    return f"{lost:,} of {row.agreement.n:,} answers {verb} from the dense model's; {which}{then}."


def _path(patches: Collection[int], columns: int) -> str:
    """Boxes over patches, neighbours in a row as one."""
    runs: list[list[int]] = []
    for patch in patches:
        if runs and patch == runs[-1][0] + runs[-1][1] and patch % columns:
            runs[-1][1] += 1
        else:
            runs.append([patch, 1])
    return "".join(_box(first, count, columns) for first, count in runs)


def _box(patch: int, count: int, columns: int) -> str:
    row, column = divmod(patch, columns)
    return f"M{column} {row}h{count}v1h-{count}z"
