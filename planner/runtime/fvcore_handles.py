"""fvcore's `FlopCountAnalysis`, made to agree with ours.

    from planner.runtime.fvcore_handles import analysis
    2 * analysis(model, **inputs).total()       # the `exact` convention; also with a plan attached

fvcore counts a multiply-add as 1, so its totals are half of ours. As it comes, it skips fused attention and grouped
matrix products, which have no handler, and counts five FLOPs an element of a layer norm, which no one else does.

What handles cannot mend: fvcore traces the model, and tracing removes whatever the output does not depend on. A vision
layer behind the selected feature layer runs and is counted by ours (``vision_feature_layer=-2`` in LLaVA: one layer),
but not by fvcore; nor is what visual tokens do behind the last layer in which something reads them. A plan that probes
cannot be traced at all, and neither can a few families (Gemma 3).
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_count, get_shape


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Scores and weighted sums: ``B H Lq Lk (d_qk + d_v)``, by query heads."""
    query, key, value = (get_shape(each) for each in inputs[:3])
    return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _grouped_product(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Rows ``[N, K]`` each with the weights ``[G, K, M]`` of its own group."""
    rows, weights = (get_shape(each) for each in inputs[:2])
    return Counter({"grouped_mm": prod(rows) * weights[-1]})


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A convolution whose padding is a word, as in SigLIP's patch embedding."""
    shapes = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    return Counter({"conv": conv_flop_count(*shapes, transposed=False)})


def _elementwise(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Not counted. (A handler of None would not replace fvcore's own.)"""
    return Counter()


#: Operator name in a trace -> handler.
HANDLES: dict[str, Any] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::_grouped_mm": _grouped_product,
    "aten::_convolution_mode": _convolution,
    "aten::layer_norm": _elementwise,
    "aten::rms_norm": _elementwise,
}


class _Positional(torch.nn.Module):
    """A model whose keyword arguments are given by position, as tracing needs them; those without tensors are fixed."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, {**fixed, "use_cache": False, "return_dict": True}

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        output = self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed)
        return output[0]  # type: ignore[no-any-return]


def analysis(model: torch.nn.Module, **inputs: Any) -> FlopCountAnalysis:
    """fvcore's analysis of one forward pass with our handles set; warnings about elementwise operators are off.

    Args:
        model: a transformers model, with or without a plan attached.
        inputs: tensors by name, and other arguments of the forward, such as ``logits_to_keep=1``.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    fixed = {name: value for name, value in inputs.items() if name not in tensors}
    wrapped = _Positional(model, tuple(tensors), fixed).eval()
    found = FlopCountAnalysis(wrapped, tuple(tensors.values()))
    for name, handle in HANDLES.items():
        found.set_op_handle(name, handle)
    found.unsupported_ops_warnings(False)
    found.uncalled_modules_warnings(False)
    found.tracer_warnings("none")
    return found
