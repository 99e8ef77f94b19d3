"""Requests of several people answered as one batch: prompts are joined by padding on the left, and every token goes to
its own request as soon as it is chosen.

`generate` runs the batch. A stopping criterion is all that is needed to hear its tokens and to end single rows, and a
logits processor draws every row's tokens from a generator of its own. A row that has ended is computed until the batch
has, and what it says then goes to nobody.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TopPLogitsWarper

from planner.runtime.attach import Handle

Inputs = dict[str, Tensor]


class Row(Protocol):
    """One request of a batch.

    Attributes:
        inputs: what the processor gives for its prompt alone, ``[1, n]``, not padded.
        limit: most tokens of its answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        seed: of its draws; None draws anew.
    """

    @property
    def inputs(self) -> Inputs: ...
    @property
    def limit(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def seed(self) -> int | None: ...

    def begin(self, visual: tuple[int, ...]) -> None:
        """The prompt is done; `visual` tokens of it ran in each layer, none are told of a model without a plan."""

    def take(self, token: int) -> bool:
        """The answer's next token. True: the answer ends with it."""


def sharing(model: Any) -> Any:
    """A second model over the same weights, so that another plan can be attached to it. Answers never end by
    themselves on it: `Row.take` says when.

    Raises:
        RuntimeStateError: a plan is attached to the model.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    found = copy.deepcopy(model, shared)
    found.generation_config.eos_token_id = None
    return found


def shape_of(inputs: Inputs) -> Hashable:
    """What inputs must have in common to be joined: their names, and the shapes that padding does not make equal."""
    ids = inputs["input_ids"]
    return tuple(sorted((n, str(v.dtype), () if v.shape == ids.shape else v.shape[1:]) for n, v in inputs.items()))


def join(rows: Sequence[Inputs], pad_id: int) -> Inputs:
    """One batch, its prompts padded on the left.

    Args:
        rows: inputs of one sample each, of one `shape_of`.
        pad_id: token of the padding.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if parts[0].shape == rows[0]["input_ids"].shape:
            fill = pad_id if name == "input_ids" else 0
            parts = [pad(part, (width - part.shape[1], 0), value=fill) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def answer(model: Any, rows: Sequence[Row], pad_id: int, handle: Handle | None = None) -> None:
    """Answer all rows; returns when the last has ended.

    Args:
        model: one that `sharing` made, on any device.
        rows: requests whose inputs have one `shape_of`.
        pad_id: token of the padding.
        handle: of the plan that is attached.

    Raises:
        Exception: whatever the model raises, for all rows.
    """
    joined = join([row.inputs for row in rows], pad_id)
    inputs = {n: v.to(model.device, model.dtype if v.is_floating_point() else None) for n, v in joined.items()}
    reporting = handle if len(inputs) > len(_TEXT & inputs.keys()) else None
    with torch.inference_mode():
        model.generate(
            **inputs,
            max_new_tokens=max(row.limit for row in rows),
            do_sample=False,
            num_beams=1,
            pad_token_id=pad_id,
            stopping_criteria=StoppingCriteriaList([_Delivery(rows, reporting)]),
            logits_processor=LogitsProcessorList([_Draws(rows)] if any(row.temperature for row in rows) else []),
        )


#: Inputs of a prompt without an image, after which there is no report.
_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class _Delivery(StoppingCriteria):  # type: ignore[misc]
    """Hands out each step's tokens, and ends rows."""

    def __init__(self, rows: Sequence[Row], handle: Handle | None) -> None:
        self.rows, self.handle = rows, handle
        self.ended: list[bool] | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.ended is None:
            self.ended = [False] * len(self.rows)
            for row, visual in zip(self.rows, self._visual(), strict=True):
                row.begin(visual)
        for place, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[place]:
                self.ended[place] = self.rows[place].take(token)
        return torch.tensor(self.ended, device=input_ids.device)

    def _visual(self) -> Iterable[tuple[int, ...]]:
        report = None if self.handle is None else self.handle.report
        return [()] * len(self.rows) if report is None else zip(*report.visual, strict=True)


class _Draws(LogitsProcessor):  # type: ignore[misc]
    """Draws by noise: the largest of logits with Gumbel noise is a sample of their softmax, so that rows that are drawn
    and rows that are not share a batch, and a seed gives the same draws in any batch."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.generators = [torch.Generator() for _ in rows]
        for row, generator in zip(rows, self.generators, strict=True):
            if row.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = scores.clone()
        for place, (row, generator) in enumerate(zip(self.rows, self.generators, strict=True)):
            if not row.temperature:
                continue
            logits = scores[place : place + 1] / row.temperature
            if row.top_p < 1:
                logits = TopPLogitsWarper(row.top_p)(input_ids[place : place + 1], logits)
            waits = torch.empty(logits.shape).exponential_(generator=generator)
            found[place] = (logits - waits.clamp_min(torch.finfo(waits.dtype).tiny).log().to(logits))[0]
        return found
