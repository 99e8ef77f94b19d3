"""Published figures, recomputed: what a paper printed, what its convention gives, and what would explain a difference.

The figures are data, ``profiles/published/figures.json``: source, model, policy, convention, and the number as printed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from planner.cost import cost
from planner.errors import InputError
from planner.policies import parse
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

#: A difference up to this share of the printed figure is a rounding somewhere in the paper, not another formula.
NEAR = 0.015
_UNITS = {
    "prefill_tera": "T",
    "per_layer_giga": "G a layer",
    "prefill_change": "%",
    "attention_change": "%",
    "cache_mega": "MB",
}


@dataclass(frozen=True)
class Comparison:
    """One printed figure and ours.

    Attributes:
        source, what: where it is printed, and of what.
        convention: in which it is counted.
        printed, ours: in `unit`; `places` decimals are printed.
        exact: the same quantity counted in the `exact` convention (decoder only), where the schedule can be executed.
        needed: what would give the printed figure, where ours does not.
        note: anything a reader must know.
    """

    source: str
    what: str
    convention: str
    printed: float
    ours: float
    places: int
    unit: str
    exact: float | None
    needed: str
    note: str

    @property
    def verdict(self) -> str:
        """``yes`` to the printed digits, ``near``, or ``no``."""
        if abs(self.ours - self.printed) <= 0.5 * 10**-self.places * (1 + 1e-9):
            return "yes"
        return "near" if abs(self.ours - self.printed) <= NEAR * abs(self.printed) else "no"


def comparisons() -> tuple[Comparison, ...]:
    """Every figure, computed now."""
    text = (resources.files("planner.profiles") / "published" / "figures.json").read_text()
    return tuple(_compare(figure) for figure in json.loads(text)["figures"])


def _compare(figure: dict[str, Any]) -> Comparison:
    vary = figure.get("vary", {})
    ours = _value(figure, figure["convention"], vary.get("start"))
    if ours is None:
        raise InputError(f"the published figure '{figure['what']}' cannot be costed", "Check profiles/published")
    return Comparison(
        source=figure["source"],
        what=figure["what"],
        convention=figure["convention"],
        printed=figure["printed"],
        ours=ours,
        places=figure["places"],
        unit=_UNITS[figure["quantity"]],
        exact=_value(figure, "exact", vary.get("start")),
        needed=_needed(figure) if vary else "",
        note=figure.get("note", ""),
    )


def _value(figure: dict[str, Any], convention: str, x: float | None) -> float | None:
    """The figure in a convention, with the unknown of its policy or workload at `x`; None if it cannot be executed."""
    spec = ModelSpec.from_config(figure["model"])
    tokens = figure["visual_tokens"]
    if x is not None and figure["vary"].get("of") == "visual_tokens":
        tokens = round(x)
    workload = Workload(visual_tokens=tokens, **figure.get("prompt", {}))
    schedule = parse(figure["policy"].format(x=x)).schedule(spec, workload)
    if convention == "exact" and not schedule.executable:
        return None
    planned, whole = (cost(spec, workload, s, convention) for s in (schedule, dense(spec.layers)))
    ours, theirs = (
        found.prefill_flops - found.prefill["vision"] - found.prefill["projector"] for found in (planned, whole)
    )
    match figure["quantity"]:
        case "prefill_tera":
            return float(ours / 1e12)
        case "per_layer_giga":
            # The exact convention sums over layers.
            return float(ours / 1e9 / (spec.layers if convention == "exact" else 1))
        case "prefill_change":
            return float(100 * (ours / theirs - 1))
        case "attention_change":
            return float(100 * (planned.visual_attention / whole.visual_attention - 1))
        case "cache_mega":
            return float(planned.kv_cache_bytes / 1e6)
    raise InputError(f"published figure of unknown quantity '{figure['quantity']}'", f"Known: {', '.join(_UNITS)}")


def _needed(figure: dict[str, Any]) -> str:
    """The value of the unknown that gives the printed figure, by bisection."""
    vary = figure["vary"]
    low, high = float(vary["low"]), float(vary["high"])

    def gap(x: float) -> float:
        return (_value(figure, figure["convention"], x) or 0.0) - float(figure["printed"])

    rising = gap(high) > gap(low)
    if gap(low) * gap(high) > 0:
        return f"no {vary['unit']} between {low:g} and {high:g} gives it"
    for _ in range(24):
        middle = (low + high) / 2
        if (gap(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return f"{vary['unit']} {high:.4g}"


_INTRODUCTION = """\
# Published figures, recomputed

