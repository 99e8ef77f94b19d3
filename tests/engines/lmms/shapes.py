"""Pictures and scores of the task ``shapes``: both as `plan evaluate` has them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from calibrate.inputs.bundled import reference_path
from calibrate.running.metrics import METRICS


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question."""
    return [Image.open(reference_path("easy_vqa") / doc["image"]).convert("RGB")]


def scored(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Whether the answer is right."""
    answer = results[0] if isinstance(results[0], str) else results[0].text
    return {"accuracy": METRICS["exact"](answer, [doc["answer"]])}
