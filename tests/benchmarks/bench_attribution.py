"""Head attribution by the shared prefix beside repeated whole forwards with the same masks, and 10,000 masks on a
reference model.

    python -m tests.benchmarks.bench_attribution [--device cuda] [--masks 64] [--out reports/benchmark-attribution.md]

Ratios are those to masks in families, which is how attribution draws them. The baseline is not a strawman: one fused
forward of the whole prompt per mask, logits of the last row only, in which the text rows' attention is computed a
second time with keys and values substituted per head. Processor time is given beside wall time, since other programs
may share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder, to_device
from calibrate.inputs.load import load
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.samples import load_samples
from calibrate.probes.attribution.forward import TextRows
from calibrate.probes.attribution.masks import FAMILY, Ablation, family_masks, random_masks
from calibrate.probes.attribution.mean import MeanImage, image_grids, mean_image
from calibrate.probes.attribution.parts import AttributionParts, find_attribution_parts
from calibrate.probes.attribution.prefix import PrefixCapture, capture
from calibrate.probes.attribution.regression import attribute_entries
from calibrate.probes.attribution.response import ImageIndependentError, Response
from calibrate.probes.attribution.rotary import rotate
from planner.runtime.model.attention import Call, attention_hook

IMAGE, SYSTEM, VISUAL, TEXT = 3, 5, 576, 20


def model() -> LlavaForConditionalGeneration:
    """A random LLaVA: 12 layers, hidden 512, 8 heads, 576 visual tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=336, patch_size=14, hidden_size=96, intermediate_size=288, num_hidden_layers=2, num_attention_heads=4
    )
    text = LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8,
        max_position_embeddings=1024,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1, image_seq_length=VISUAL
    )
    return LlavaForConditionalGeneration(config).eval()


def sample(seed: int) -> dict[str, torch.Tensor]:
    """A random image, and the same prompt for every seed."""
    words = torch.randint(5, 2000, (SYSTEM + TEXT,), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words[:SYSTEM], torch.full((VISUAL,), IMAGE), words[SYSTEM:]])[None]
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(seed)),
    }


