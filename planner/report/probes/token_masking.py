"""Which visual tokens matter where: chosen ones hidden from the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.report import charts
from planner.report.section import Picture, Section, Subject, Table, percent, series, shown

#: Group to what it is measured in, and its conditions with what each hides.
_GROUPS = {
    "first": (
        "the first two layers",
        {
            "top_by_last": "top {top}, last token's attention",
            "top_by_text": "top {top}, text's attention",
            "nearest": "{top} nearest to the text",
            "others": "all but the top {top}",
            "first_half": "first half",
            "second_half": "second half",
        },
    ),
    "middle": (
        "middle layers",
        {
            "top": "top {top}",
            "bottom": "bottom {top}",
            "all_but_top": "all but the top {kept}",
            "merged": "merged into one token",
        },
    ),
    "all": (
        "one range of layers, all tokens",
        {"shallow": "shallow layers", "middle": "middle layers", "deep": "deep layers"},
    ),
    "merge": (
        "layer 0 alone, merged into one token",
        {
            "hidden": "hidden, not merged",
            "first": "the first",
            "quarter": "at a quarter",
            "half": "in the middle",
            "last": "the last",
        },
    ),
}


def section(subject: Subject) -> Section:
    """How often the first answer token stays the dense model's under each condition."""
    conditions = subject.values["conditions"]
    shares = {name: percent(subject.probe.settings[name]) for name in ("top", "kept")}
    pictures, rows = [], []
    for group, (where, names) in _GROUPS.items():
        labels = {f"{group}.{name}": text.format(**shares) for name, text in names.items()}
        entries = [conditions[name]["agreement"] for name in labels]
        pictures.append(
            Picture(f"Visual tokens hidden from the text in {where}{_layers(subject, group)}: share of first answer "
                    "tokens that stay the same, with 95 % intervals.", _drawing(list(labels.values()), entries))
        )  # fmt: skip
        for name, label in labels.items():
            found = conditions[name]
            rows.append([f"{where}: {label}", shown(found["agreement"], True),
                         shown(found["first_token_accuracy"], True) if found["first_token_accuracy"]["n"] else "",
                         f"{found['kl']['value']:.4f}"])  # fmt: skip
    return Section(
        "token_masking",
        "Which visual tokens matter where",
        "Chosen visual tokens are hidden from the text in some layers; the others run as ever (VisiPruner, sections "
        "3.2, 4.1 and 4.2, tables 1 and 7 to 9). Tokens are ranked by the dense model's attention in that layer.",
        _findings(conditions, subject.limit, shares),
        pictures,
        [Table("Every condition", ("hidden from the text", "same first token (95 %)", "right first token (95 %)",
                                   "KL divergence, nats"), rows)],
    )  # fmt: skip


def _drawing(labels: list[str], entries: list[Any]) -> Any:
    return lambda: charts.bars(labels, {"answers": series(entries)}, xlabel="", ylabel="same first token", share=True)


def _layers(subject: Subject, group: str) -> str:
    if group not in subject.values["ranges"] or group == "first":
        return ""
    first, last = subject.values["ranges"][group]
    return f" [{first}, {last})"


def _findings(conditions: Mapping[str, Any], limit: float, shares: Mapping[str, str]) -> list[str]:
    def value(name: str) -> float:
        return float(conditions[name]["agreement"]["value"])

    def harmless(*names: str) -> bool:
        return all(conditions[name]["agreement"]["high"] >= limit for name in names)

    top, kept = shares["top"], shares["kept"]
    shallow = (
        f"In the first two layers the {top} that get most attention can be hidden with "
        f"{percent(value('first.top_by_last'))} of the answers unchanged, and all others with "
        f"{percent(value('first.others'))}: "
    )
    shallow += (
        "attention there does not say which tokens matter, as the paper finds."
        if harmless("first.top_by_last", "first.others")
        else "unlike in the paper, it makes a difference which are hidden."
    )
    tops, bottoms = conditions["middle.top"]["agreement"], conditions["middle.bottom"]["agreement"]
    middle = (
        f"In the middle layers hiding the top {top} leaves {percent(tops['value'])} of the answers, the bottom {top} "
        f"{percent(bottoms['value'])}: "
    )
    if tops["high"] < bottoms["low"]:
        middle += "there attention points to what is read, as the paper finds."
    elif bottoms["high"] < tops["low"]:
        middle += "unlike in the paper, the least attended matter more."
    else:
        middle += "too close to tell whether attention points to what is read."
    middle += f" The top {kept} alone keep {percent(value('middle.all_but_top'))}."
    names = sorted(("shallow", "middle", "deep"), key=lambda name: value(f"all.{name}"))
    parts = ", ".join(f"{percent(value(f'all.{name}'))} in {name} layers" for name in names)
    worst, next_worst = (conditions[f"all.{name}"]["agreement"] for name in names[:2])
    needed = (
        f"the image is needed most in the {names[0]} ones."
        if worst["high"] < next_worst["low"]
        else "too close to tell where the image is needed most."
    )
    merges = [value(f"merge.{name}") for name in _GROUPS["merge"][1] if name != "hidden"]
    return [
        shallow,
        middle,
        f"All tokens hidden in one range leave {parts}: {needed}",
        f"Layer 0 merged into one token keeps {percent(min(merges))} to {percent(max(merges))} of the answers, "
        f"depending on the token; hidden without merging, {percent(value('merge.hidden'))}.",
    ]
