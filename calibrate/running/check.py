"""One real forward, counted, beside what the cost model predicts for it.

Two counters that know nothing of the cost model look at the running model: torch's (`planner.runtime.count`) and
fvcore's (`planner.runtime.fvcore_handles`), in the components that both can tell apart by module:

* ``vision``: everything outside the text tower and the head;
* ``attention``: projections, scores, and all selections, which run inside the text tower;
* ``ffn``: what else the decoder layers hold;
* ``lm_head``.

A probe of the next layer runs that layer's projections, so that projections and selection are one component here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from planner.cost import Cost, cost
from planner.cost.flops import Head
from planner.runtime.attach import attach
from planner.runtime.count import FlopCounter
from planner.runtime.fvcore_handles import analysis
from planner.runtime.model.adapters import Parts, find_parts
from planner.schedule import Schedule
from planner.spec import ModelSpec
from planner.workload import Workload

COUNTED_PARTS = ("vision", "attention", "ffn", "lm_head")


@dataclass(frozen=True)
class Check:
    """One prefill: predicted, and counted twice. FLOPs by component, 2 a multiply-add.

    Attributes:
        policy: its spelling.
        fvcore: None where fvcore cannot trace the model.
        note: why fvcore is missing, or may differ; empty otherwise.
    """

    policy: str
    predicted: dict[str, int]
    torch: dict[str, int]
    fvcore: dict[str, int] | None
    note: str = ""

    @property
    def torch_equal(self) -> bool:
        """Every component that torch's counter saw is the predicted one, to the integer."""
        return self.torch == self.predicted

    @property
    def fvcore_equal(self) -> bool | None:
        """The same of fvcore; None where there is no count."""
        return None if self.fvcore is None else self.fvcore == self.predicted


def check(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    workload: Workload,
    policies: Sequence[tuple[str, Schedule]],
    head: Head = "last",
) -> list[Check]:
    """Count one forward of a model under each schedule, attached.

    Args:
        model: a transformers vision-language model in evaluation mode.
        inputs: what its processor gives for a prompt with an image, on the model's device.
        workload: the same prompt in the cost model's terms.
        policies: spelling and schedule; an empty schedule leaves the model as it is.
        head: positions that the language-model head runs on.

    Raises:
        PlannerError: the model has no known facts, or a schedule cannot be attached.
    """
    parts = find_parts(model)
    spec = ModelSpec.from_config(parts.model.config.to_dict())
    options = {"logits_to_keep": 1} if head == "last" else {}
    found = []
    for name, schedule in policies:
        predicted = _predicted(cost(spec, workload, schedule, head=head))
        with nullcontext() if schedule.empty else attach(model, schedule), torch.no_grad():
            with FlopCounter() as counter:
                model(**inputs, **options, use_cache=False)
            # An operator that is counted outside of every module would be missing in the sum over modules.
            counted = _by_component(parts, _named(counter.by_module()), counter.total)
            traced, note = _traced(model, parts, inputs, schedule, options)
        if traced is not None and any(traced[name] < predicted[name] for name in COUNTED_PARTS):
            note = (
                "fvcore's trace leaves out what no output depends on, such as layers behind the selected features and "
                "visual tokens behind the last layer in which something reads them"
            )
        found.append(Check(name, predicted, counted, traced, note))
    return found


def _predicted(of: Cost) -> dict[str, int]:
    values = of.prefill
    return {
        "vision": values["vision"] + values["projector"],
        "attention": values["attention_projections"] + values["attention_scores"] + values["selector"],
        "ffn": values["ffn"],
        "lm_head": values["lm_head"],
    }


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by module name, without the name of the outermost module that both counters put in front."""
    return {name.partition(".")[2]: flops for name, flops in counts.items()}


def _by_component(parts: Parts, counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Components from counts by module, in which a parent includes its children."""
    names = {module: name for name, module in parts.model.named_modules()}
    head = counts.get(names.get(parts.model.get_output_embeddings(), "lm_head"), 0)
    tower = counts.get(names[parts.tower], 0)
    # Children one by one: a layer whose visual rows run alone is not always entered as a whole.
    beside_attention = (
        child
        for index, layer in enumerate(parts.layers)
        for child in layer.children()
        if child is not parts.attentions.get(index)
    )
    ffn = sum(counts.get(names[child], 0) for child in beside_attention)
    return {"vision": total - tower - head, "attention": tower - ffn, "ffn": ffn, "lm_head": head}


def _traced(
    model: Any, parts: Parts, inputs: Mapping[str, torch.Tensor], schedule: Schedule, options: Mapping[str, Any]
) -> tuple[dict[str, int] | None, str]:
    """fvcore's counts, or why there are none."""
    if any(select.probe for select in schedule.selects):
        return None, "fvcore cannot trace a plan that probes the next layer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace fixes the shapes it has seen, which is all that is asked of it
        try:
            found = analysis(model, **inputs, **options)
            counts = {name: 2 * int(flops) for name, flops in found.by_module().items()}
        except Exception as error:  # what a trace stumbles over is the model's own code: anything
            lines = str(error).strip().splitlines()
            return None, f"fvcore cannot trace this model ({lines[0] if lines else type(error).__name__})"
    return _by_component(parts, _named(counts), counts[""]), ""
