"""What `generate` knows and the model's forward does not: where the prompt ends, and which images it brings.

Newer releases of transformers encode images ahead of the loop and hand the forward their features in place of pixels;
a plan has to see the pixels before that happens. Without a cache, and in assisted decoding, the forward gets the prompt
together with what was generated; a plan has to know the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from planner.errors import RuntimeStateError
from planner.runtime.model.exchange import Function, wrapped

#: Where `generate` runs the vision encoder; it is not there in releases whose forward does.
_ENTRY = "_maybe_prepare_encoder_kwargs_for_generation"
#: Ways of generating that keep a cache of their own kind.
_CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")

See = Callable[[Tensor, dict[str, Any]], dict[str, Any]]


def prompt_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The token ids that `generate` was called with, None where it was called with embeddings.

    Raises:
        RuntimeStateError: the prompt is to arrive in chunks.
    """
    config = kwargs.get("generation_config", args[1] if len(args) > 1 else None) or model.generation_config
    if kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None)) is not None:
        raise RuntimeStateError(
            "the prompt is to arrive in chunks (prefill_chunk_size), which a plan cannot prune",
            "Unset prefill_chunk_size",
        )
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point() else None


@contextmanager
def generating(model: Any, around: Callable[[Function], Function], see: See) -> Iterator[None]:
    """Stand around `generate`, and before the images it encodes, while the block runs.

    Args:
        model: whose `generate` is meant.
        around: makes the new `generate` of the old one.
        see: gets the prompt's token ids and the arguments of the coming forward before images are encoded, and returns
            those to go on with.
    """

    def seeing(original: Function) -> Function:
        def entry(inputs: Tensor, model_kwargs: dict[str, Any], input_name: str | None, config: Any) -> Any:
            ids = inputs if input_name == "input_ids" else model_kwargs.get("input_ids")
            return original(inputs, see(ids, model_kwargs) if ids is not None else model_kwargs, input_name, config)

        return entry

    def refusing(original: Function) -> Function:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeStateError(
                f"{original.__name__} batches requests over a paged cache, which a plan cannot shrink",
                "Use generate, or detach the plan",
            )

        return refuse

    with ExitStack() as stack:
        if hasattr(model, "generate"):
            stack.enter_context(wrapped(model, "generate", around))
        if hasattr(model, _ENTRY):
            stack.enter_context(wrapped(model, _ENTRY, seeing))
        for name in _CONTINUOUS:
            if hasattr(model, name):
                stack.enter_context(wrapped(model, name, refusing))
        yield
