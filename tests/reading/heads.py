"""Do heads follow what a thing is, or what it looks like (head attribution 4.3)?

Every picture of the set of look-alikes is attributed. Coefficients of two pictures are compared by their cosine: of one
thing in two styles (same meaning, other pixels), of a thing and its look-alike in one style (other meaning, like
pixels), and of things that share neither. All questions are the same, so cosines are high throughout: what counts is
which are higher. The same picture attributed twice, by other masks, says how high a cosine can be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.inputs.encode import Encoder, to_device
from calibrate.inputs.samples import load_samples
from calibrate.probes.attribution.attribute import attribute
from calibrate.probes.attribution.mean import mean_image
from calibrate.probes.attribution.response import ImageIndependentError
from calibrate.probes.attribution.similarity import cosines
from calibrate.running.execute import accepted_first_tokens
from planner.files import write_atomic

#: Relation of two pictures, in the order of the report.
RELATIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "the same thing, another style": lambda a, b: a["answer"] == b["answer"],
    "its look-alike, the same style": lambda a, b: a["scene"] == b["scene"] and a["style"] == b["style"],
    "its look-alike, another style": lambda a, b: a["scene"] == b["scene"] and a["answer"] != b["answer"],
    "another thing, the same style": lambda a, b: a["style"] == b["style"],
    "another thing, another style": lambda a, b: True,
}
RESAMPLED = 2_000


@dataclass(frozen=True)
class Compared:
    """Mean cosine of the pairs of pictures in one relation, with a 95 % interval over scenes."""

    pairs: int
    mean: float
    low: float
    high: float


@torch.no_grad()
def attribute_pictures(
    model: Any, encoder: Encoder, pairs: Path, others: Path, masks: int, mean_images: int, state: Path
) -> list[dict[str, Any]]:
    """Rows of the set with their ``coefficients``, and ``again`` by other masks. Resumable by `state`.

    Args:
        pairs: the JSONL of the set.
        others: samples whose pictures make the mean image.
        masks: ablations per picture.
        state: rows that are done, a JSONL; wrong answers are rows without coefficients.
    """
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    done = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()] if state.exists() else []
    if len(done) == len(rows):
        return done
    mean = None
    for sample, row in list(zip(load_samples(pairs), rows, strict=True))[len(done) :]:
        if mean is None:
            chosen = load_samples(others).choose(mean_images, 0)
            mean = mean_image(model, (to_device(encoder([one]), model) for one in chosen))
        inputs = to_device(encoder([sample]), model)
        token = int(model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].argmax())
        if token in accepted_first_tokens(encoder, sample):
            seeds = (0, 1) if row["style"] == rows[0]["style"] else (0,)
            try:
                found = [
                    attribute(model, inputs, None, mean, masks=masks, image_masks=0, curves=False, seed=seed)
                    for seed in seeds
                ]
                row["coefficients"] = found[0].coefficients.ravel().round(6).tolist()
                row["r2"] = found[0].fit.r2
                if len(found) > 1:
                    row["again"] = found[1].coefficients.ravel().round(6).tolist()
            except ImageIndependentError:
                row["independent"] = True
        done.append(row)
        write_atomic(state, "".join(json.dumps(one) + "\n" for one in done))
        print(f"{len(done)} of {len(rows)}: {row['answer']}, {row['style']}", file=sys.stderr)
    return done


def compare(rows: list[dict[str, Any]]) -> dict[str, Compared]:
    """Mean cosines by relation; every pair of pictures counts in the first relation it has.

    Intervals come from drawing scenes anew: pictures of one scene are no independent samples.
    """
    rows = [row for row in rows if "coefficients" in row]
    table = cosines(np.array([row["coefficients"] for row in rows]))
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in RELATIONS}
    for first, a in enumerate(rows):
        for second in range(first + 1, len(rows)):
            name = next(name for name, holds in RELATIONS.items() if holds(a, rows[second]))
            values[name].append((a["scene"], float(table[first, second])))
    twice = [row for row in rows if "again" in row]
    values["the same picture, other masks"] = [
        (row["scene"], float(cosines(np.array([row["coefficients"], row["again"]]))[0, 1])) for row in twice
    ]
    return {name: _mean(found) for name, found in values.items() if found}


def _mean(values: list[tuple[int, float]]) -> Compared:
    scenes = sorted({scene for scene, _ in values})
    sums = np.array([sum(value for one, value in values if one == scene) for scene in scenes])
    counts = np.array([sum(one == scene for one, _ in values) for scene in scenes])
    drawn = np.random.default_rng(0).integers(len(scenes), size=(RESAMPLED, len(scenes)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Compared(len(values), float(sums.sum() / counts.sum()), float(low), float(high))
