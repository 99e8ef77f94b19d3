"""What stands before an image, where its visual rows see it.

Rows that see the text before them depend on that text, on how far it is from them, and on the images before it: text
between images has seen them, and with several position axes their grids move what comes after. All of it is in one
digest for every image. Where it is the same, so are the rows, whatever comes after the image.
"""

from __future__ import annotations

import hashlib
from itertools import accumulate
from typing import Any

from torch import Tensor

from planner.runtime.imaging.images import Image
from planner.runtime.tensors.layout import Layout


def prefixes(images: list[Image], layout: Layout, position_ids: Any = None) -> list[str]:
    """Digests of what stands before the last token of each image, the image itself left out.

    Args:
        images: in the order of their tokens in the batch; they may reach over several samples.
        layout: parts of the prompts.
        position_ids: ``[B, n]`` where the caller gives any. Positions with several axes are taken for those that the
            model derives from what is in the digest.
    """
    places: list[tuple[int, int]] = [(sample, row) for sample, row in layout.visual.nonzero().tolist()]
    ids, valid = layout.ids.tolist(), layout.valid.tolist()
    given = position_ids.tolist() if isinstance(position_ids, Tensor) and position_ids.ndim == 2 else None
    found = []
    before: dict[int, list[str]] = {}
    ends = list(accumulate(image.tokens for image in images))
    for image, end in zip(images, ends, strict=True):
        last = dict(places[end - image.tokens : end])  # of each sample, the last row
        digest = hashlib.sha256()
        for sample, row in last.items():
            rows = [i for i in range(row + 1) if valid[sample][i]]
            place = given[sample % len(given)] if given else list(range(row + 1))
            steps = [place[i] - place[rows[0]] for i in rows]
            # Positions are told only where they are not those of consecutive tokens.
            moved = [] if steps == list(range(len(rows))) else steps
            digest.update(repr(([ids[sample][i] for i in rows], moved, before.get(sample, []))).encode())
        for sample in last:
            before.setdefault(sample, []).append(image.digest)
        found.append(digest.hexdigest())
    return found
