"""What calibration costs: all one-pass probes beside a plain forward, and beside eager attention that returns weights.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_calibrate --out reports/benchmark-calibrate.md

A randomly initialised LLaVA decoder of the given size; 576 visual and 64 text tokens, and 2304 and 64. Every case is
timed right after a plain forward of the same length; the median of the pairs' ratios is shown. Times are CPU time of
the process: on a machine that others use, it says more than wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from calibrate.probes.base import Capture, OnePassProbe
from calibrate.probes.influence import InfluenceProbe
from calibrate.probes.prompt_shape import PromptLengthsProbe
from calibrate.probes.sinks import SinksProbe
from calibrate.probes.sparsity import SparsityProbe
from calibrate.probes.value_norms import ValueNormsProbe
from planner.runtime import observe

IMAGE, TEXT, SYSTEM = 3, 54, 10
PATCH = 14


def build(layers: int, hidden: int, side: int, attention: str) -> LlavaForConditionalGeneration:
    """A decoder of the size asked for behind a tower that costs next to nothing."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.6875),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()


def prompt(visual: int, side: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 1000, (1, SYSTEM + visual + TEXT), generator=torch.Generator().manual_seed(1))
    ids[:, SYSTEM : SYSTEM + visual] = IMAGE
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, side, side), "attention_mask": torch.ones_like(ids)}


def probed(model: LlavaForConditionalGeneration, inputs: dict[str, torch.Tensor], layers: int) -> None:
    probes: list[OnePassProbe] = [
        PromptLengthsProbe(),
        InfluenceProbe(),
        SinksProbe(),
        SparsityProbe(),
        ValueNormsProbe(),
    ]

    def look(view: object) -> None:
        capture = Capture(view, layers, (0,))  # type: ignore[arg-type]
        for probe in probes:
            probe.update(capture)

    with observe(model, look):
        model(**inputs, use_cache=False, logits_to_keep=1)


def pairs(plain: Callable[[], object], case: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of a case, and median ratio to a plain forward just before it."""
    runs = [(_timed(plain), _timed(case)) for _ in range(rounds)]
    return 1e3 * statistics.median(mine for _, mine in runs), statistics.median(mine / base for base, mine in runs)


def _timed(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def cases(visual: int, layers: int, hidden: int) -> dict[str, Callable[[], object]]:
    side = int(visual**0.5) * PATCH
    sdpa, eager = (build(layers, hidden, side, kind) for kind in ("sdpa", "eager"))
    inputs = prompt(visual, side)
    plain = {"use_cache": False, "logits_to_keep": 1}
    return {
        "plain forward, sdpa": lambda: sdpa(**inputs, **plain),
        "with all one-pass probes, sdpa": lambda: probed(sdpa, inputs, layers),
        "eager with output_attentions": lambda: eager(**inputs, **plain, output_attentions=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    rows = []
    for visual in (576, 2304):
        with torch.inference_mode():
            plain, *others = cases(visual, options.layers, options.hidden).items()
            plain[1]()  # warms up
            for name, case in (plain, *others):
                ms, ratio = pairs(plain[1], case, options.rounds)
                rows.append(f"| {SYSTEM + visual + TEXT} | {name} | {ms:.0f} | {ratio:.2f} |")
    lines = [
        "# What calibration costs over a plain forward pass",
        "",
        f"Random-weight LLaVA decoder of {options.layers} layers, hidden size {options.hidden}, float32; batch 1; "
        f"{torch.get_num_threads()} thread(s); torch {torch.__version__}, transformers {transformers.__version__}.",
        "One-pass probes: influence, sinks, sparsity, value norms, prompt lengths, all in the same forward.",
        f"Every case is timed right after a plain forward (CPU time of the process), {options.rounds} pairs; medians. "
        "The plain row shows the noise.",
        "Made by `OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_calibrate --out reports/benchmark-calibrate.md`.",
        "",
        "| tokens | case | ms | ratio |",
        "|---:|---|---:|---:|",
        *rows,
        "",
    ]
    if options.out is not None:
        options.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
