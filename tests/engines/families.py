"""One family in vLLM beside transformers: a tiny random model with its real processor, the same plan in both.

`python -m tests.engines.families llava_next` prints a row of the report's table. vLLM runs in this process.
Families differ in what vLLM makes of them, selectors do not, so that one is shown in all of them: `DIVERSE`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from planner import Plan
from planner.vllm_plugin import VARIABLE
from planner.vllm_plugin.architectures import ARCHITECTURES
from tests.engines.asking import Reference
from tests.processors import build
from tests.processors.samples import QUESTION, picture
from tests.tiny import configs

FAMILIES = tuple(dict.fromkeys(one.family for one in ARCHITECTURES.values()))
DIVERSE, BY_LOT = "diverse:keep=0.25", "prellm:keep=0.25,rank_by=random"
#: Rows of the report's table: family and selector. What is drawn by lot is shown with one axis and with several.
ROWS = (*((family, DIVERSE) for family in FAMILIES), ("llava", BY_LOT), ("qwen2_vl", BY_LOT))
#: Sizes of the pictures of each prompt: square, wide, tall, and two of them.
PROMPTS = (((80, 80),), ((96, 64),), ((60, 120),), ((80, 80), (96, 64)))
NEW_TOKENS = 5
#: Channels of the tiny decoders, so that a head has the 32 that vLLM's kernels on CPUs want.
_HIDDEN, _HEAD, _SECTIONS = 128, 32, (8, 4, 4)
#: Families whose processors cut pictures into tiles with marks between them.
_MARKED = ("idefics3", "smolvlm")


@dataclass(frozen=True)
class Outcome:
    """Of one prompt.

    Attributes:
        ids: the answer's first tokens, greedily.
        scores: ``[tokens, vocabulary]`` log-probabilities.
        prompt_tokens: that the decoder gets.
    """

    ids: list[int]
    scores: Tensor
    prompt_tokens: int


def policy_of(family: str, selector: str) -> str:
    """A selector as vLLM carries it in a family, with several pictures a prompt."""
    axes = any(one.axes for one in ARCHITECTURES.values() if one.family == family)
    per = "tile" if family in _MARKED else "picture"
    return f"{selector},per={per}" + ("" if axes else ",positions=packed")


def write(family: str, folder: Path) -> None:
    """A tiny checkpoint whose decoder is wide enough for vLLM."""
    sections, text = configs._mrope, configs.text
    with (
        mock.patch.object(configs, "HIDDEN", _HIDDEN),
        mock.patch.object(configs, "_mrope", lambda *_, **more: sections(*_SECTIONS, **more)),
        mock.patch.object(configs, "text", lambda layers, **more: text(layers, **{**more, "head_dim": _HEAD})),
    ):
        build.write(family, folder)
    if family.startswith("llava"):  # vLLM knows the names that these towers had in released checkpoints
        file = folder / "model.safetensors"
        old = {
            name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in load_file(file).items()
        }
        if not any("vision_model.vision_model" in name for name in old):
            save_file(old, file, metadata={"format": "pt"})


def in_transformers(reference: Reference, plan: Plan, prompts: list[tuple[str, list[Image]]]) -> list[Outcome]:
    """Each prompt under the plan."""
    processor, model, found = reference.loaded.processor, reference.loaded.model, []
    model.generation_config.suppress_tokens = None
    nested = "idefics" in type(processor).__name__.lower() or "smolvlm" in type(processor).__name__.lower()
    with plan.apply(model) as handle, torch.inference_mode():
        for text, pictures in prompts:
            inputs = processor(text=[text], images=[pictures] if nested else pictures, return_tensors="pt")
            output = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            ids = inputs["input_ids"][0]
            visual = int(torch.isin(ids, reference.encoder.visual_ids).sum())
            scores = torch.cat(output.scores).log_softmax(-1)
            length = len(ids) - visual + sum(len(one[0]) for one in handle.kept)
            found.append(Outcome(output.sequences[0, len(ids) :].tolist(), scores, length))
    return found


def in_vllm(folder: Path, plan: Path, prompts: list[tuple[str, list[Image]]]) -> list[Outcome]:
    """The same by vLLM."""
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", VARIABLE: str(plan)}
    os.environ.update({**settings, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
    from vllm import LLM, SamplingParams

    engine = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=2048, max_num_seqs=8, max_logprobs=-1)
    asked = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=-1, ignore_eos=True)
    requests = [{"prompt": text, "multi_modal_data": {"image": pictures}} for text, pictures in prompts]
    found = []
    for one in engine.generate(requests, asked, use_tqdm=False):
        answer = one.outputs[0]
        rows = [[row[token].logprob for token in range(len(row))] for row in answer.logprobs]
        found.append(Outcome(list(answer.token_ids), torch.tensor(rows), len(one.prompt_token_ids)))
    return found


def compared(family: str, selector: str, folder: Path) -> str:
    """A row: plan, prompts of the same length, prompts with the same answer, the largest difference of a score."""
    write(family, folder)
    reference, path = Reference(folder), folder / "plan.json"
    policy = policy_of(family, selector)
    plan = reference.plan(policy, path)
    generator = np.random.default_rng(3)
    prompts = []
    for sizes in PROMPTS:
        shown = [{"type": "image"} for _ in sizes]
        turn = [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]
        text = reference.loaded.processor.apply_chat_template(turn, add_generation_prompt=True)
        prompts.append((text, [picture(size, generator) for size in sizes]))
    wanted, found = in_transformers(reference, plan, prompts), in_vllm(folder, path, prompts)
    pairs = list(zip(wanted, found, strict=True))
    lengths = sum(one.prompt_tokens == other.prompt_tokens for one, other in pairs)
    answers = sum(one.ids == other.ids[: len(one.ids)] for one, other in pairs)
    largest = max(_difference(one, other) for one, other in pairs)
    cells = [family, f"`{policy}`", f"{lengths} of {len(pairs)}", f"{answers} of {len(pairs)}"]
    return f"| {' | '.join(cells)} | {largest:.1e} |"


def _difference(one: Outcome, other: Outcome) -> float:
    """The largest, as far as both have said the same before."""
    steps = next((step for step, pair in enumerate(zip(one.ids, other.ids, strict=False)) if pair[0] != pair[1]), None)
    upto = len(one.ids) if steps is None else steps + 1
    width = min(one.scores.shape[1], other.scores.shape[1])
    return float((one.scores[:upto, :width] - other.scores[:upto, :width]).abs().max())


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield given or Path(made)


@click.command()
@click.argument("family", type=click.Choice(FAMILIES))
@click.option("--selector", default=DIVERSE, show_default=True, help="A policy that selects before the decoder.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder for the checkpoint. Default: one that is removed."
)
def main(family: str, selector: str, work: Path | None) -> None:
    """Print the row of a family."""
    with _folder(work) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        click.echo(compared(family, selector, folder))


if __name__ == "__main__":
    main()
