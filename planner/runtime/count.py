"""FLOPs that a counter measures on a running model: the measured side of the `exact` convention.

    with FlopCounter() as counter:
        model(**inputs)
    counter.total, counter.by_operator, counter.by_module(depth=3)

It is torch's `FlopCounterMode` (2 FLOPs a multiply-add, attention as the rectangle a dense kernel computes), repaired:

* fused attention on CPU counts 0 in torch, and grouped queries fail in older releases: here every fused variant counts
  by its query heads, ``2 B H Lq Lk (d_qk + d_v)``;
* the grouped matrix product of mixtures of experts counts 0: here ``2 N K M``, rows times both sides of one expert;
* the outer product that fills a rotary table (``n dh / 2`` products, no addition) is left out. Older releases of
  transformers write it as a matrix product, newer ones elementwise; the count must not depend on that.

Not counted, here as in torch: norms, softmax, activations, pooling, sampling and whatever else is elementwise.

Torch's registry of formulas is read and never changed; all hooks are gone when the block ends, after an exception too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_aten = torch.ops.aten
#: Only these occur in rotary tables.
_MATRIX_PRODUCTS = (_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm)
_FUSED_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


def attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of one fused attention call.

    Args:
        query: shape ``[B, H, Lq, d_qk]``.
        key: shape ``[B, Hkv, Lk, d_qk]``; each key/value head serves ``H / Hkv`` query heads.
        value: shape ``[B, Hkv, Lk, d_v]``.
    """
    batch, heads, queries, key_size = query
    return 2 * batch * heads * queries * key[-2] * (key_size + value[-1])


def grouped_product_flops(rows: tuple[int, ...], weights: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of a grouped matrix product, in which each row meets the weights of its own group.

    Args:
        rows: shape ``[N, K]``, the groups one after the other, or ``[G, N, K]``.
        weights: shape ``[G, K, M]``, or ``[K, M]`` with K or M divided among the groups.
    """
    groups = rows[0] if len(rows) == len(weights) == 3 else 1
    return 2 * groups * prod(rows[-2:]) * weights[-1]


class FlopCounter:
    """Context manager that counts the FLOPs executed inside it, on any device, `meta` included. Not reentrant.

    Attributes hold their values after the block as well as inside it.
    """

    def __init__(self) -> None:
        self._inside_tables = 0
        repairs: dict[Any, Callable[..., int]] = {
            **{getattr(_aten, name): attention_flops for name in _FUSED_ATTENTION if hasattr(_aten, name)},
            **dict.fromkeys(_grouped_products(), grouped_product_flops),
            **{packet: self._outside_tables(flop_registry[packet]) for packet in _MATRIX_PRODUCTS},
        }
        self._counter = FlopCounterMode(display=False, custom_mapping=repairs)
        self._hooks: list[Any] = []

    def __enter__(self) -> FlopCounter:
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._counter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._counter.__exit__(kind, error, trace)
        finally:
            for hook in self._hooks:
                hook.remove()
            self._inside_tables = 0

    @property
    def total(self) -> int:
        """FLOPs counted."""
        return self._counter.get_total_flops()

    @property
    def by_operator(self) -> dict[str, int]:
        """FLOPs by operator name, such as ``mm`` or ``_grouped_mm``; they sum to `total`."""
        counts = self._counter.get_flop_counts().get("Global", {})
        return {str(packet).rpartition(".")[2]: flops for packet, flops in counts.items() if flops}

    def by_module(self, depth: int | None = None) -> dict[str, int]:
        """FLOPs by qualified module name, such as ``LlamaModel.layers.0``; a parent includes its children.

        Args:
            depth: leave out modules deeper than this many names (1 is the model itself); all of them where not given.
        """
        counts = self._counter.get_flop_counts()
        names = (name for name in counts if name != "Global" and (depth is None or name.count(".") < depth))
        totals = {name: sum(counts[name].values()) for name in names}
        return {name: flops for name, flops in totals.items() if flops}

    def _outside_tables(self, formula: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, **kwargs: Any) -> int:
            return 0 if self._inside_tables else formula(*args, **kwargs)

        count._get_raw = True  # type: ignore[attr-defined]  # the registered formula already takes tensors
        return count

    def _enter_module(self, module: torch.nn.Module, _: Any) -> None:
        self._inside_tables += _is_rotary_table(module)

    def _leave_module(self, module: torch.nn.Module, *_: Any) -> None:
        self._inside_tables -= _is_rotary_table(module)


def _is_rotary_table(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "inv_freq", None), torch.Tensor)


def _grouped_products() -> Iterator[Any]:
    """The grouped products that exist here: torch's, and the one transformers brings for where torch's cannot run."""
    for namespace, name in (("aten", "_grouped_mm"), ("transformers", "grouped_mm_fallback")):
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is not None:
            yield packet
