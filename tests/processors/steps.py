"""The steps of a user's path on one checkpoint. A step raises `Wrong`, or whatever the product raises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.video_utils import VideoMetadata

from calibrate.inputs.encode import Encoder
from calibrate.inputs.load import load
from calibrate.inputs.plain_processor import PlainProcessor
from calibrate.inputs.samples import Sample
from calibrate.running.execute import generate
from planner import load_plan
from planner.runtime import attach
from planner.spec.images import encode_all
from tests.float64 import float64_throughout
from tests.forced import logits
from tests.processors import samples
from tests.processors.checkpoint import POLICY, Checkpoint, Wrong
from tests.processors.families import FAMILIES
from tests.reference import run

ANSWER_TOKENS = 8
TOLERANCE = 1e-10


def processor(checkpoint: Checkpoint) -> None:
    """`AutoProcessor` gives the real class, not the fallback."""
    found, wanted = type(checkpoint.loaded.processor).__name__, FAMILIES[checkpoint.family].processor[0]
    if found != wanted:
        raise Wrong(f"{found} in place of {wanted}")


def visual_tokens(checkpoint: Checkpoint) -> None:
    """As many visual tokens as the cost model says, for every size, and for two pictures of one prompt."""
    generator = np.random.default_rng(2)
    alone = [(size,) for size in (*samples.SIZES, (400, 300), (200, 640))]
    for sizes in (*alone, ((400, 300), (200, 640))):
        pictures = tuple(samples.picture(size, generator) for size in sizes)
        found = _visual(checkpoint, checkpoint.encoder([Sample(pictures, samples.QUESTION)]))
        predicted = sum(image.visual_tokens for image in encode_all(checkpoint.known.spec, sizes))
        if found != predicted:
            raise Wrong(f"{sizes} pixels: {found} tokens, predicted {predicted}")


def fallback(checkpoint: Checkpoint) -> None:
    """What stands in for the processor where torchvision is missing: the same inputs, or a refusal."""
    real, known = checkpoint.loaded.processor, checkpoint.known
    tokenizer, config = copy.deepcopy(real.tokenizer), checkpoint.loaded.model.config
    tokenizer.chat_template = real.chat_template
    stand_in = PlainProcessor(real.image_processor, tokenizer, config, "it needs torchvision")
    both = [checkpoint.sample(0), checkpoint.sample(1, 2)]
    found, expected = (Encoder(one, known.visual_ids)(both) for one in (stand_in, real))
    different = sorted(
        name
        for name in found.keys() | expected.keys()
        if name not in found or name not in expected or not torch.equal(found[name], expected[name])
    )
    if different:
        raise Wrong(f"other {', '.join(different)}")


def _visual(checkpoint: Checkpoint, inputs: dict[str, torch.Tensor]) -> int:
    return int(torch.isin(inputs["input_ids"], torch.tensor(checkpoint.known.visual_ids)).sum())


def calibration(checkpoint: Checkpoint) -> None:
    """`plan calibrate`, then `plan freeze` of the policy that the other steps execute."""
    folder = checkpoint.folder
    checkpoint.command(
        *("calibrate", folder / "model", "--data", folder / "calibration.jsonl"),
        *("--eval-data", folder / "evaluation.jsonl", "--batch-size", "8", "-o", folder / "out"),
        *("--agreement", "0.4", "--answer-tokens", "2"),
    )
    checkpoint.command("freeze", folder / "out" / "profile.json", "--policy", POLICY, "-o", checkpoint.plan)
    load_plan(folder / "out" / "plan.json")


def one_image(checkpoint: Checkpoint) -> None:
    """`plan run`: the answer that generating by hand gives."""
    _run(checkpoint, 0)


def two_images(checkpoint: Checkpoint) -> None:
    """`plan run` with pictures of different sizes."""
    _run(checkpoint, 0, 1)


def _run(checkpoint: Checkpoint, *images: int) -> None:
    sample = checkpoint.sample(*images)
    shown = [part for path in sample.images for part in ("--image", path)]
    result = checkpoint.command(
        *("run", checkpoint.plan, "--model", checkpoint.folder / "model", *shown),
        *("--prompt", samples.QUESTION, "--max-new-tokens", str(ANSWER_TOKENS)),
    )
    inputs = checkpoint.encoder([sample])
    if f"visual tokens per layer: {_visual(checkpoint, inputs)} x 2, 4 x 1, 0 x 1" not in result.stderr:
        raise Wrong(result.stderr.strip().splitlines()[-1])
    answer = _answers(checkpoint, inputs)[0]
    if result.stdout.strip() != answer:
        raise Wrong(f"answers {result.stdout.strip()!r}, by hand {answer!r}")


def _answers(checkpoint: Checkpoint, inputs: dict[str, torch.Tensor]) -> list[str]:
    return checkpoint.encoder.decode(generate(checkpoint.loaded.model, inputs, ANSWER_TOKENS, checkpoint.schedule))


def overlay(checkpoint: Checkpoint) -> None:
    """`plan run --overlay` draws, or says why it cannot."""
    drawn = checkpoint.folder / "kept.png"
    checkpoint.command(
        *("run", checkpoint.plan, "--model", checkpoint.folder / "model", "--max-new-tokens", "1"),
        *("--image", checkpoint.sample(0).images[0], "--prompt", samples.QUESTION, "--overlay", drawn),
    )
    with Image.open(drawn) as opened:
        opened.load()


def batch(checkpoint: Checkpoint) -> None:
    """Prompts of one and of two pictures side by side are answered as alone."""
    both = [checkpoint.sample(0), checkpoint.sample(1, 2)]
    alone = [_answers(checkpoint, checkpoint.encoder([sample]))[0] for sample in both]
    together = _answers(checkpoint, checkpoint.encoder(both))
    if together != alone:
        raise Wrong(f"{together} together, {alone} alone")


def reference(checkpoint: Checkpoint) -> None:
    """Logits of a batch in float64 equal those of the slow reference."""
    _compare(checkpoint, checkpoint.encoder([checkpoint.sample(0), checkpoint.sample(1, 2)]))


def _compare(checkpoint: Checkpoint, inputs: dict[str, torch.Tensor]) -> None:
    model = load(str(checkpoint.folder / "model")).model.double()
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    generated = torch.full((len(inputs["input_ids"]), 2), checkpoint.encoder.tokenizer.convert_tokens_to_ids("a"))
    with float64_throughout(), attach(model, checkpoint.schedule):
        found = logits(model, doubled, generated)
    with float64_throughout():
        expected = run(model, doubled, checkpoint.schedule, generated)
    pairs = zip(found, [expected.prefill, *expected.steps], strict=True)
    worst = max(float((one - other).abs().max()) for one, other in pairs)
    if not worst < TOLERANCE:
        raise Wrong(f"logits differ by {worst:.0e}")


def evaluation(checkpoint: Checkpoint) -> None:
    """`plan evaluate` beside another policy."""
    result = checkpoint.command(
        *("evaluate", checkpoint.plan, "--model", checkpoint.folder / "model", "--batch-size", "4"),
        *("--data", checkpoint.folder / "evaluation.jsonl", "--policy", "fastv", "--rounds", "1"),
        *("--answer-tokens", "2", "--format", "json"),
    )
    rows = json.loads(result.stdout)["rows"]
    agreement = {row["role"]: row["agreement"]["value"] for row in rows}
    compared = [row["policy"] for row in rows if row["role"] == "policy"]
    if not {"dense", "plan", "floor"} <= agreement.keys() or agreement["dense"] != 1:
        raise Wrong(f"rows {sorted(agreement)}, the dense one agrees with itself to {agreement.get('dense')}")
    if [policy.partition(":")[0] for policy in compared] != ["fastv", "random", "resize"]:
        raise Wrong(f"compared with {', '.join(compared)}")


def bench(checkpoint: Checkpoint) -> None:
    """`plan bench`: KV cache bytes as predicted."""
    result = checkpoint.command(
        *("bench", checkpoint.plan, "--model", checkpoint.folder / "model", "--rounds", "1", "--new-tokens", "2"),
        *("--image", checkpoint.sample(0).images[0], "--prompt", samples.QUESTION, "--format", "json"),
    )
    found = json.loads(result.stdout)
    sides = [found["measured"][side]["kv_cache_bytes"] for side in ("dense", "planned")]
    ratio, predicted = sides[1] / sides[0], found["predicted_ratio"]["flops"]["KV cache bytes"]
    if abs(ratio - predicted) > 0.01:
        raise Wrong(f"KV cache {ratio:.3f} of dense, predicted {predicted:.3f}")


def pipe(checkpoint: Checkpoint) -> None:
    """transformers' image-text-to-text pipeline with the plan attached answers as `plan run`."""
    sample, loaded = checkpoint.sample(0), checkpoint.loaded
    settings = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": ANSWER_TOKENS, "do_sample": False}}
    made = pipeline("image-text-to-text", model=loaded.model, processor=loaded.processor)
    content = [{"type": "image", "image": sample.pictures()[0]}, {"type": "text", "text": sample.prompt}]
    with load_plan(checkpoint.plan).apply(loaded.model):
        if FAMILIES[checkpoint.family].template is None:
            found = made(images=sample.pictures(), text=checkpoint.encoder.prompt(sample), **settings)
        else:
            found = made(text=[{"role": "user", "content": content}], **settings)
    answer, expected = found[0]["generated_text"].strip(), _answers(checkpoint, checkpoint.encoder([sample]))[0]
    if answer != expected:
        raise Wrong(f"answers {answer!r}, plan run {expected!r}")


