"""One forward over a whole sequence under explicit edges, with every layer's attention written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from planner.schedule import Redistribute

#: Names of what stands in the place of attention in recurrent layers.
RECURRENT = ("linear_attn", "conv")


@dataclass
class LayerRule:
    """What one layer is told, for ``N`` tokens.

    Attributes:
        edges: ``[B, N, N]`` True where a query row (first) may see a key (second), if the model itself allows it.
        merge_token, merge_rows: per sample the visual token whose value stands for every visual token's (None: there is
            none), and the ``[B, N]`` query rows for which it does.
        skipped: ``[B, N]`` rows that leave the layer as they came.
        sequences: where the layer is recurrent, per sample the rows of each sequence it runs over, from a fresh state
            each. A row in none of them does not run.
        redistribute, redistribute_rows: the weight edit and the ``[B, N]`` query rows it touches.
    """

    edges: Tensor
    merge_token: list[int | None] | None = None
    merge_rows: Tensor | None = None
    redistribute: Redistribute | None = None
    redistribute_rows: Tensor | None = None
    skipped: Tensor | None = None
    sequences: list[list[list[int]]] = field(default_factory=list)


@dataclass
class Record:
    """What one layer did. Heads are query heads; keys and values are repeated for them.

    Attributes:
        inputs: ``[B, N, d]`` hidden states entering the layer; of several a token, the one that it runs on.
        given: all of them, as they are given to it.
        present: ``[B, P]`` prompt tokens that the layer computes, where the caller filled it in.
        query, key, value: ``[B, H, N, dh]``; read: the values as text rows read them, after a merge the merge token's.
        allowed: ``[B, N, N]`` the model's own mask, before any rule; seen: what is left of it under the rule.
        weights: ``[B, H, N, N]`` under the rule, before any redistribution.
        scores: ``[B, H, N, N]`` before any mask.
    """

    inputs: Tensor
    given: Tensor
    present: Tensor = field(default=None)  # type: ignore[assignment]
    query: Tensor = field(default=None)  # type: ignore[assignment]
    key: Tensor = field(default=None)  # type: ignore[assignment]
    value: Tensor = field(default=None)  # type: ignore[assignment]
    read: Tensor = field(default=None)  # type: ignore[assignment]
    allowed: Tensor = field(default=None)  # type: ignore[assignment]
    seen: Tensor = field(default=None)  # type: ignore[assignment]
    weights: Tensor = field(default=None)  # type: ignore[assignment]
    scores: Tensor = field(default=None)  # type: ignore[assignment]

    @property
    def embeddings(self) -> Tensor:
        """``[B, N, d]`` of the first layer: of several hidden states a token the first is its embedding."""
        return self.given if self.given.ndim == 3 else self.given[0]


def text_tower(model: Any) -> Any:
    """The module that owns the decoder layers."""
    text_config = model.config.get_text_config()
    return next(m for m in model.modules() if getattr(m, "config", None) is text_config and hasattr(m, "layers"))


def forward(
    model: Any,
    inputs: dict[str, Tensor],
    rule_of: Callable[[int], LayerRule],
    visual: Tensor,
    members: Sequence[dict[int, list[int]]] = (),
    gone: Tensor | None = None,
) -> tuple[Tensor, list[Record]]:
    """Run the model once, with some tokens joined on entry, and positions that do not count those that are `gone`.

    Returns logits ``[B, N, V]`` and one record a layer.
    """
    tower = text_tower(model)
    records: list[Record] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        record, rule = records[module.layer_idx], rule_of(module.layer_idx)
        groups = query.shape[1] // key.shape[1]
        record.query, record.key = query, key.repeat_interleave(groups, dim=1)
        record.value = record.read = value.repeat_interleave(groups, dim=1)
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        record.scores = torch.einsum("bhqd,bhkd->bhqk", record.query, record.key) * scaling
        if kwargs.get("softcap") is not None:
            record.scores = kwargs["softcap"] * torch.tanh(record.scores / kwargs["softcap"])
        record.allowed = (attention_mask[:, 0] > -1).expand(query.shape[0], -1, -1)
        record.seen = record.allowed & rule.edges
        record.weights = softmax_over(record.scores, record.seen)
        weights = record.weights
        if rule.redistribute is not None:
            weights = redistributed(weights, record.inputs, visual, rule)
        output = torch.einsum("bhqk,bhkd->bhqd", weights, record.value)
        if rule.merge_token is not None and rule.merge_rows is not None:
            record.read = _exchanged(record.value, rule.merge_token, visual)
            merged = torch.einsum("bhqk,bhkd->bhqd", weights, record.read)
            output = torch.where(rule.merge_rows[:, None, :, None], merged, output)
        return output.transpose(1, 2).contiguous(), None

    def remember(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        active = getattr(tower.config, "altup_active_idx", None)
        records.append(Record(inputs=given if active is None else given[active], given=given))

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs["inputs_embeds"] = joined(kwargs["inputs_embeds"], members)
        if gone is not None:
            given = kwargs.get("position_ids")
            places = torch.arange(gone.shape[1])[None] if given is None else given
            before = [[int(row[:place].sum()) for place in range(len(row))] for row in gone]
            kwargs["position_ids"] = places - torch.tensor(before)
        if kwargs.get("deepstack_visual_embeds"):
            kwargs["deepstack_visual_embeds"] = [_joined_flat(f) for f in kwargs["deepstack_visual_embeds"]]
        return args, kwargs

    def _joined_flat(features: Tensor) -> Tensor:
        wide = features.new_zeros(*visual.shape, features.shape[-1])
        wide[visual] = features
        return joined(wide, members)[visual]

    def skip(_: Any, args: Any, output: Any) -> Any:
        record, rule = records[-1], rule_of(len(records) - 1)
        if rule.skipped is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.where(rule.skipped[..., None], record.given, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def in_sequences(mixer: Any, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(hidden_states: Tensor, **_: Any) -> Tensor:
            output = torch.zeros_like(hidden_states)
            for sample, sequences in enumerate(rule_of(mixer.layer_idx).sequences):
                for rows in sequences:
                    output[sample, rows] = original(hidden_states[sample, rows][None])[0]
            return output

        return run

    mixers = [child for layer in tower.layers for name, child in layer.named_children() if name in RECURRENT]
    hooks = [layer.register_forward_hook(skip) for layer in tower.layers]
    hooks += [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in tower.layers]
    if members or gone is not None:
        hooks.append(tower.register_forward_pre_hook(enter, with_kwargs=True))
    try:
        for mixer in mixers:
            mixer.forward = in_sequences(mixer, mixer.forward)
        with torch.no_grad(), _attention(tower.config, attend):
            return model(**inputs, use_cache=False).logits, records
    finally:
        for mixer in mixers:
            del mixer.forward
        for hook in hooks:
            hook.remove()


def joined(x: Tensor, members: Sequence[dict[int, list[int]]]) -> Tensor:
    """``[B, N, d]`` with every such token replaced by the mean."""
    changed = x.clone()
    for sample, groups in enumerate(members):
        for token, group in groups.items():
            changed[sample, token] = torch.stack([x[sample, member] for member in group]).mean(0)
    return changed


def softmax_over(scores: Tensor, allowed: Tensor) -> Tensor:
    """Weights ``[B, H, q, k]`` over the allowed keys; a row without any (padding) is all zeros."""
    shown = scores.masked_fill(~allowed[:, None], float("-inf"))
    return torch.where(allowed.any(-1)[:, None, :, None], torch.softmax(shown, dim=-1), 0.0).nan_to_num(0.0)


def _exchanged(value: Tensor, token: list[int | None], visual: Tensor) -> Tensor:
    """Values with one visual token's in the place of every visual token's."""
    exchanged = value.clone()
    for sample, only in enumerate(token):
        if only is not None:
            exchanged[sample, :, visual[sample]] = value[sample, :, only : only + 1]
    return exchanged


def redistributed(weights: Tensor, inputs: Tensor, visual: Tensor, rule: LayerRule) -> Tensor:
    """VAR: in image-centric heads a share p of the weight on visual sinks goes to the other visual tokens pro rata."""
    change, rows = rule.redistribute, rule.redistribute_rows
    assert change is not None and rows is not None
    edited = weights.clone()
    for sample in range(weights.shape[0]):
        rms = (inputs[sample].square().mean(-1, keepdim=True) + 1e-6).sqrt()
        phi = (inputs[sample] / rms)[:, list(change.sink_dims)].abs().max(-1).values
        sinks = visual[sample] & (phi >= change.tau)
        others = visual[sample] & ~sinks
        for row in rows[sample].nonzero()[:, 0].tolist():
            for head in range(weights.shape[1]):
                line = weights[sample, head, row]
                total, rest = line[visual[sample]].sum(), line[others].sum()
                if total < change.min_visual or rest < change.rho * total or rest == 0:
                    continue
                moved = change.p * line[sinks].sum()
                edited[sample, head, row, sinks] = line[sinks] * (1 - change.p)
                edited[sample, head, row, others] = line[others] * (1 + moved / rest)
    return edited


@contextmanager
def _attention(config: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let the text tower's layers call this function, with the full float mask the model builds for eager attention."""
    before = config._attn_implementation
    AttentionInterface.register("reference", function)
    AttentionMaskInterface.register("reference", eager_mask)
    config._attn_implementation = "reference"
    try:
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop("reference")
        AttentionMaskInterface._global_mapping.pop("reference")
