"""What calibration costs: all one-pass probes beside a plain forward, and beside eager attention that returns weights.

    python tests/benchmarks/bench_calibrate.py [--rounds 7] [--layers 8] [--hidden 1024] [--cpu-time]

A randomly initialised LLaVA decoder of the given size; 576 visual and 64 text tokens, and 2304 and 64. Rounds are
interleaved, medians are shown; `ratio` is to the plain forward of the same length. On a machine that others use, CPU
time says more than wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from calibrate.influence import Influence
from calibrate.probe import Capture, OnePassProbe
from calibrate.prompt_shape import PromptLengths
from calibrate.sinks import Sinks
from calibrate.sparsity import Sparsity
from calibrate.value_norms import ValueNorms
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
    probes: list[OnePassProbe] = [PromptLengths(), Influence(), Sinks(), Sparsity(), ValueNorms()]

    def look(view: object) -> None:
        capture = Capture(view, layers, (0,))  # type: ignore[arg-type]
        for probe in probes:
            probe.update(capture)

    with observe(model, look):
        model(**inputs, use_cache=False, logits_to_keep=1)


def medians(cases: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds + 1):
        for offset in range(len(names)):
            name = names[(turn + offset) % len(names)]
            begun = clock()
            cases[name]()
            if turn:
                spent[name].append(clock() - begun)
    return {name: statistics.median(times) for name, times in spent.items()}


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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    kind = "CPU time" if options.cpu_time else "wall time"
    print(f"{options.layers} layers, hidden size {options.hidden}, {torch.get_num_threads()} threads, float32, {kind}")
    print(f"{'tokens':>6}  {'case':<36} {'ms':>9} {'ratio':>6}")
    for visual in (576, 2304):
        with torch.inference_mode():
            found = medians(cases(visual, options.layers, options.hidden), options.rounds, clock)
        base = found["plain forward, sdpa"]
        for name, seconds in found.items():
            print(f"{SYSTEM + visual + TEXT:>6}  {name:<36} {1000 * seconds:>9.1f} {seconds / base:>6.2f}")


if __name__ == "__main__":
    main()
