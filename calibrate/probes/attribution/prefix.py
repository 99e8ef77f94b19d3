"""One ordinary forward pass, keeping what every ablated pass shares.

The image comes before the question, and only rows after the image are ever ablated, so hidden states, keys and values
of all rows up to the last visual token (the *prefix*) are the same under every mask. They are computed once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from calibrate.probes.attribution.parts import AttributionParts
from calibrate.probes.attribution.rotary import same_rotation
from planner.errors import CalibrationError, InputError, UnsupportedModelError
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.tensors.layout import visual_rows
from planner.runtime.tensors.weights import working_dtype


@dataclass(frozen=True)
class LayerCapture:
    """One layer of one sample.

    H query heads, K key/value heads, n rows, T text rows after the image, e head size, r rotary size.

    Attributes:
        key_before: keys before the rotary embedding, ``[K, n, e]``.
        key, value: as attention reads them, ``[K, n, e]``.
        query: of the text rows, after the rotary embedding, ``[H, T, e]``.
        cos, sin: the rotary embedding, ``[n, r]``.
        visible: which keys a text row may attend to, ``[T, n]``.
        scaling: factor on the scores.
    """

    key_before: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    visible: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class PrefixCapture:
    """A sample's forward pass.

    Attributes:
        layers: one capture per decoder layer.
        visual: row numbers of the visual tokens, in order.
        start: first row after the last visual token.
        embeddings: the text rows as they enter layer 0, ``[T, d]``.
        position_ids: those of the text rows, ``[..., T]``.
        logits: the model's own, last row, ``[vocabulary]``.
    """

    layers: tuple[LayerCapture, ...]
    visual: torch.Tensor
    start: int
    embeddings: torch.Tensor
    position_ids: torch.Tensor
    logits: torch.Tensor

    @property
    def text_rows(self) -> int:
        """Rows after the image."""
        return self.embeddings.shape[0]


@dataclass
class _Recorder:
    """Collects one forward pass. `attend` and the hooks fill it."""

    start: int
    sample: str
    before: dict[int, torch.Tensor] = field(default_factory=dict)
    rotary: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    layers: dict[int, LayerCapture] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)

    def tower_hook(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self.entry = kwargs

    def key_hook(self, layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            self.before[layer] = output

        return hook

    def rotary_hook(self, layer: int) -> Any:
        def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("position_embeddings") is None:
                raise _no_rotary(layer)
            self.rotary[layer] = kwargs["position_embeddings"]

        return hook

    def attend(self, call: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer, key, value = call.layer, call.key, call.value
        for oddity in ("softcap", "s_aux"):
            if call.options.get(oddity) is not None:
                raise UnsupportedModelError(
                    f"layer {layer} attends with '{oddity}', which head attribution does not reproduce",
                    "Leave the attribution probe out for this model",
                )
        if not bool(torch.isfinite(key).all() & torch.isfinite(value).all()):
            raise CalibrationError(
                f"layer {layer} has NaN or infinite keys or values on sample {self.sample}",
                "Load the model in bfloat16 or float32, or drop the sample",
            )
        allowed = _allowed(call.mask, key)
        if bool(allowed[: self.start, self.start :].any()):
            raise UnsupportedModelError(
                f"in layer {layer} rows before the question see the question, so image rows change with the mask",
                "Head attribution needs causal attention; leave the probe out for this model",
            )
        before = self.before.pop(layer)
        # Projections give [1, n, K * e], norms [1, n, K, e] or already [1, K, n, e].
        if before.shape != key.shape:
            before = before.reshape(1, key.shape[2], key.shape[1], -1).transpose(1, 2)
        before = before[0]
        cos, sin = (table[0] if table.dim() == 3 else table for table in self.rotary.pop(layer))
        if cos.dim() != 2 or not same_rotation(before, key[0], cos, sin):
            raise _no_rotary(layer)
        work = working_dtype(key)
        self.layers[layer] = LayerCapture(
            key_before=before.to(work),
            key=key[0].to(work),
            value=value[0].to(work),
            query=call.query[0, :, self.start :].to(work),
            cos=cos.to(work),
            sin=sin.to(work),
            visible=allowed[self.start :],
            scaling=call.scaling,
        )
        return call.run()


def _allowed(mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
    """``[n, n]``: which keys each row may attend to, from a boolean or additive mask, or None for causal."""
    rows = key.shape[2]
    if mask is None:
        return torch.ones(rows, rows, dtype=torch.bool, device=key.device).tril()
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > torch.finfo(mask.dtype).min / 2


def _no_rotary(layer: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layer {layer} has no rotary embedding of the rotate-half form, so mean keys cannot be turned to positions",
        "Leave the attribution probe out for this model, or update transformers",
    )


@torch.no_grad()
def capture(
    model: Any, parts: AttributionParts, inputs: Mapping[str, torch.Tensor], sample: str = "?"
) -> PrefixCapture:
    """Run the model once on one sample and keep keys, values and text queries of every layer.

    Args:
        model: a Hugging Face vision-language model in evaluation mode; unchanged afterwards.
        parts: its parts, see `find_attribution_parts`.
        inputs: keyword arguments of its forward, batch 1.
        sample: the sample's name, for messages.

    Raises:
        InputError: more than one sample, no visual token, or no text after the image.
        UnsupportedModelError: attention is not causal over the question, or positions are not rotate-half rotary.
        CalibrationError: NaN or infinite keys or values.
    """
    input_ids = inputs.get("input_ids")
    if input_ids is None or input_ids.shape[0] != 1:
        raise InputError(
            "head attribution takes one sample at a time, given as input_ids of batch 1", "Loop over the samples"
        )
    visual = visual_rows(input_ids, parts.visual_ids)[0].nonzero().flatten()
    if visual.numel() == 0:
        raise InputError(f"sample {sample} has no visual token", "Give an image and a prompt with its placeholder")
    start, rows = int(visual[-1]) + 1, input_ids.shape[1]
    if start == rows:
        raise InputError(f"sample {sample} has no text after the image", "Put the question after the image")

    recorder = _Recorder(start, sample)
    hooks = [parts.tower.register_forward_pre_hook(recorder.tower_hook, with_kwargs=True)]
    for layer, attention in enumerate(parts.attentions):
        hooks.append(parts.key_source(layer).register_forward_hook(recorder.key_hook(layer)))
        hooks.append(attention.register_forward_pre_hook(recorder.rotary_hook(layer), with_kwargs=True))
    try:
        with attention_hook(dict(enumerate(parts.attentions)), recorder.attend):
            # `use_cache=False` also keeps a model's own cache classes out of the way.
            output = model(**{**inputs, "use_cache": False})
    finally:
        for hook in hooks:
            hook.remove()
    positions = recorder.entry.get("position_ids")
    if positions is None:
        positions = torch.arange(rows, device=input_ids.device)[None]
    return PrefixCapture(
        layers=tuple(recorder.layers[layer] for layer in range(parts.layers)),
        visual=visual,
        start=start,
        embeddings=recorder.entry["inputs_embeds"][0, start:],
        position_ids=positions[..., start:],
        logits=output.logits[0, -1],
    )
