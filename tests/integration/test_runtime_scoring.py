"""Prompt and answer in one forward: the answer is scored as it would have been generated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner.errors import InputError, RuntimeStateError
from planner.runtime import attach
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.schedules import LAYERS, SCHEDULES

STEPS = 4
NAMES = ("fastv", "visipruner", "threshold", "prellm")
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "smolvlm")


def scored_together(family: str, batch: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A prompt batch, the same with an answer behind every prompt, and the answers."""
    prompts, answers = tiny.inputs(family, batch=batch, left_pad=3 * (batch > 1)), continuation(batch, STEPS)
    both = dict(prompts)
    both["input_ids"] = torch.cat([prompts["input_ids"], answers], dim=1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in prompts:
            both[name] = torch.nn.functional.pad(prompts[name], (0, STEPS), value=int(name == "attention_mask"))
    return prompts, both, answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_scoring_gives_the_generated_logits(family: str, name: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    prompts, both, answers = scored_together(family)
    length = prompts["input_ids"].shape[1]
    with attach(model, SCHEDULES[name]) as handle, torch.no_grad(), float64_throughout():
        expected = torch.stack(logits(model, prompts, answers), dim=1)
        labels = both["input_ids"].clone()
        labels[:, :length] = -100
        with_labels = model(**both, labels=labels)
        lengths = prompts["attention_mask"].sum(1).tolist()
        with handle.scoring(lengths):
            told = model(**both).logits
            told_without_cache = model(**both, use_cache=False)
            last = model(**both, logits_to_keep=2).logits
        kept = model(**both, logits_to_keep=STEPS + 1, use_cache=False)
    for found in (
        with_labels.logits[:, length - 1 :],
        told[:, length - 1 :],
        told_without_cache.logits[:, length - 1 :],
        kept.logits,
    ):
        assert (found - expected).abs().max() < 1e-10
    assert (last - expected[:, -2:]).abs().max() < 1e-10
    assert kept.past_key_values is None and told_without_cache.past_key_values is None
    nats = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), answers.flatten())
    assert abs(with_labels.loss - nats) < 1e-6  # transformers takes losses in float32


@pytest.mark.parametrize("pad", ["left", "right"])
def test_answers_that_begin_in_different_columns(pad: str) -> None:
    """Two questions of other lengths, two answers of other lengths, as harnesses pad them."""
    model = tiny.model("llava", layers=LAYERS)
    singles, expected = [], []
    with attach(model, SCHEDULES["fastv"]) as handle, torch.no_grad(), float64_throughout():
        for sample, steps in enumerate((2, 5)):
            prompt = tiny.inputs("llava", text=5 + 3 * sample, seed=sample)
            answer = continuation(1, steps, seed=sample)
            expected.append(torch.stack(logits(model, prompt, answer), dim=1)[0, :-1])
            singles.append((prompt, answer))
        ids = [torch.cat([prompt["input_ids"], answer], dim=1)[0] for prompt, answer in singles]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True, padding_side=pad)
        pixels = torch.cat([prompt["pixel_values"] for prompt, _ in singles])
        whole = {"input_ids": batch, "attention_mask": mask, "pixel_values": pixels}
        lengths = [prompt["input_ids"].shape[1] for prompt, _ in singles]
        with handle.scoring(lengths):
            found = model(**whole).logits
        labels = torch.full_like(batch, -100)
        for sample, (length, tokens) in enumerate(zip(lengths, ids, strict=True)):
            start = batch.shape[1] - len(tokens) if pad == "left" else 0
            labels[sample, start + length : start + len(tokens)] = tokens[length:]
        by_labels = model(**whole, labels=labels)
    losses = []
    for sample, ((_, answer), wanted) in enumerate(zip(singles, expected, strict=True)):
        scored = (labels[sample] != -100).nonzero()[:, 0] - 1
        assert (found[sample, scored] - wanted).abs().max() < 1e-10
        assert (by_labels.logits[sample, scored] - wanted).abs().max() < 1e-10
        losses += torch.nn.functional.cross_entropy(wanted, answer[0], reduction="none").tolist()
    assert abs(by_labels.loss - sum(losses) / len(losses)) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_without_a_cache_equals_generation_with_one(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=2)
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": list(range(118, 128))}
    with attach(model, SCHEDULES["fastv"]):
        assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))


def test_a_forward_of_prompts_alone_is_unchanged_by_being_told_so() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=2)
    with attach(model, SCHEDULES["fastv"]) as handle, torch.no_grad():
        plain = model(**inputs).logits
        with handle.scoring(inputs["attention_mask"].sum(1).tolist()):
            assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize(
    ("options", "lengths", "error", "message"),
    [
        ({}, [5], InputError, "1 prompt lengths for 2 samples"),
        ({}, [26, 99], InputError, "do not fit"),
        ({}, [2, 2], InputError, "end before its image"),
        ({"logits_to_keep": torch.tensor([3, 4])}, None, RuntimeStateError, "as a tensor"),
    ],
)
def test_an_end_that_cannot_be_is_refused(
    options: dict[str, Any], lengths: list[int] | None, error: type[Exception], message: str
) -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2)
    with attach(model, SCHEDULES["fastv"]) as handle, torch.no_grad(), pytest.raises(error, match=message):
        if lengths is None:
            model(**inputs, **options)
        else:
            with handle.scoring(lengths):
                model(**inputs, **options)
