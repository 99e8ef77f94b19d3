"""Questions with text beside the picture, short and long."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

#: Sentences that have nothing to do with the picture, put before the prompts of long samples.
SENTENCES = 16
#: Sets of the reference samples, and the seeds of their long samples.
SETS = {"calibration": 1, "evaluation": 0}

Row = dict[str, Any]


def short(samples: Path, name: str) -> list[Row]:
    """Rows of a set with a sentence or two beside the picture; pictures as absolute paths."""
    rows = [json.loads(line) for line in (samples / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row | {"image": str(samples / row["image"])} for row in rows if row["kind"].endswith(" context")]


def long(rows: list[Row], seed: int) -> list[Row]:
    """The same in another order, each behind `SENTENCES` irrelevant sentences of other rows."""
    rng = random.Random(seed)
    irrelevant = (sentence for row in rows if row["kind"] == "irrelevant context" for sentence in sentences(row))
    pool = sorted(set(irrelevant))
    found = []
    for row in rows:
        others = [sentence for sentence in pool if sentence not in sentences(row)]
        found.append(row | {"prompt": " ".join([*rng.sample(others, SENTENCES), row["prompt"]])})
    rng.shuffle(found)
    return found


def sentences(row: Row) -> list[str]:
    """Of a prompt, without the question that ends it."""
    return [f"{sentence.strip()}." for sentence in row["prompt"].split(".")[:-1]]


def write(samples: Path, out: Path) -> None:
    """``SET-short.jsonl`` and ``SET-long.jsonl`` for each of `SETS`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in SETS.items():
        rows = short(samples, name)
        for kind, written in (("short", rows), ("long", long(rows, seed))):
            lines = (json.dumps(row) + "\n" for row in written)
            (out / f"{name}-{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
