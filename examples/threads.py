"""One model with a plan, shared by several threads.

python examples/threads.py [PLAN] [MODEL]
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from planner import load_plan

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"
MODEL = ROOT / "profiles" / "reference" / "windowed"
DATA = ROOT / "profiles" / "reference" / "easy_vqa"


def main(plan: str | Path = PLAN, model: str | Path = MODEL) -> None:
    """Ask sixteen questions in four threads, and print answer and number of visual tokens of each."""
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    lines = (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    handle = load_plan(plan).attach(network)  # once, before requests arrive

    def answer(line: str) -> str:
        sample = json.loads(line)
        content = [{"type": "image"}, {"type": "text", "text": sample["prompt"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = Image.open(DATA / sample["image"]).convert("RGB")
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
        found = network.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        return f"{sample['prompt']} {said} ({handle.report.visual[0][0]} visual tokens in layer 0)"

    with ThreadPoolExecutor(4) as pool:
        for said in pool.map(answer, lines):
            print(said)
    handle.detach()


if __name__ == "__main__":
    main(*sys.argv[1:])
