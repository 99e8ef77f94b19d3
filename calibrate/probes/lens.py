"""What the answering token says layer by layer: its hidden state read as words by the logit lens (VisiPruner 5.2).

The hidden state of the last prompt token after each layer is sent through the final norm and the output embedding
(VisiPruner eq. 2, figure 4, tables 11 and 12). Recorded are the words it points to, how probable the model's own first
answer token is there, and its **settling layer**: the first one from which it stays the most probable.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.probes.base import ExecutedProbe, quantiles
from calibrate.probes.stats import Array, mean
from planner.errors import InputError, UnsupportedModelError
from planner.runtime import LayerView, observe
from planner.runtime.model.adapters import find_parts
from planner.spec import ModelSpec

_LEVELS = (0.25, 0.5, 0.75, 0.95)
#: Words that a summary names per layer, and samples it spells out.
_WORDS, _EXAMPLES = 5, 2


class LensProbe(ExecutedProbe):
    """Words of the answering token per layer.

    Args:
        samples: how many.
        words: most probable words per layer that are kept of each sample.

    Raises:
        InputError: no words.
    """

    name: ClassVar[str] = "lens"
    default_samples: ClassVar[int] = 32

    def __init__(self, samples: int | None = None, words: int = 7) -> None:
        super().__init__(samples)
        if words < 1:
            raise InputError(f"the logit lens cannot read {words} words", "Give words=1 or more")
        self.words = words

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples, "words": self.words}

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        super().check(spec, samples, positions)
        if self.words > spec.decoder.vocab_size:
            raise InputError(
                f"the logit lens cannot read {self.words} of {spec.decoder.vocab_size} words",
                f"Give {self.name}.words={LensProbe().words} or so",
            )

    def forwards(self, layers: int) -> int:
        return 1

    def run(self, batch: Batch) -> None:
        """Raises `UnsupportedModelError` if the decoder has no final norm, or makes words of several hidden states."""
        states, logits = _last_states(batch)
        answer = logits.argmax(dim=-1)  # [B]
        parts = find_parts(batch.model)
        head = batch.model.get_output_embeddings()
        probability, first, words = [], [], []
        for hidden in states:
            read = head(parts.tower.norm(hidden)).float().log_softmax(dim=-1)
            probability.append(read.gather(1, answer[:, None])[:, 0].exp())
            first.append(read.argmax(dim=-1) == answer)
            words.append(read.topk(self.words).indices)
        decode = batch.encoder.tokenizer.decode
        for b, sample in enumerate(batch.ids):
            spelled = [[decode([token]).strip() for token in layer[b].tolist()] for layer in words]
            text = {"prompt": batch.samples[b].prompt, "answer": decode([int(answer[b])]).strip(), "layers": spelled}
            self.table.add(
                sample,
                probability=torch.stack([layer[b] for layer in probability]).cpu().numpy(),
                first=torch.stack([layer[b] for layer in first]).cpu().numpy(),
                spelled=np.frombuffer(json.dumps(text, ensure_ascii=False).encode(), np.uint8),
            )

    def summary(self) -> dict[str, Any]:
        first = self.table.column("first")
        spelled = [json.loads(row.tobytes()) for row in self.table.rows("spelled")]
        settled = settling_layers(first)
        return {
            "answer_probability": mean(self.table.column("probability")),
            "answer_first": mean(first.astype(np.float64)),
            "settling_layer": {**mean(settled), "quantiles": quantiles(settled, _LEVELS)},
            "words": [_frequent([one["layers"][layer] for one in spelled]) for layer in range(first.shape[1])],
            "examples": spelled[:_EXAMPLES],
        }


def settling_layers(first: Array) -> Array:
    """First layer from which on the final answer is the most probable word, ``[S]`` from ``[S, L]``; the number of
    layers where it never is.
    """
    wrong = ~first.astype(bool)
    after_last_wrong = first.shape[1] - wrong[:, ::-1].argmax(axis=1)
    return np.where(wrong.any(axis=1), after_last_wrong, 0)


def _frequent(words: list[list[str]]) -> list[str]:
    """The words that most samples have, each counted once a sample; equally frequent ones in order of appearance."""
    found = Counter(word for one in words for word in dict.fromkeys(one) if word and word.isprintable())
    return [word for word, _ in found.most_common(_WORDS)]


def _last_states(batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The last row's hidden state after each layer, before the final norm: L of ``[B, d]``; and the model's logits
    ``[B, vocabulary]``.
    """
    parts = find_parts(batch.model)
    if parts.form.active is not None:
        raise UnsupportedModelError(
            f"the logit lens reads one hidden state a token, and {batch.model.config.model_type} makes its words of "
            "several",
            "Leave the probe out",
        )
    norm = getattr(parts.tower, "norm", None)
    if norm is None or batch.model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            "the logit lens needs the text decoder's final norm, .norm, and an output embedding", "Leave the probe out"
        )
    states: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def take(hidden: torch.Tensor) -> torch.Tensor:
        rows = last[0].to(hidden.device)
        return hidden[torch.arange(len(rows), device=hidden.device), rows]

    def look(view: LayerView) -> None:
        last[:] = [view.last]
        if view.layer:
            states.append(take(view.hidden))

    def before_norm(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        states.append(take(args[0]))

    hook = norm.register_forward_pre_hook(before_norm)
    try:
        with observe(batch.model, look):
            logits = batch.model(**batch.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        hook.remove()
    return states, logits
