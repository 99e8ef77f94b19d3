"""Head ablation done literally: the whole model, once per mask, the whole attention matrix, one query head at a time.

Slow and obvious. In every layer, a text row of an ablated head attends to keys and values in which the visual columns
were replaced by the mean image's; everything else attends as usual. Nothing is shared between masks and nothing of
`calibrate.probes.attribution` is used.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

_NAME = "literal_ablation"


class Literal:
    """Collects mean keys and values, and runs ablated forwards.

    Args:
        model: a vision-language model whose attention modules are ``*.self_attn`` with ``k_proj`` (and perhaps
            ``k_norm``).
        image_token: id of visual tokens.
    """

    def __init__(self, model: Any, image_token: int) -> None:
        self.model, self.image_token = model, image_token
        self.tower = model.get_decoder()
        self.mean: list[tuple[torch.Tensor, torch.Tensor]] = []

    def average(self, samples: list[dict[str, torch.Tensor]]) -> None:
        """Mean keys before rotary and mean values of the visual tokens, ``[V, K, e]`` per layer."""
        totals: dict[int, list[torch.Tensor]] = {}
        for inputs in samples:
            visual = inputs["input_ids"][0] == self.image_token
            kept: dict[str, torch.Tensor] = {}
            hooks = []
            for index, layer in enumerate(self.tower.layers):
                for part in ("k_proj", "k_norm", "v_proj"):
                    module = getattr(layer.self_attn, part, None)
                    if module is not None:
                        hooks.append(module.register_forward_hook(self._keep(kept, f"{index}.{part}")))
            self.model(**inputs, use_cache=False)
            for hook in hooks:
                hook.remove()
            for index, layer in enumerate(self.tower.layers):
                key = kept.get(f"{index}.k_norm", kept[f"{index}.k_proj"])
                size = layer.self_attn.head_dim
                if key.dim() == 3 and key.shape[0] != len(visual):  # Gemma normalises after the transposition
                    key = key.transpose(0, 1)
                pair = [one.reshape(len(visual), -1, size)[visual] for one in (key, kept[f"{index}.v_proj"])]
                so_far = totals.setdefault(index, [torch.zeros_like(one) for one in pair])
                totals[index] = [total + one for total, one in zip(so_far, pair, strict=True)]
        self.mean = [tuple(total / len(samples) for total in totals[index]) for index in sorted(totals)]  # type: ignore[misc]

    @staticmethod
    def _keep(kept: dict[str, torch.Tensor], name: str) -> Any:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            kept[name] = output[0]

        return hook

    def logits(
        self,
        inputs: dict[str, torch.Tensor],
        heads: torch.Tensor,
        rows: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last row's logits of one forward; ``heads [L, H]``, ``rows [T]``, ``image [V]``, True is intact."""
        visual = (inputs["input_ids"][0] == self.image_token).nonzero().flatten()
        start = int(visual[-1]) + 1
        tables: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        index_of = {layer.self_attn: index for index, layer in enumerate(self.tower.layers)}

        def remember(module: Any, _args: Any, kwargs: Any) -> None:
            tables[module] = kwargs["position_embeddings"]

        def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> Any:
            layer = index_of[module]
            cos, sin = tables[module]
            mean_key, mean_value = self.mean[layer]
            out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[-1], dtype=query.dtype)
            for head in range(query.shape[1]):
                kv_head = head * key.shape[1] // query.shape[1]
                for row in range(query.shape[2]):
                    k, v = key[0, kv_head].clone(), value[0, kv_head].clone()
                    if row >= start:
                        for number, column in enumerate(visual.tolist()):
                            intact = heads[layer, head]
                            intact = intact and (rows is None or rows[row - start])
                            intact = intact and (image is None or image[number])
                            if not intact:
                                k[column] = turn(mean_key[number, kv_head], cos[0, column], sin[0, column])
                                v[column] = mean_value[number, kv_head]
                    scores = k @ query[0, head, row] * scaling
                    scores = scores.masked_fill(mask[0, 0, row] < 0, -torch.inf)
                    out[0, row, head] = torch.softmax(scores, 0) @ v
            return out, None

        hooks = [layer.self_attn.register_forward_pre_hook(remember, with_kwargs=True) for layer in self.tower.layers]
        config = self.tower.config
        before = config._attn_implementation
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, eager_mask)
        config._attn_implementation = _NAME
        try:
            return self.model(**inputs, use_cache=False).logits[0, -1]  # type: ignore[no-any-return]
        finally:
            config._attn_implementation = before
            for hook in hooks:
                hook.remove()


def turn(key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of one key, pair by pair: dimensions i and i + half are a point, turned by angle i."""
    half = len(cos) // 2
    turned = key.clone()
    for i in range(half):
        turned[i] = key[i] * cos[i] - key[i + half] * sin[i]
        turned[i + half] = key[i + half] * cos[i] + key[i] * sin[i]
    return turned
