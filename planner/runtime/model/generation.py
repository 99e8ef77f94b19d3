"""What `generate` does to images before the first forward.

Newer releases of transformers encode images ahead of the loop and hand the forward their features in place of pixels.
A plan has to see the pixels before that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

#: Where `generate` runs the vision encoder; it is not there in releases whose forward does.
_ENTRY = "_maybe_prepare_encoder_kwargs_for_generation"


@contextmanager
def seeing_images(model: Any, see: Callable[[Tensor, dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Let `see` look at what `generate` is about to encode while the block runs.

    Args:
        model: whose `generate` is meant; nothing but one attribute of the object is set, and taken away again.
        see: gets the prompt's token ids and the arguments of the coming forward, and returns those to go on with.
    """
    original = getattr(model, _ENTRY, None)
    if original is None:
        yield
        return

    def entry(inputs: Tensor, model_kwargs: dict[str, Any], input_name: str | None, config: Any) -> Any:
        ids = inputs if input_name == "input_ids" else model_kwargs.get("input_ids")
        if ids is not None:
            model_kwargs = see(ids, model_kwargs)
        return original(inputs, model_kwargs, input_name, config)

    own = model.__dict__.get(_ENTRY)
    setattr(model, _ENTRY, entry)
    try:
        yield
    finally:
        delattr(model, _ENTRY)
        if own is not None:
            setattr(model, _ENTRY, own)
