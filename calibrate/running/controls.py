"""Controls that stand in every table: how far the dense model agrees with itself, and what it says without a picture.

* **floor**: the dense model in batches of another composition and, where its weights have full precision and the
  machine computes in half precision, in that number format. No plan can be asked to agree with the dense model more.
* **blind**: the same questions without their pictures. What is right then, language alone lets guess.

Random pruning and a smaller picture at the plan's cost are policies: `calibrate.deciding.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from calibrate.inputs.batches import Batches
from calibrate.inputs.encode import Encoder, input_device
from calibrate.inputs.half_precision import emulated
from calibrate.running.forced import Answer, answers
from calibrate.running.losses import FloatArray, LossRunner
from planner.errors import UnsupportedModelError
from planner.schedule import dense

#: A schedule that changes nothing, of any model.
_NOTHING = dense(1)
#: Autocast casts to these: another number format than the weights'. It cannot mix two half-precision formats.
_OTHER = {torch.float32: torch.bfloat16}


def floor_name(batches: Batches) -> str:
    """What the floor is on these samples, in words."""
    other = _other(batches.model)
    number_format = "" if other is None else f", {str(other).removeprefix('torch.')}"
    return f"dense again, batches of {_other_size(batches)}{number_format}"


def floor_answers(batches: Batches, max_new_tokens: int) -> list[Answer]:
    """Dense answers in other batches, from the last sample to the first, in another number format if there is one."""
    again = _again(batches)
    found: dict[int, Answer] = {}
    with _other_format(batches.model):
        for batch in again.chunks(range(len(batches.samples) - 1, -1, -1)):
            found.update(zip(batch.ids, answers(batch, max_new_tokens), strict=True))
    return [found[i] for i in range(len(found))]


def floor_losses(bench: LossRunner) -> FloatArray:
    """What the dense model loses against itself in that way, one loss a sample."""
    bench.losses(_NOTHING)  # what it says as it is
    other = bench.judged_by(bench.loss, _again(bench.batches))
    backwards = range(len(bench) - 1, -1, -1)
    with _other_format(bench.batches.model):
        return other.losses(_NOTHING, backwards)[::-1]


def beyond_floor(bench: LossRunner, limit: float) -> list[str]:
    """A note, where less is asked for than what the dense model loses against itself on these samples."""
    found = float(floor_losses(bench).mean())
    if found <= limit:
        return []
    return [
        f"the dense model loses {found:.3f} ({bench.loss}) against itself ({floor_name(bench.batches)}): a loss of "
        f"{limit:g} cannot be told from noise; compare tokens (--loss tokens), or ask for less"
    ]


def blind_answers(batches: Batches, max_new_tokens: int) -> list[Answer]:
    """Dense answers to the questions alone.

    Raises:
        UnsupportedModelError: the model or its processor takes no prompt without a picture.
    """
    found: list[Answer] = []
    for batch in batches:
        try:
            inputs = batches.place(_without_pictures(batches.encoder, batch.samples))
            found += answers(replace(batch, inputs=inputs), max_new_tokens)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            # Templates, processors and forwards that take a picture for granted fail in their own ways.
            first = (str(error).splitlines() or [""])[0]
            cause = f"the model takes no prompt without a picture ({type(error).__name__}: {first})"
            raise UnsupportedModelError(cause, "Its language prior cannot be measured") from error
    return found


def _again(batches: Batches) -> Batches:
    return batches.regrouped(_other_size(batches))


def _other(model: Any) -> torch.dtype | None:
    """The floor's number format, where it is not the weights'. An emulated one would take most of a calibration."""
    other = _OTHER.get(model.dtype)
    return None if other is None or emulated(input_device(model), other) else other


def _other_format(model: Any) -> torch.autocast:
    other = _other(model)
    return torch.autocast(input_device(model).type, dtype=other, enabled=other is not None)


def _other_size(batches: Batches) -> int:
    """A batch size that puts samples together in another way."""
    return batches.batch_size // 2 + 1 if batches.batch_size > 1 else 2


def _without_pictures(encoder: Encoder, samples: Sequence[Any]) -> dict[str, torch.Tensor]:
    texts = [encoder.prompt(replace(sample, images=())) for sample in samples]
    start = encoder.tokenizer.bos_token
    doubled = bool(start) and all(text.startswith(start) for text in texts)
    encoded = encoder.tokenizer(
        texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=not doubled
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
