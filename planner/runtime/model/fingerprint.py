"""A fingerprint of a model, so that image streams of different models are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from planner.runtime.model.weights import is_packed, offloaded, weights_of

#: Elements looked at in each weight, evenly spread over it.
_SAMPLE = 64
#: Entries of a configuration that say where it comes from and not what it computes.
_ORIGIN = ("transformers_version", "dtype", "torch_dtype")


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's configuration, a sample of every weight and its extremes; the same in every process and on
    every device. Unlike plans, streams are bound to the number format: two formats have two.

    Adapters count with which of them are active. Weights are looked at when this is called: one that is changed later,
    as by another adapter, is not noticed.

    Raises:
        UnsupportedModelError: a weight is on no device and cannot be looked at.
        InputError: weights are not finite.
    """
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(_facts(config.to_dict()), sort_keys=True, default=str).encode())
    for name, weight in _weights(model):
        flat = (weight.dequantize() if is_packed(weight) else weight).detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].double().cpu()
        digest.update(f"{name}:{tuple(weight.shape)}:{weight.dtype}".encode() + sample.numpy().tobytes())
    # Every element, for its part in the extremes; not finite ones are refused.
    digest.update(weights_of(model).digest.encode())
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters"):
            state = (module.active_adapters, module.disable_adapters, getattr(module, "scaling", None))
            # A wrapped model answers these too, by methods.
            digest.update(f"{name}:{[one for one in state if not callable(one)]}".encode())
    return digest.hexdigest()


def _facts(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {
        name: _facts(value) for name, value in values.items() if not str(name).startswith("_") and name not in _ORIGIN
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}", offloaded(module, name) if weight.is_meta else weight
