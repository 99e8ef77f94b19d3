"""`plan report --check`: load a model, run one forward on a synthetic picture, count it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from planner.cost.flops import Head
    from planner.workload import Workload

#: What the model is asked about the picture. Only lengths matter.
PROMPT = "What is in the image?"


def check_model(name: str, policies: Sequence[tuple[str, Any]], head: Head, fmt: str) -> str:
    """The text of a check.

    Args:
        name: model directory, hub id, or ``reference/plain`` and the like.
        policies: spelling and policy of each row after the dense one.

    Raises:
        InputError: a name of shipped facts, which have no weights.
        PlannerError: the model cannot be loaded, or a policy cannot be attached to it.
    """
    from calibrate.inputs.batches import Batches
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.inputs.load_options import LoadOptions
    from calibrate.inputs.samples import Sample, SampleSet
    from calibrate.running.check import check
    from planner.cli.options import load_for
    from planner.report.check_view import render_checks
    from planner.report.targets import ORDINARY_PICTURE
    from planner.schedule import dense

    loaded = load_for(name, None, LoadOptions())
    known = identify(loaded.model, loaded.id)
    sample = Sample((_picture(ORDINARY_PICTURE),), PROMPT, where="the prompt")
    encoder = Encoder(loaded.processor, known.visual_ids)
    batches = Batches(SampleSet((sample,), source="a synthetic picture"), encoder, loaded.model, 1)
    workload, notes = _workload(known.spec, batches.shapes()[0], ORDINARY_PICTURE)
    schedules = [("dense", dense(known.layers))]
    for spelling, policy in (pair for pair in policies if pair[0] != "dense"):
        settled = policy.resolve(known.spec, workload, None)
        if settled != policy:
            click.echo(f"{spelling} is {settled}", err=True)
        schedules.append((spelling, settled.schedule(known.spec, workload, None)))
    checks = check(loaded.model, batches[0].inputs, workload, schedules, head)
    return render_checks(loaded.id, workload, checks, notes, fmt)


def _picture(size: tuple[int, int]) -> Any:
    """A grey ramp."""
    from PIL import Image

    return Image.linear_gradient("L").resize(size).convert("RGB")


def _workload(spec: Any, lengths: tuple[int, int, int], size: tuple[int, int]) -> tuple[Workload, list[str]]:
    """What the processor made of the prompt; the picture's size too, where the cost model knows what became of it."""
    from planner.spec.images import encode
    from planner.workload import Workload

    system, visual, text = lengths
    sizes = {"visual_tokens": visual, "text_tokens": text, "system_tokens": system, "output_tokens": 1}
    expected = encode(spec, *size).visual_tokens
    if expected == visual:
        return Workload.of(**sizes, images=(size,)), []
    return Workload.of(**sizes), [
        f"the processor makes {visual} visual tokens of {size[0]} x {size[1]} pixels, the family's default {expected}: "
        "the vision encoder is predicted from the number of tokens"
    ]
