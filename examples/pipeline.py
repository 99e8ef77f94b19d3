"""A plan inside a transformers pipeline: nothing of the pipeline changes.

python examples/pipeline.py [PLAN] [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from planner import load_plan

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"
MODEL = ROOT / "profiles" / "reference" / "windowed"
PICTURE = ROOT / "profiles" / "reference" / "easy_vqa" / "images" / "evaluation" / "478.png"


def main(plan: str | Path = PLAN, model: str | Path = MODEL) -> None:
    """Print what the pipeline says, dense and under the plan."""
    answer = pipeline(
        "image-text-to-text",
        model=AutoModelForImageTextToText.from_pretrained(model).eval(),
        processor=AutoProcessor.from_pretrained(model),
    )
    picture = Image.open(PICTURE).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Is there a circle?"}]
    asked = {"text": [{"role": "user", "content": content}], "max_new_tokens": 8, "return_full_text": False}
    dense = answer(**asked)[0]["generated_text"]
    with load_plan(plan).apply(answer.model) as handle:
        planned = answer(**asked)[0]["generated_text"]
        tokens = [layer[0] for layer in handle.report.visual]
    print(f"dense:   {dense}")
    print(f"planned: {planned}   visual tokens by layer: {tokens}")


if __name__ == "__main__":
    main(*sys.argv[1:])
