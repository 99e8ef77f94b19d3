"""Take the fingerprint of a loaded model's weights (`planner.weights` says what two of them tell).

What counts is what the model computes with: adapters that PEFT applies at run time are added to the weights they
adapt, so a model with adapters, the same one merged, and one whose adapters are switched off are what they compute.
Weights are read where they lie, quantised and offloaded ones too, one at a time.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import InputError, UnsupportedModelError
from planner.runtime.model.adapters import unwrap
from planner.weights import SAMPLES, TensorFacts, Weights, hashed, label

#: Runs of a tensor that its norm is taken over, and elements of each.
_RUNS, _RUN = 64, 1024
#: What an adapter's parameters are called that `get_delta_weight` accounts for.
_LOW_RANK = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
#: Formats of packed numbers, or of numbers in units that are elsewhere, and the precision they stand for.
_PACKED = {torch.int8: "int8", torch.uint8: "int4", torch.int16: "int4", torch.int32: "int4"}
_PACKED |= {getattr(torch, name): "int8" for name in ("float8_e4m3fn", "float8_e5m2")}

#: Name, values where they can be read, and number format.
Named = tuple[str, Tensor | None, str]

#: Fingerprints by model, with the state the weights were in.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[bool, Weights], dict[bytes, str]]] = (
    weakref.WeakKeyDictionary()
)


def weights_of(model: Any, full: bool = False) -> Weights:
    """The fingerprint of a model's weights.

    It is taken once, and again where tensors were exchanged, written in place, or adapters switched; writing through
    ``tensor.data`` is not noticed.

    Args:
        model: a transformers model, also wrapped by PEFT or `torch.compile`.
        full: digest over all bytes, too; slow.

    Raises:
        InputError: weights are not finite; they are named.
        UnsupportedModelError: weights are on no device (``meta``), or none can be read.
    """
    base = unwrap(model)
    state = _state(base)
    found = _known.get(base)
    if found is None or found[0] != state:
        found = _known[base] = (state, {}, {})
    if full not in found[1]:
        found[1][full], names = _take(base, full)
        found[2].update(names)
    return found[1][full]


def names_of(model: Any, rows: tuple[bytes, ...]) -> list[str]:
    """What the tensors of a fingerprint are called in a model that `weights_of` was asked about."""
    known = _known.get(unwrap(model))
    return [] if known is None else [known[2][row] for row in rows if row in known[2]]


def _state(model: nn.Module) -> list[Any]:
    """Changes when weights do, at the cost of a look at each tensor's head."""
    state: list[Any] = []
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                version = None if tensor.is_inference() else tensor._version
                # Offloading puts a new placeholder after each use.
                state.append(None if tensor.is_meta else (id(tensor), _address(tensor), version))
        if _adapts(module):
            settings = (module.active_adapters, module.disable_adapters, getattr(module, "merged_adapters", None))
            state.append(repr((settings, getattr(module, "scaling", None))))
    return state


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a subclass without storage of its own, as torchao's
        return 0


