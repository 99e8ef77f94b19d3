"""Answer every line of a JSONL in batches, and write the answers as they come.

    python examples/batch_job.py SAMPLES ANSWERS [PLAN] [MODEL]

A line of SAMPLES is {"image": path, "prompt": text}. Lines that ANSWERS holds already are not asked again, so that a
job that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from planner import ImageCache, load_plan

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"
MODEL = ROOT / "profiles" / "reference" / "windowed"
BATCH = 8


def main(samples: str | Path, answers: str | Path, plan: str | Path = PLAN, model: str | Path = MODEL) -> None:
    """Append one line an answer to `answers`."""
    samples, answers = Path(samples), Path(answers)
    lines = samples.read_text(encoding="utf-8").splitlines()
    done = len(answers.read_text(encoding="utf-8").splitlines()) if answers.exists() else 0
    processor = AutoProcessor.from_pretrained(model)
    processor.tokenizer.padding_side = "left"
    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    chosen = load_plan(plan)
    # Plans with shallow layers compute an image once for all questions about it; others have nothing to keep.
    shallow = chosen.decision.schedule.image_stream_layers(network.config.text_config.num_hidden_layers) > 0
    cache = ImageCache(max_bytes=2 << 30) if shallow else None
    with chosen.apply(network, image_cache=cache), answers.open("a", encoding="utf-8") as out, torch.inference_mode():
        for first in range(done, len(lines), BATCH):
            asked = [json.loads(line) for line in lines[first : first + BATCH]]
            pictures = [Image.open(samples.parent / one["image"]).convert("RGB") for one in asked]
            prompts = [
                processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one["prompt"]}]}],
                    add_generation_prompt=True,
                )
                for one in asked
            ]
            inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
            found = network.generate(**inputs, max_new_tokens=16, do_sample=False)
            texts = processor.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for one, text in zip(asked, texts, strict=True):
                out.write(json.dumps({**one, "planned": text.strip()}) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
