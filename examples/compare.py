"""Policies by hand, without a plan: what they cost, what they keep, what the model then says.

    python examples/compare.py [MODEL] [POLICY ...]

A policy is spelled as on the command line: `fastv:k=2,ratio=0.75`, `prellm:keep=0.5+visipruner:filter=4,keep=10`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from tabulate import tabulate
from transformers import AutoModelForImageTextToText, AutoProcessor

from planner import ModelSpec, Workload, cost, parse

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "profiles" / "reference" / "windowed"
PICTURE = ROOT / "profiles" / "reference" / "easy_vqa" / "images" / "evaluation" / "478.png"
POLICIES = ("dense", "diverse:keep=0.25", "dart:keep=0.25", "fastv:k=2,ratio=0.9", "random:k=2,ratio=0.9")


def main(model: str | Path = MODEL, *policies: str) -> None:
    """Print a table with one row a policy."""
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model).eval()
    content = [{"type": "image"}, {"type": "text", "text": "Is there a circle?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(PICTURE).convert("RGB"), return_tensors="pt")
    visual = int((inputs["input_ids"] == network.config.image_token_id).sum())
    spec = ModelSpec.from_config(network.config.to_dict())
    workload = Workload(visual_tokens=visual, text_tokens=inputs["input_ids"].shape[1] - visual)
    dense = cost(spec, workload, parse("dense").schedule(spec, workload))
    rows = []
    for spelling in policies or POLICIES:
        policy = parse(spelling)
        planned = cost(spec, workload, policy.schedule(spec, workload))
        with policy.apply(network) as handle:
            found = network.generate(**inputs, max_new_tokens=8, do_sample=False)
            kept = handle.report.visual[-1][0] if handle.report else visual
        said = processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        flops, cache = planned.prefill_flops / dense.prefill_flops, planned.kv_cache_bytes / dense.kv_cache_bytes
        rows.append((spelling, f"{flops:.0%}", f"{cache:.0%}", kept, said))
    print(tabulate(rows, headers=("policy", "FLOPs", "KV cache", "visual tokens in the last layer", "answer")))


if __name__ == "__main__":
    main(*sys.argv[1:])