def _take(model: nn.Module, full: bool) -> tuple[Weights, dict[bytes, str]]:
    rows: dict[str, TensorFacts] = {}
    not_finite: list[str] = []
    formats: Counter[str] = Counter()
    digest = hashlib.sha256()
    for name, tensor, kind in _tensors(model):
        formats[kind] += 1
        if tensor is None:
            continue
        entry = label(name, tensor.shape)
        rows[entry] = found = _row(tensor)
        if not all(map(torch.isfinite, map(torch.tensor, found[:3]))):
            not_finite.append(name)
        if full:
            digest.update(f"{entry}:{tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    if not_finite:
        more = f" and {len(not_finite) - 3} more" if len(not_finite) > 3 else ""
        raise InputError(
            f"{len(not_finite)} of {len(rows)} weights of the model are not finite: {', '.join(not_finite[:3])}{more}",
            "Restore the checkpoint, or load it in a wider number format (--dtype bfloat16 or float32)",
        )
    if not rows:
        raise UnsupportedModelError("none of the model's weights can be read", "Load them in an ordinary format")
    names = {hashed(entry): entry for entry in rows}
    # One quantised weight makes a quantised model.
    kind = next((kind for kind in ("int4", "int8") if formats[kind]), formats.most_common(1)[0][0])
    return Weights.of(kind, rows, digest.hexdigest() if full else None), names


@torch.no_grad()
def _row(tensor: Tensor) -> TensorFacts:
    flat = tensor.detach().reshape(-1)
    count = flat.numel()
    if not count:
        return TensorFacts(0.0, 0.0, 0.0, ())
    low, high = torch.aminmax(flat)
    runs = flat if count <= _RUNS * _RUN else flat[: count // _RUNS * _RUNS].view(_RUNS, -1)[:, :_RUN]
    rms = runs.double().square().mean().sqrt()
    picked = flat[torch.arange(min(count, SAMPLES), device=flat.device) * (count // min(count, SAMPLES))].double()
    figures = torch.cat([torch.stack([rms, low.double(), high.double()]), picked]).tolist()
    return TensorFacts(figures[0], figures[1], figures[2], figures[3:])


def _tensors(model: nn.Module) -> Iterator[Named]:
    """Every weight and stored buffer."""
    below: list[str] = []
    for prefix, module in model.named_modules():
        if any(prefix.startswith(name) for name in below):
            continue
        if _adapts(module):  # what lies below is read with the adapter, or is the adapter's
            yield from _adapted(prefix, module)
            below.append(f"{prefix}.")
        elif hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            for name, inner in _in_use(module).named_modules(prefix=prefix):
                yield from _of(name, inner)
            below.append(f"{prefix}.")
        else:
            yield from _of(prefix, module)


def _of(prefix: str, module: nn.Module) -> Iterator[Named]:
    for name, tensor in (*module._parameters.items(), *_stored(module)):
        if tensor is not None:
            yield f"{prefix}.{name}".lstrip("."), *_values(module, name, tensor)


def _stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is None or name in module._non_persistent_buffers_set:
            continue
        if buffer.is_floating_point() or (buffer.dtype in _PACKED and buffer.dim() > 1):
            yield name, buffer


def _values(module: nn.Module, name: str, tensor: Tensor) -> tuple[Tensor | None, str]:
    """A weight as numbers, None where only its own kernel reads it, and its format."""
    if tensor.is_meta:
        tensor = offloaded(module, name)
    state: Any = getattr(tensor, "quant_state", None)
    scale: Any = getattr(tensor, "SCB", None)
    if state is not None:  # bitsandbytes, 4 bits
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(tensor.data, state), "int4"
    if scale is not None and tensor.dtype == torch.int8:  # bitsandbytes, 8 bits
        return tensor.data.float() * scale.to(tensor.device).float().unsqueeze(1) / 127, "int8"
    if is_packed(tensor):
        return tensor.dequantize(), _quantised_kind(tensor)
    if tensor.dtype in _PACKED or not (tensor.is_floating_point() or tensor.is_complex()):
        return None, _PACKED.get(tensor.dtype, "integers")
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor, str(tensor.dtype).removeprefix("torch.")


def is_packed(tensor: Tensor) -> bool:
    """Whether a tensor holds a quantised form that has to be unpacked to be read (torchao, quanto)."""
    return hasattr(tensor, "dequantize") and type(tensor) not in (Tensor, nn.Parameter)


def _quantised_kind(tensor: Any) -> str:
    """By the bytes that its parts hold."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    held = sum(_nbytes(getattr(tensor, name)) for name in names)
    return "int4" if 0 < held <= 0.75 * tensor.numel() else "int8"


def _nbytes(part: Any) -> int:
    inner = part.__tensor_flatten__()[0] if hasattr(part, "__tensor_flatten__") and type(part) is not Tensor else []
    return sum(_nbytes(getattr(part, name)) for name in inner) if inner else int(part.untyped_storage().nbytes())


def _adapts(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "disable_adapters") and hasattr(module, "active_adapters")


def _in_use(wrapper: Any) -> nn.Module:
    """Of a module that PEFT trains as a whole: the copy that acts now."""
    on = (
        []
        if wrapper.disable_adapters
        else [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    )
    return wrapper.modules_to_save[on[0]] if on else wrapper.original_module  # type: ignore[no-any-return]


def _adapted(prefix: str, layer: Any) -> Iterator[Named]:
    """The weights of a layer that PEFT wraps, as they act now; what is no sum stands for itself."""
    on = [] if layer.disable_adapters else [name for name in layer.active_adapters if name not in layer.merged_adapters]
    deltas = [
        name for name in on if name in getattr(layer, "lora_A", {}) or name in getattr(layer, "lora_embedding_A", {})
    ]
    for name, tensor, kind in _of(prefix, layer.base_layer):
        if name.endswith(".weight") and tensor is not None:
            for adapter in deltas:
                tensor = tensor.float() + layer.get_delta_weight(adapter).to(tensor.device).float()
        yield name, tensor, kind
    for name, parameter in layer.named_parameters():
        parts = name.split(".")
        known = parts[0] == "base_layer" or (parts[0] in _LOW_RANK and parts[-1] != "bias")
        if not known and any(adapter in parts for adapter in on):
            yield f"{prefix}.{name}", parameter, str(parameter.dtype).removeprefix("torch.")


def offloaded(module: nn.Module, name: str) -> Tensor:
    """A weight that accelerate has put away.

    Raises:
        UnsupportedModelError: it is nowhere.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        held = getattr(one, "weights_map", None)
        if held is not None:
            return held[name]  # type: ignore[no-any-return]
    raise UnsupportedModelError(
        f"the weight '{name}' of {type(module).__name__} is on no device, so the model cannot be told from others",
        "Load the weights: a model on 'meta' has none",
    )
