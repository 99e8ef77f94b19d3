"""`--log-samples`: every evaluated answer as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrate.inputs.sample import Sample

#: What a calibration writes beside its results.
ANSWERS = "answers.jsonl"


def log_answers(path: Path, samples: Sequence[Sample], answers: Mapping[str, Sequence[str]]) -> None:
    """Write a line for each sample: where it is from, question, accepted answers, kind, and what every policy answered,
    by its spelling.

    Raises:
        InputError: the place cannot be written.
    """
    from planner.document import write_atomic

    lines = []
    for i, sample in enumerate(samples):
        body = {
            "sample": sample.where,
            "prompt": sample.prompt,
            "accepted": list(sample.answers),
            "kind": sample.kind,
            "answers": {policy: said[i] for policy, said in answers.items()},
        }
        lines.append(json.dumps(body, ensure_ascii=False))
    write_atomic(path, "".join(f"{line}\n" for line in lines))
