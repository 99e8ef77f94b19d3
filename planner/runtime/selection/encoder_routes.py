"""How models reorder, unpad or merge the output of their vision encoder: scores take the same route as features.

No formula is repeated here: scores are features with a single channel, sent through the very functions of the model.

* **Packing** (LLaVA-NeXT, LLaVA-OneVision): tiles are laid side by side, padding is cut off, large images are shrunk
  and every row gets a newline token. A newline stands for no patch, so its score is 0: it leaves first.
* **Windows** (Qwen2.5-VL): patches are permuted for window attention; the model puts the merged tokens back in order.
* **Patch merging with sizes** (Mistral 3): patches of all images lie in one sequence; blocks of each are merged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planner.runtime.model.exchange import exchanged, wrapped
from planner.runtime.tensors.weights import working_dtype

#: Gives the scores of the patches encoded since it was last asked, one tensor a tile.
Take = Callable[[], list[Tensor]]
#: Receives scores of visual tokens.
Give = Callable[[list[Tensor]], None]
Route = Callable[[Take, Give], AbstractContextManager[None]]


def routes_of(model: Any, tower: nn.Module) -> list[Route]:
    """The steps from the encoder's patches to the visual tokens; empty if patches, or square blocks of them, are the
    tokens in order."""
    found: list[Route] = []
    for name, module in model.named_modules():
        if hasattr(module, "pack_image_features") and isinstance(getattr(module, "image_newline", None), Tensor):
            found.append(partial(_packed, module))
        if name.endswith("patch_merger") and hasattr(module, "merging_layer"):
            found.append(partial(_merged, module))
    if getattr(getattr(tower, "config", None), "fullatt_block_indexes", None) and hasattr(tower, "merger"):
        found.append(partial(_windowed, tower))
    return found


@contextmanager
def _packed(owner: Any, take: Take, give: Give) -> Iterator[None]:
    pack = owner.pack_image_features

    def both(image_features: Any, *args: Any, **options: Any) -> Any:
        tiles = iter(take())
        scores = [torch.stack([next(tiles) for _ in image])[..., None] for image in image_features]
        newline = options.get("image_newline")
        break_score = None if newline is None else scores[0].new_zeros(1)
        packed, _ = pack(scores, *args, **{**options, "image_newline": break_score})
        give([image[:, 0] for image in packed])
        return pack(image_features, *args, **options)

    with exchanged(owner, "pack_image_features", both):
        yield


@contextmanager
def _merged(merger: Any, take: Take, give: Give) -> Iterator[None]:
    averaging = threading.local()

    def averaged(original: Any) -> Any:
        """The layer that merges blocks of features; of scores it takes the mean."""

        def forward(blocks: Tensor) -> Any:
            return blocks.mean(-1, keepdim=True) if getattr(averaging, "now", False) else original(blocks)

        return forward

    def follow(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> None:
        options = {name: value for name, value in options.items() if name != "image_features"}
        scores = torch.cat(take())[:, None]
        averaging.now = True
        try:
            give([merger.forward(scores, *args[1:], **options)[:, 0]])
        finally:
            averaging.now = False

    hook = merger.register_forward_hook(follow, with_kwargs=True)
    with wrapped(merger.merging_layer, "forward", averaged), _removed(hook):
        yield


@contextmanager
def _windowed(tower: Any, take: Take, give: Give) -> Iterator[None]:
    """The score travels as one more channel of the merged features, from the merger to the tower's output."""

    def widen(_: nn.Module, args: tuple[Any, ...], merged: Tensor) -> Tensor:
        scores = torch.cat(take()).reshape(merged.shape[0], -1).mean(1, keepdim=True)
        # Half precision would blur the score; the features come back from the wider type unchanged.
        dtype = working_dtype(merged)
        narrowed.to = merged.dtype
        return torch.cat([merged.to(dtype), scores.to(dtype)], dim=1)

    def narrow(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        # A plain tensor in older releases.
        wide = output if isinstance(output, Tensor) else output.pooler_output
        give([wide[:, -1]])
        features = wide[:, :-1].to(narrowed.to)
        if isinstance(output, Tensor):
            return features
        output.pooler_output = features
        return output

    narrowed = threading.local()
    hooks = (tower.merger.register_forward_hook(widen), tower.register_forward_hook(narrow))
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(_removed(hook))
        yield


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
