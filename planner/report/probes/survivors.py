"""Context pruning, further: which tokens stay, how spread out attention is, how the model does by object size.

Profiles of earlier releases have none of it, and show nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.report import charts
from planner.report.charts import Series, exact
from planner.report.section import Picture, Subject, Table, highest, lowest, numbers, percent, series, shown


def pictures(subject: Subject) -> list[Picture]:
    """Tokens that stay by kind, per layer, and by place; variance of the weights."""
    values = subject.values
    if "kept" not in values:
        return []
    layers = list(range(subject.layers))
    place, kinds = series(values["kept"]["place"]), _kinds(values)
    variance = {
        run: Series(*(numbers(found[name][-1]) for name in ("value", "low", "high")))
        for run, found in values["variance"].items()
    }
    return [
        Picture(
            "Share of the context's tokens that are left after each layer at the default rate and the longest context, "
            "by what they are.",
            lambda: charts.lines(layers, kinds, xlabel="decoder layer", ylabel="tokens left", share=True),
        ),
        Picture(
            "Share that is left in the end in each tenth of the context, from its beginning to the question, with 95 % "
            "intervals.",
            lambda: charts.lines(list(range(1, len(place.value) + 1)), {"tokens left": place},
                                 xlabel="tenth of the context", ylabel="tokens left", share=True),
        ),
        Picture(
            "Variance of the weights of question and role tokens over what they see, at the longest context (context "
            "pruning eq. 8): higher means that attention is on fewer tokens.",
            lambda: charts.lines(layers, variance, xlabel="decoder layer", ylabel="variance"),
        ),
    ]  # fmt: skip


def findings(values: Mapping[str, Any], lengths: list[int]) -> list[str]:
    """What stays, and whether larger objects do better."""
    if "kept" not in values:
        return []
    place, kinds = series(values["kept"]["place"]).value, _kinds(values)
    least, most = lowest(place), highest(place)
    last = {name: found.value[-1] for name, found in kinds.items()}
    ranked = sorted(last, key=lambda name: -last[name])
    found = [
        f"Between {percent(place[least])} (tenth {least + 1}) and {percent(place[most])} (tenth {most + 1}) of the "
        f"context stay, by place; by kind {', '.join(f'{percent(last[name])} of {name}' for name in ranked)}."
    ]
    sizes = values["object_sizes"]
    if sizes is not None:
        right = {name: series(one["right"]).value for name, one in _by_size(sizes)}
        told = "; ".join(f"{name} {percent(row[0])} and {percent(row[-1])}" for name, row in right.items())
        found.append(
            f"By the size of what is asked for, without pruning, beside {lengths[0]} and {lengths[-1]} tokens of "
            f"context: {told}."
        )
    return found


def tables(values: Mapping[str, Any], lengths: list[int]) -> list[Table]:
    """The dense model by object size and length."""
    sizes = values.get("object_sizes")
    if sizes is None:
        return []
    rows = [
        [
            f"{name}, up to {one['largest']:g} ({one['samples']} samples)",
            *(shown(entry, True) for entry in one["right"]),
        ]
        for name, one in _by_size(sizes)
    ]
    headers = ("what is asked for", *(f"{length} tokens" for length in lengths))
    return [Table("Without pruning, by the size of what is asked for (95 %)", headers, rows)]


def _by_size(sizes: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Groups from small to large, however their keys are sorted."""
    return sorted(sizes.items(), key=lambda group: float(group[1]["largest"]))


def _kinds(values: Mapping[str, Any]) -> dict[str, Series]:
    """Kinds of tokens that the contexts had, in alphabetical order."""
    kinds = sorted(values["kept"]["kind"].items())
    return {name: exact(numbers(found["value"])) for name, found in kinds if found["value"][-1] is not None}