class WholeForward:
    """The whole prompt once per mask, with per-head substituted keys and values for the text rows."""

    def __init__(
        self, model: Any, parts: AttributionParts, inputs: dict[str, torch.Tensor], seen: PrefixCapture, mean: MeanImage
    ) -> None:
        self.model, self.parts, self.inputs, self.seen = model, parts, inputs, seen
        self.mean = [
            (rotate(key, layer.cos[seen.visual], layer.sin[seen.visual]), value)
            for key, value, layer in zip(mean.keys, mean.values, seen.layers, strict=True)
        ]

    def logits(self, heads: torch.Tensor) -> torch.Tensor:
        """Last row's logits under one mask ``[L, H]``."""
        start, groups = self.seen.start, self.parts.heads // self.parts.kv_heads

        def attend(call: Call) -> tuple[torch.Tensor, None]:
            output, _ = call.run()
            key, value = (one.repeat_interleave(groups, dim=1) for one in (call.key, call.value))
            ablated = ~heads[call.layer]
            columns = torch.arange(start, device=key.device)[self.seen.visual]
            for whole, mean in zip((key, value), self.mean[call.layer], strict=True):
                where = ablated.nonzero()[:, :1]
                whole[0, where, columns] = mean.repeat_interleave(groups, dim=0)[ablated]
            query = call.query[:, :, start:]
            text = scaled_dot_product_attention(
                query, key, value, attn_mask=self.seen.layers[0].visible, scale=call.scaling
            )
            return torch.cat([output[:, :start], text.transpose(1, 2)], dim=1), None

        with attention_hook(list(self.parts.attentions), attend):
            return self.model(**self.inputs, use_cache=False, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """Result, wall seconds, processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def beside_whole_forwards(masks: int, device: str) -> list[str]:
    """Both ways over the same masks."""
    tiny = model().to(device)
    parts = find_attribution_parts(tiny)
    inputs = to_device(sample(0), tiny)
    mean = mean_image(tiny, [to_device(sample(seed), tiny) for seed in range(1, 5)], parts)
    seen = capture(tiny, parts, inputs)
    text = TextRows(parts, seen, mean, image_grids(tiny, inputs, VISUAL))
    shape = parts.layers, parts.heads
    heads = random_masks(masks, parts.layers * parts.heads, 0.75, seed=0).view(masks, *shape)
    families = family_masks(masks, *shape, 0.75, seed=0).view(masks, *shape)
    single = (~torch.eye(parts.layers * parts.heads, dtype=torch.bool)).view(-1, *shape)
    whole = WholeForward(tiny, parts, inputs, seen, mean)
    few = max(4, masks // 16)
    on_device = heads.to(device)
    whole.logits(on_device[0])  # warm up
    text.logits(Ablation(heads[: text.batch_size]))
    expected, whole_wall, whole_cpu = timed(lambda: torch.stack([whole.logits(one) for one in on_device[:few]]), device)
    got, ours_wall, ours_cpu = timed(lambda: text.logits(Ablation(heads)), device)
    _, family_wall, family_cpu = timed(lambda: text.logits(Ablation(families)), device)
    _, single_wall, single_cpu = timed(lambda: text.logits(Ablation(single)), device)
    _, plain_wall, plain_cpu = timed(
        lambda: [tiny(**inputs, use_cache=False, logits_to_keep=1) for _ in range(few)], device
    )
    error = (got[:few] - expected).abs().max().item()
    rows = [
        ("whole forward, heads substituted", whole_wall / few, whole_cpu / few),
        ("whole forward, nothing substituted", plain_wall / few, plain_cpu / few),
        (f"text rows only, {text.batch_size} independent masks at once", ours_wall / masks, ours_cpu / masks),
        (f"text rows only, masks in families of {FAMILY}", family_wall / masks, family_cpu / masks),
        ("text rows only, one head ablated at a time", single_wall / len(single), single_cpu / len(single)),
    ]
    ours = rows[-2]
    lines = [
        "LLaVA with 12 layers, hidden 512, 8 heads, float32; "
        f"{SYSTEM} + {VISUAL} + {TEXT} tokens; {masks} masks (baselines: {few}).",
        f"Largest difference of any logit between the two ways under the same masks: {error:.1e}.",
        "",
        "| per mask | wall ms | processor ms | ratio (wall) | ratio (processor) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {wall * 1e3:.2f} | {cpu * 1e3:.2f} | {wall / ours[1]:.1f} | {cpu / ours[2]:.1f} |"
        for name, wall, cpu in rows
    ]
    return lines


@torch.inference_mode()
def on_reference(name: str, device: str, masks: int = 10_000) -> list[str]:
    """10,000 masks of one sample of a reference model, fit included."""
    loaded = load(str(reference_path(name)), LoadOptions(device=device))
    parts = find_attribution_parts(loaded.model)
    encoder = Encoder(loaded.processor, parts.visual_ids)
    samples = load_samples(reference_path("easy_vqa") / "calibration.jsonl")
    others = [to_device(encoder([one]), loaded.model) for one in samples[-100:]]
    mean, mean_wall, mean_cpu = timed(lambda: mean_image(loaded.model, others, parts), device)
    for chosen in samples:
        inputs = to_device(encoder([chosen]), loaded.model)
        seen = capture(loaded.model, parts, inputs)
        rows = TextRows(parts, seen, mean, image_grids(loaded.model, inputs, seen.visual.numel()))
        with contextlib.suppress(ImageIndependentError):
            respond = Response(rows, int(seen.logits.argmax()))
            break
    drawn = family_masks(masks, parts.layers, parts.heads, 0.75, seed=0)
    fit, wall, cpu = timed(lambda: attribute_entries(drawn, respond, early_stop=False, family=FAMILY), device)
    early, early_wall, early_cpu = timed(lambda: attribute_entries(drawn, respond, family=FAMILY), device)
    return [
        f'Reference model `{name}` (10 layers, 8 heads, 144 visual tokens), one sample, "{chosen.prompt}".',
        "",
        "| | wall s | processor s | R^2 | r |",
        "|---|---|---|---|---|",
        f"| mean image of 100 images | {mean_wall:.1f} | {mean_cpu:.1f} | | |",
        f"| {fit.masks} masks and the fit | {wall:.1f} | {cpu:.1f} | {fit.r2:.3f} | {fit.pearson:.3f} |",
        f"| with early stopping: {early.masks} masks | {early_wall:.1f} | {early_cpu:.1f} | {early.r2:.3f} | "
        f"{early.pearson:.3f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--reference", nargs="*", default=["plain", "windowed"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    where = torch.cuda.get_device_name() if arguments.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        "# Benchmark: head attribution",
        "",
        "Made by `python -m tests.benchmarks.bench_attribution`.",
        f"{where}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}.",
        "",
        "## Beside repeated whole forwards",
        "",
        *beside_whole_forwards(arguments.masks, arguments.device),
    ]
    for name in arguments.reference:
        if (reference_path(name) / "config.json").exists():
            lines += ["", f"## 10,000 masks on the reference model `{name}`", "", *on_reference(name, arguments.device)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