Every FLOPs or attention figure of the papers named below, recomputed from the model's configuration in the paper's own
convention. `plan report --published -o reports/published.md` writes this file.

* *reproduced* is **yes** if all printed digits agree, **near** within 1.5 %, and **no** otherwise; the last column then
  says what would explain the printed figure.
* *exact* is the same quantity as a FLOP counter measures it on the running decoder (two FLOPs per multiply-add, text
  tokens included), for schedules that can be executed: 10 system, the stated visual, and 64 text tokens (SparseVLM:
  118 in all).
* Papers: VisiPruner ("Decoding Discontinuous Cross-Modal Dynamics for Efficient Multimodal LLMs"); FastV (Chen et al.,
  "An Image is Worth 1/2 Tokens After Layer 2"); PyramidDrop (Xing et al., "Accelerating Your Large Vision-Language
  Models via Pyramid Visual Redundancy Reduction"); SparseVLM (Zhang et al., "Visual Token Sparsification for Efficient
  Vision-Language Model Inference"); CDPruner (Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional
  Diversity for Token Pruning in MLLMs"). The rows of FitPrune are those of VisiPruner's table 6. `docs/papers.md` lists
  the papers.
* FastV's table follows from `n = 612 - R * 576` tokens after layer K; the formula in its text, `n = (1 - R) * 612`,
  gives other figures. Layers are as the papers count them.
* SparseVLM's rows of FastV run one layer on all tokens, although FastV is to drop behind its second. Its cache figures
  are of visual tokens alone, at 0.525 MB each; one of LLaVA-1.5-7B takes 0.524288.
* CDPruner's convention counts what `pdrop` counts, a multiply-add as two. Its FastV has as many tokens as the others in
  the mean over layers: 149.3 of 2,880 behind the second.
* Those rows of SparseVLM's tables and of CDPruner's were reported to this project; the printed pages were not at hand.
* ToMe's rows are `tome`, which merges inside the encoder. How many tokens each block merges is not printed; SparseVLM's
  convention leaves the encoder out, so that only how many reach the decoder counts.
* Not recomputed: VisionDrop's reductions (arXiv 2506.22283). They are LLaVA-NeXT-7B's, and its released scripts give
  the tokens of each stage for LLaVA-1.5-7B alone: 48 into the decoder, 35, 26 and 19 from layers 8, 16 and 24 on, of
  which 6, 5, 4 and 3 are merged ones. Nor RVSD's, of which no paper was found.
* SparseVLM's layers 2, 6 and 15 count from 0, run on all tokens and drop behind themselves: `layers=3/7/16` here.
"""


def markdown() -> str:
    """The whole comparison as Markdown."""
    found = comparisons()
    lines = [_INTRODUCTION]
    counts = {verdict: sum(c.verdict == verdict for c in found) for verdict in ("yes", "near", "no")}
    lines.append(
        f"{len(found)} figures: {counts['yes']} reproduced to the printed digits, {counts['near']} near, "
        f"{counts['no']} not.\n"
    )
    for source in dict.fromkeys(c.source for c in found):
        lines.append(f"## {source}\n")
        lines.append(
            "| what | convention | printed | ours | difference | reproduced | exact | what it would need, notes |"
        )
        lines.append("|---|---|---:|---:|---:|---|---:|---|")
        lines += [_line(c) for c in found if c.source == source]
        lines.append("")
    return "\n".join(lines)


def _line(c: Comparison) -> str:
    digits = c.places + 1
    exact = "" if c.exact is None else f"{c.exact:.{digits}f} {c.unit}"
    difference = f"{c.ours - c.printed:+.{digits}f}" if c.unit == "%" else f"{100 * (c.ours / c.printed - 1):+.1f} %"
    remarks = "; ".join(filter(None, [f"needs {c.needed}" if c.needed and c.verdict == "no" else "", c.note]))
    cells = (
        c.what,
        c.convention,
        f"{c.printed:.{c.places}f} {c.unit}",
        f"{c.ours:.{digits}f} {c.unit}",
        difference,
        c.verdict,
        exact,
        remarks,
    )
    return "| " + " | ".join(cells) + " |"
