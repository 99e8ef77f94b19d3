"""Influence: how much one visual token moves the last prompt token, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.report import charts
from planner.report.charts import Series, exact
from planner.report.section import (
    Picture,
    Section,
    Subject,
    Table,
    count,
    figure,
    highest,
    numbers,
    percent,
    series,
    shown,
)

#: Quantiles of the cosine over visual tokens, from the token that matters most.
_TOKENS = {"0": "strongest token", "0.01": "strongest 1 %", "0.05": "strongest 5 %", "0.5": "median token"}


def section(subject: Subject) -> Section:
    """Shares of samples and tokens over the thresholds, and the filter, budget and exit that they suggest."""
    values, settings = subject.values, subject.probe.settings
    threshold = settings["filter_cos"][0]
    triggered = series(values["triggered_samples"])
    layers = list(range(len(triggered.value)))
    pictures = [
        Picture(
            f"Share of samples in which some visual token turns the last token's attention output below cosine "
            f"{threshold:g}, with 95 % intervals.",
            lambda: charts.lines(layers, {"samples": triggered}, xlabel="decoder layer", ylabel="samples",
                                 marks=subject.marks, share=True),
        ),
        Picture(
            "Change of the output without one token (1 - cosine, logarithmic, mean over samples). A wide gap between "
            "the strongest tokens and the median one means that few tokens carry the image.",
            lambda: charts.lines(layers, _turns(values["cos_quantiles"]), xlabel="decoder layer", ylabel="1 - cosine",
                                 marks=subject.marks, log=True),
        ),
        Picture(
            f"Visual tokens per sample below cosine {threshold:g}, and those whose removal changes the output by at "
            f"least {settings['keep_l2']:g} (L2), means with 95 % intervals.",
            lambda: charts.lines(
                layers,
                {"below the cosine": series(values["triggered_tokens"]),
                 "over the L2 threshold": series(values["tokens_over_l2"])},
                xlabel="decoder layer", ylabel="visual tokens", marks=subject.marks,
            ),
        ),
    ]  # fmt: skip
    filters, exits = subject.rows("filter"), subject.rows("exit")
    if filters and exits:
        both = {"filter layer": _histogram([row[0] for row in filters], len(layers)),
                "exit layer": _histogram([row[0, 0] for row in exits], len(layers))}  # fmt: skip
        pictures.append(
            Picture(
                "Filter and exit layer of each sample at the published thresholds; samples that never trigger or never "
                "exit are at the right.",
                lambda: charts.bars([*map(str, layers), "never"], both, xlabel="decoder layer", ylabel="samples",
                                    share=True),
            )
        )  # fmt: skip
    return Section(
        "influence",
        "Influence of visual tokens on the answer",
        "The influence of a visual token is the change of the last prompt token's attention output when the weight of "
        "this one token is zeroed (VisiPruner, eq. 6-8). The filter layer is the first in which any token matters, "
        "the exit layer the second of two consecutive ones in which no kept token does. The published thresholds were "
        "tuned on one model, so they only propose candidates; executed candidates decide.",
        _findings(subject, triggered, threshold),
        pictures,
        [_suggested(values), _stages(values)],
    )


def _findings(subject: Subject, triggered: Series, threshold: float) -> list[str]:
    return [*_triggering(subject, triggered, threshold), *_noise(subject.values.get("noise", {"n": 0}), threshold)]


def _noise(noise: Mapping[str, Any], threshold: float) -> list[str]:
    """In half precision: whether the threshold can be told from what company in a batch does."""
    if not noise["n"]:
        return []
    most = noise["most"]["1"]
    verdict = (
        f"more than the {1 - threshold:.2g} that the threshold asks for, which is below the noise: measure in float32, "
        "or trust the masking curves"
        if noise["exceeds_filter_cos"]
        else f"less than the {1 - threshold:.2g} that the threshold asks for"
    )
    return [
        f"Measured alone and in a batch, the smallest cosine of {count(noise['n'], 'sample')} differs by up to "
        f"{figure(most, 2)} in some layer: {verdict}."
    ]


def _triggering(subject: Subject, triggered: Series, threshold: float) -> list[str]:
    n, stage = subject.probe.n, subject.values["stages"][f"{threshold:g}"]["absolute"]
    never = stage["never_filtered"]
    if never == n:
        return [f"In none of {n} samples does a single visual token turn the last token's output below cosine "
                f"{threshold:g}: at the published threshold this model has no filtering layer."]  # fmt: skip
    peak = highest(triggered.value)
    found = [
        f"In {percent(1 - never / n)} of {n} samples some visual token turns the last token's output below cosine "
        f"{threshold:g}, most often in layer {peak} ({percent(triggered.value[peak])}); in {never or 'none'} none does."
    ]
    parts = [f"the filter layer is {shown(stage['filter'])} on average", f"{shown(stage['kept'])} tokens are kept"]
    if stage["exit"]["value"] is not None:
        parts.append(f"the exit layer is {shown(stage['exit'])}")
    lacking = (("kept_none", "no token to keep"), ("never_exited", "no exit layer"))
    rest = [f"{count(stage[key], 'sample has', 'samples have')} {what}" for key, what in lacking if stage[key]]
    left = f"; {' and '.join(rest)}" if rest else ""
    found.append(f"Where it triggers, {', '.join(parts[:-1])} and {parts[-1]}{left}.")
    return found


def _turns(quantiles: dict[str, Any]) -> dict[str, Series]:
    """1 - cosine, at least what float32 resolves, for a logarithmic axis."""
    return {
        name: exact([max(1 - cos, 1e-7) for cos in numbers(quantiles[level])])
        for level, name in _TOKENS.items()
        if level in quantiles
    }


def _histogram(found: list[Any], layers: int) -> Series:
    """Share of samples per layer, and last of those without one (-1)."""
    at = np.asarray(found, int)
    counts = np.bincount(np.where(at < 0, layers, at), minlength=layers + 1)
    return exact([float(share) for share in counts / len(at)])


def _suggested(values: Any) -> Table:
    rows = [
        [f"{percent(float(level))} of the samples", str(stage["filter"]), str(stage["keep"]), str(stage["exit"])]
        for level, stage in sorted(values["suggested"].items(), key=lambda stage: float(stage[0]))
    ]
    return Table("Suggested by the published rule", ("to fit", "filter layer", "tokens kept", "exit layer"), rows)


def _stages(values: Any) -> Table:
    headers = ("cosine below, tokens kept by", "filter layer (95 %)", "never filtered", "kept (95 %)", "kept none",
               "exit layer (95 %)", "never exited")  # fmt: skip
    rows = [
        [
            f"{threshold}, {rule}", shown(stage["filter"]), str(stage["never_filtered"]), shown(stage["kept"]),
            str(stage["kept_none"]), shown(stage["exit"]), str(stage["never_exited"]),
        ]
        for threshold, rules in sorted(values["stages"].items(), key=lambda stage: -float(stage[0]))
        for rule, stage in sorted(rules.items())
    ]  # fmt: skip
    return Table("Every threshold and keep rule: means over the samples that trigger, counts of samples", headers, rows)
