"""A plan as text: its stages, predicted cost and measured accuracy."""

from __future__ import annotations

from planner.engines import portability
from planner.plan import Plan, Prediction
from planner.report.evidence_view import evidence_text, promised, provenance
from planner.report.tables import layer_runs, table
from planner.report.units import flops, percent, size
from planner.report.verdict import as_text, verdict
from planner.schedule import Schedule
from planner.text import printable

STAGE_HEADERS = ("layers", "image sees image", "text sees image", "decoding sees", "then")
ENGINE_HEADERS = ("engine", "carries it", "why")
#: What the values of a stage mean, under the table that shows them.
STAGE_VALUES = {
    "full": "as in the dense model",
    "prefix": "a visual token attends to the text before it and to itself",
    "self": "a visual token attends to itself alone",
    "skip": "visual tokens pass by these layers as they are",
    "merge": "text reads the image as one merged token",
    "none": "the image is not visible",
    "kept": "only the tokens kept after these layers are cached",
    "all": "every visual token computed in these layers is cached",
}


def describe(plan: Plan, fmt: str = "table", path: str = "plan.json") -> str:
    """The whole plan for a reader, the verdict first, as plain text (`table`) or Markdown (`md`).

    Args:
        path: of the plan, for the commands that the verdict names.
    """
    model, parts = plan.model, [as_text(verdict(plan, path), fmt)]
    parts.append(f"Plan for {model.id} ({model.family}, {model.layers} layers, hidden size {model.hidden_size})")
    parts.append(bound_to(plan))
    parts.append(f"Policy {plan.decision.policy}")
    if plan.evidence is not None:
        parts.append(promised(plan.evidence, plan.decision.policy))
    parts.append(stages_table(plan.decision.schedule, fmt))
    parts.append(stage_legend(plan.decision.schedule))
    if engines := engine_rows(plan):
        parts.append(engines_table(engines, fmt))
    parts.extend(prediction_table(prediction, fmt) for prediction in plan.prediction)
    if plan.evidence is None:
        parts.append("No evidence: this plan's accuracy was not measured. `plan calibrate` measures it.")
    else:
        parts.extend(evidence_text(plan.evidence, fmt))
        parts.append(provenance(plan.evidence))
        parts.extend(f"Note: {note}" for note in plan.evidence.notes)
    return printable("\n\n".join(parts))


def bound_to(plan: Plan) -> str:
    """Which weights a plan is for, a sentence."""
    weights = plan.model.weights
    if weights is None:
        return "Not bound to weights: it was made before plans were, and fits any weights of this configuration."
    every = ", and to every byte of them" if weights.full_sha256 else ""
    return f"Bound to the weights it was made with ({weights.tensors} tensors, {weights.dtype}){every}."


def stages_table(schedule: Schedule, fmt: str = "table") -> str:
    """One row per stage; layers are counted from 0."""
    return table(STAGE_HEADERS, stage_rows(schedule), fmt)


def stage_rows(schedule: Schedule) -> list[list[str]]:
    """Cells under `STAGE_HEADERS`."""
    rows: list[list[str]] = []
    if schedule.tower is not None:
        merged = schedule.tower.merged
        rows.append(
            ["before 0", "", "", "", f"merge {sum(merged)} tokens of each tile in {len(merged)} encoder blocks"]
        )
    if schedule.entry is not None:
        rows.append(["before 0", "", "", "", schedule.entry.in_words])
    for stage in schedule.stages:
        layers = f"{stage.first:g}" if stage.last - stage.first == 1 else f"{stage.first:g}-{stage.last - 1:g}"
        then = "; ".join(select.in_words for select in stage.selects)
        if stage.redistribute is not None:
            then = "; ".join(filter(None, [then, f"redistribute {stage.redistribute.p:.0%} of sink attention"]))
        if stage.cache_generated is not None:
            then = "; ".join(filter(None, [then, "drop generated tokens from the cache"]))
        rows.append([layers, stage.visual_attention, stage.text_to_visual, stage.cache_visual, then])
    return rows


def stage_legend(schedule: Schedule) -> str:
    """The meaning of the values in `stages_table`, one sentence; values that the table does not show are left out."""
    shown = {value for _, *values, _ in stage_rows(schedule) for value in values}
    return "; ".join(f"{value}: {meaning}" for value, meaning in STAGE_VALUES.items() if value in shown) + "."


def engines_table(rows: list[list[str]], fmt: str = "table") -> str:
    """What each engine can carry of a plan, and why not more."""
    return "Portable (`plan export PLAN --to ENGINE` says how)\n\n" + table(ENGINE_HEADERS, rows, fmt)


def engine_rows(plan: Plan) -> list[list[str]]:
    """Cells under `ENGINE_HEADERS`; none of a plan that changes nothing, which any engine carries."""
    if plan.decision.schedule.empty:
        return []
    return [[one.engine.name, one.level, "; ".join(one.why)] for one in portability(plan)]


def prediction_table(prediction: Prediction, fmt: str = "table") -> str:
    """Dense beside planned, for one workload."""
    load, dense, planned = prediction.workload, prediction.dense, prediction.planned
    rows = [
        [name, spell(before), spell(after), percent(after / before, 1) if before else ""]
        for name, before, after, spell in (
            ("prefill", dense.prefill_flops, planned.prefill_flops, flops),
            ("attention of visual tokens", dense.visual_attention_flops, planned.visual_attention_flops, flops),
            ("decoding, per token", dense.decode_flops_per_token, planned.decode_flops_per_token, flops),
            ("KV cache", dense.kv_cache_bytes, planned.kv_cache_bytes, size),
        )
    ]
    tokens = layer_runs(planned.visual_tokens_per_layer)
    title = (
        f"Predicted ({prediction.convention} convention) for {load.system_tokens} + {load.visual_tokens} visual + "
        f"{load.text_tokens} text tokens, batch {load.batch}"
    )
    body = table(["", "dense", "planned", "of dense"], rows, fmt)
    return f"{title}\n\n{body}\n\nVisual tokens x layers: {tokens}."
