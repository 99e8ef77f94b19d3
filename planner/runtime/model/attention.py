"""The attention hook: a function registered with transformers that stands before the model's own kernel.

A name that is registered as an attention function but not as a mask function silently loses the padding mask, so both
are registered, and both are taken out again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from planner.errors import RuntimeStateError, UnsupportedModelError

#: Kernels that a plan has been shown to be exact with.
KERNELS = ("sdpa", "eager")

_serial = itertools.count()

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass
class Call:
    """One call of the attention kernel.

    Attributes:
        layer: decoder layer index.
        module: the attention module.
        query: ``[B, H, q, dh]``; key, value: ``[B, Hkv, k, dh]``, rotated, as the kernel gets them.
        mask: ``[B, 1, q, k]`` or None.
        options: scaling, softcap, dropout and what else the family passes.
        kernel: the model's own attention function.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    kernel: Kernel

    @property
    def scaling(self) -> float:
        """Factor on the scores."""
        given = self.options.get("scaling")
        return float(given) if given is not None else float(self.query.shape[-1]) ** -0.5

    @property
    def softcap(self) -> float | None:
        """Cap on the scores, where the family has one."""
        cap = self.options.get("softcap")
        return None if cap is None else float(cap)

    def run(self) -> tuple[Tensor, Tensor | None]:
        """The kernel's output ``[B, q, H, dh]``, and its weights where it gives them."""
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, **self.options)


Handler = Callable[[Call], tuple[Tensor, Tensor | None]]


def check_kernel(implementation: str | None) -> str:
    """The name of the model's kernel, if a plan can stand before it.

    Raises:
        RuntimeStateError: flash attention, flex attention, or a function of the user's own.
    """
    name = implementation or "eager"
    if name not in KERNELS:
        raise RuntimeStateError(
            f"attention implementation '{name}' is not supported with a plan",
            'Use model.set_attn_implementation("sdpa") (or "eager") first',
        )
    return name


def _kernel(name: str, module: nn.Module) -> Kernel:
    if name != "eager":
        found: Kernel = AttentionInterface._global_mapping[name]
        return found
    for owner in type(module).__mro__:
        eager = getattr(sys.modules[owner.__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager  # type: ignore[no-any-return]
    raise UnsupportedModelError(
        f"{type(module).__name__} has no eager attention function that could be called",
        'Use attn_implementation="sdpa"',
    )


@contextmanager
def attention_hook(
    attentions: Mapping[int, nn.Module],
    handler: Handler,
    traced: Callable[[], bool] = lambda: False,
    idle: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Send every attention call of these modules, by layer, through `handler`; everything is put back on exit.

    Gives the name under which the modules find the hook.

    Args:
        traced: in compiled code, whether the handler is compiled too; otherwise the graph ends before it.
        idle: whether the handler has nothing to do now, so that the kernel can be called at once.

    Raises:
        RuntimeStateError: the model uses a kernel that is not supported.
    """
    configs: dict[int, Any] = {id(attention.config): attention.config for attention in attentions.values()}
    base = check_kernel(next(iter(configs.values()))._attn_implementation)
    layers = {id(attention): (index, _kernel(base, attention)) for index, attention in attentions.items()}

    def hooked(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        if id(module) not in layers:  # another tower with the same config
            return _kernel(base, module)(module, query, key, value, attention_mask, **options)
        index, kernel = layers[id(module)]
        return handler(Call(index, module, query, key, value, attention_mask, options, kernel))

    outside = torch.compiler.disable(hooked)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling():
            into = hooked if traced() else outside
        elif id(module) in layers and idle():
            into = layers[id(module)][1]
        else:
            into = hooked
        return into(module, query, key, value, attention_mask, **options)

    name = f"planner_{next(_serial)}"
    AttentionInterface._global_mapping[name] = attend
    AttentionMaskInterface._global_mapping[name] = AttentionMaskInterface._global_mapping[base]
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = name
        yield name
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)