def video(checkpoint: Checkpoint) -> None:
    """A prompt with a video: planned logits equal the slow reference's, and the plan drops the video's tokens."""
    made, model = checkpoint.loaded.processor, checkpoint.loaded.model
    content = [{"type": "video"}, {"type": "text", "text": samples.QUESTION}]
    text = made.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    clip = samples.clip()
    when = VideoMetadata(total_num_frames=len(clip), fps=2, duration=len(clip) / 2, frames_indices=[*range(len(clip))])
    encoded = made(text=[text], videos=[clip], video_metadata=[when], return_tensors="pt")
    inputs = {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}
    generate(model, inputs, 2)  # what fails without a plan is not the plan's fault
    with attach(model, checkpoint.schedule) as handle:
        generate(model, inputs, 2)
        report = handle.report
    visual = _visual(checkpoint, inputs)
    per_layer = [layer[0] for layer in report.visual] if report is not None else []
    if not visual or per_layer != [visual, visual, 4, 0]:
        raise Wrong(f"{visual} visual tokens, in the layers {per_layer}")
    _compare(checkpoint, inputs)


#: Steps that may be refused: what they need not every family has.
MAY_REFUSE = ("fallback", "overlay")
#: Steps of families with a video processor, which is what needs torchvision.
WITH_VIDEO = ("fallback", "video")
STEPS: dict[str, Callable[[Checkpoint], None]] = {
    "processor": processor,
    "visual tokens": visual_tokens,
    "fallback": fallback,
    "calibrate": calibration,
    "run": one_image,
    "two images": two_images,
    "overlay": overlay,
    "batch": batch,
    "reference": reference,
    "evaluate": evaluation,
    "bench": bench,
    "pipeline": pipe,
    "video": video,
}
