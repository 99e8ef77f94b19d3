"""Run a model under a schedule and compare its answers with the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from calibrate.inputs.encode import Encoder, Inputs
from calibrate.inputs.samples import Sample
from planner.errors import ScheduleError
from planner.runtime import attach
from planner.runtime.execution.guard import check_schedule
from planner.runtime.model.adapters import find_parts
from planner.schedule import Schedule


@contextmanager
def executing(model: Any, schedule: Schedule | None, seed: int = 0) -> Iterator[None]:
    """The model computes only what the schedule says inside; None leaves it dense."""
    if schedule is None or schedule.empty:
        yield
        return
    handle = attach(model, schedule, seed=seed)
    try:
        yield
    finally:
        handle.detach()


def able(model: Any) -> Callable[[Schedule], bool]:
    """Tells whether the layers of a model are able to do what a schedule asks of them."""
    parts = find_parts(model)  # once: searches ask of thousands of schedules

    def can_run(schedule: Schedule) -> bool:
        try:
            check_schedule(schedule, parts)
        except ScheduleError:
            return False
        return True

    return can_run


def first_logits(model: Any, inputs: Inputs, schedule: Schedule | None = None, seed: int = 0) -> torch.Tensor:
    """Log-probabilities of the first answer token, ``[B, V]`` float32 on the CPU."""
    with torch.inference_mode(), executing(model, schedule, seed):
        logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().log_softmax(dim=-1).cpu()


def generate(
    model: Any, inputs: Inputs, max_new_tokens: int, schedule: Schedule | None = None, seed: int = 0
) -> torch.Tensor:
    """Greedy answers ``[B, <= max_new_tokens]``, on the CPU, padded on the right after the end token."""
    with torch.inference_mode(), executing(model, schedule, seed):
        ids: torch.Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    return ids[:, inputs["input_ids"].shape[1] :].cpu()


def divergence(dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence ``[B]`` from log-probabilities ``[B, V]``, in nats, never below 0."""
    return (dense.exp() * (dense - other)).sum(dim=-1).clamp_min(0)


def accepted_first_tokens(encoder: Encoder, sample: Sample) -> set[int]:
    """First token ids of the accepted answers, with and without a space in front, as they are and capitalised."""
    spellings = [
        space + spelling
        for answer in sample.answers
        for spelling in {answer, answer.capitalize()}
        for space in ("", " ")
    ]
    ids = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
    # A tokenizer that writes the space as a token of its own would accept every answer by it.
    blank = encoder.tokenizer(" ", add_special_tokens=False)["input_ids"]
    return {one[0] for one in ids if one and one[:1] != blank}


def first_token_right(encoder: Encoder, samples: Sequence[Sample], ids: torch.Tensor) -> list[bool]:
    """Whether first tokens ``[B]`` start an accepted answer."""
    return [int(token) in accepted_first_tokens(encoder, one) for token, one in zip(ids, samples, strict=True)]
