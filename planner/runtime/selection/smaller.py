"""Images with fewer pixels, for families whose encoder takes any number of them as a grid of patches (Qwen-VL, GLM-V).

The prompt has as many placeholders as the image it was made for. A smaller image fills some of them, the middles of the
cells that it sees, and the entry drops the others. Pixels are interpolated as a processor would (bicubic, antialiased).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from planner.runtime.model.exchange import Function, wrapped
from planner.spec.cells import bands_of, cells_of, smaller
from planner.spec.encoded import Grid

#: An image's grid of visual tokens, and how many of them it may keep.
Budgets = Sequence[tuple[Grid, int]]


class SmallerImages:
    """Shrinks the images that a vision encoder is about to see.

    Args:
        tower: the encoder, called with patches ``[p, C * T * side * side]`` and their grids ``[images, 3]``.
        config: its configuration.
    """

    def __init__(self, tower: nn.Module, config: Any) -> None:
        self.tower, self.merge = tower, int(config.spatial_merge_size)
        self.patch, self.frames = int(config.patch_size), int(config.temporal_patch_size)
        self._own = threading.local()

    @staticmethod
    def serves(config: Any) -> bool:
        """Whether a vision configuration is that of such an encoder."""
        return all(hasattr(config, name) for name in ("spatial_merge_size", "temporal_patch_size", "patch_size"))

    def begin(self, budgets: Budgets) -> None:
        """The calling thread's next images, in order."""
        self._own.budgets = list(budgets)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Shrink while the block runs."""
        with wrapped(self.tower, "forward", self._around):
            yield

    def _around(self, original: Function) -> Function:
        def forward(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
            grids = kwargs.get("grid_thw", args[0] if args else None)
            budgets: Budgets = getattr(self._own, "budgets", [])
            wanted = [[1, grid.rows * self.merge, grid.columns * self.merge] for grid, _ in budgets]
            if not isinstance(grids, Tensor) or grids.tolist() != wanted:
                return original(pixels, *args, **kwargs)  # a video, or images that no prompt under the plan brought
            small = [smaller(grid, count) for grid, count in budgets]
            parts = pixels.split([rows * columns for _, rows, columns in wanted])
            shrunk = [self._shrunk(part, grid, to) for part, (grid, _), to in zip(parts, budgets, small, strict=True)]
            sizes = grids.new_tensor([[1, to.rows * self.merge, to.columns * self.merge] for to in small])
            if "grid_thw" in kwargs:
                return self._spread(original(torch.cat(shrunk), *args, **{**kwargs, "grid_thw": sizes}), budgets, small)
            return self._spread(original(torch.cat(shrunk), sizes, *args[1:], **kwargs), budgets, small)

        return forward

    def _shrunk(self, patches: Tensor, grid: Grid, to: Grid) -> Tensor:
        """One image's patches, side by side in blocks that become one token, at another size."""
        side, merge = self.patch, self.merge
        blocks = patches.reshape(grid.rows, grid.columns, merge, merge, -1, side, side)
        # [rows, merge, side] and [columns, merge, side] are the image's height and width.
        image = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(
            1, -1, grid.rows * merge * side, grid.columns * merge * side
        )
        size = (to.rows * merge * side, to.columns * merge * side)
        small = nn.functional.interpolate(image.float(), size, mode="bicubic", antialias=True).to(patches.dtype)
        back = small.reshape(-1, to.rows, merge, side, to.columns, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
        return back.reshape(to.rows * to.columns * merge * merge, -1)

    def _spread(self, output: Any, budgets: Budgets, small: Sequence[Grid]) -> Any:
        """What the encoder gives, at the places of the image that the prompt was made for."""
        source, target, tokens = _places(budgets, small)

        def spread(features: Tensor) -> Tensor:
            index = torch.tensor(target, device=features.device)
            wide = features.new_zeros(tokens, features.shape[-1])
            total = wide.index_add(0, index, features[torch.tensor(source, device=features.device)])
            count = torch.bincount(index, minlength=tokens).clamp(min=1)
            return total / count[:, None].to(total.dtype)

        if isinstance(output, Tensor):
            return spread(output)
        if isinstance(output, tuple):  # with deepstack features, in older releases
            return (spread(output[0]), [spread(one) for one in output[1]])
        output.pooler_output = spread(output.pooler_output)
        if getattr(output, "deepstack_features", None) is not None:
            output.deepstack_features = [spread(one) for one in output.deepstack_features]
        return output


def _places(budgets: Budgets, small: Sequence[Grid]) -> tuple[list[int], list[int], int]:
    """Every token of the small images, and where it goes: the middle of a cell, of which several may share one."""
    source: list[int] = []
    target: list[int] = []
    start_small = start = 0
    for (grid, count), to in zip(budgets, small, strict=True):
        middles = iter(cell[0] for cell in cells_of((grid,), count))
        for row, across in enumerate(bands_of(grid.rows, grid.columns, count)):
            for cell in range(across):
                place = start + next(middles)
                for column in range(cell * to.columns // across, (cell + 1) * to.columns // across):
                    source.append(start_small + row * to.columns + column)
                    target.append(place)
        start_small, start = start_small + to.tokens, start + grid.tokens
    return source, target, start
