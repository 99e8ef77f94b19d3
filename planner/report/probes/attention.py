"""Attention on the image: how sparse it is, the values of attended tokens, whether it follows place or content."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from planner.report import charts
from planner.report.charts import exact
from planner.report.section import (
    Picture,
    Section,
    Subject,
    figure,
    highest,
    layer_names,
    lowest,
    numbers,
    per_layer_table,
    percent,
    series,
)


def sparsity(subject: Subject) -> Section:
    """Share of the image attention on its most attended part, per layer."""
    values, part = subject.values, subject.probe.settings["top_share"]
    top, image = series(values["top_quarter_share"]), series(values["image_attention"])
    layers, most, least = list(range(len(top.value))), highest(top.value), lowest(top.value)
    more = [*_curve(values), *_places(values, part)]
    return Section(
        "sparsity",
        "How sparse is attention on the image?",
        f"Of the last prompt token's attention on the image: how much goes to the most attended {percent(part)} of the "
        f"image tokens? Spread evenly it would be {percent(part)}.",
        [
            f"The most attended {percent(part)} of the image tokens get {percent(top.value[least])} of the image "
            f"attention in layer {least} and {percent(top.value[most])} in layer {most}.",
            *_half(values),
            f"The image as a whole gets {percent(image.value[highest(image.value)])} of all attention in layer "
            f"{highest(image.value)} and {percent(image.value[lowest(image.value)])} in layer {lowest(image.value)}.",
        ],
        [
            Picture(
                f"Share of the image attention on the most attended {percent(part)} of the image tokens, and the "
                "image's share of all attention, with 95 % intervals.",
                lambda: charts.lines(layers, {f"top {percent(part)} of the image": top, "image of everything": image},
                                     xlabel="decoder layer", ylabel="attention", share=True, level=("even", part)),
            ),
            *more,
        ],
        [per_layer_table("Per layer (95 %)", {"on the top part": top, "on the image": image}, True)],
    )  # fmt: skip


def _half(values: Mapping[str, Any]) -> list[str]:
    """How few tokens hold half of the attention, in the layer where they are fewest."""
    found = values.get("curve")
    if found is None:  # profiles of earlier releases
        return []
    needed = [
        next((share for share, held in zip(found["shares"], numbers(row), strict=True) if held >= 0.5), 1.0)
        for row in found["value"]
    ]
    few, many = lowest(needed), highest(needed)
    return [
        f"Half of the image attention is on {percent(needed[few])} of the image tokens or less in layer {few}, and on "
        f"{percent(needed[many])} in layer {many}."
    ]


def _spread(layers: int, count: int) -> list[int]:
    """Some layers from the first to the last."""
    return sorted({round(step * (layers - 1) / max(count - 1, 1)) for step in range(min(count, layers))})


def _curve(values: Mapping[str, Any]) -> list[Picture]:
    """Share of the image attention against the share of the image tokens, for some layers."""
    found = values.get("curve")
    if found is None:
        return []
    drawn = {f"layer {layer}": exact(numbers(found["value"][layer])) for layer in _spread(len(found["value"]), 6)}
    return [
        Picture(
            "How much of the image attention the most attended tokens hold together, against how many of the image "
            "tokens they are, for layers from the first to the last. Even attention would lie on the diagonal.",
            lambda: charts.lines(found["shares"], drawn, xlabel="share of the image tokens", ylabel="image attention",
                                 share=True, whole=False),
        )
    ]  # fmt: skip


def _places(values: Mapping[str, Any], part: float) -> list[Picture]:
    """Where the most attended tokens are, for some layers."""
    found = values.get("places")
    if found is None:
        return []
    shown = {f"layer {layer}": found[layer] for layer in _spread(len(found), 8)}
    return [
        Picture(
            f"How often a place of the picture is among the most attended {percent(part)}, for layers from the first "
            f"to the last; {percent(part)} everywhere would be no preference.",
            lambda: charts.pictures(shown, label="samples"),
        )
    ]


def value_norms(subject: Subject) -> Section:
    """Norms of value vectors: all tokens of a segment against the most attended ones."""
    values = subject.values
    drawn = {}
    segments = [segment for segment in ("system", "image", "text") if segment in values]
    for segment in segments:
        found = values[segment]
        drawn[segment] = series(found["all"])
        drawn[f"{segment}, most attended"] = series(found["top_quarter"])
    findings = []
    for segment in segments:
        whole, top = drawn[segment].value, drawn[f"{segment}, most attended"].value
        ratios = [some / every if every else math.nan for some, every in zip(top, whole, strict=True)]
        low, high = lowest(ratios), highest(ratios)
        if not math.isnan(ratios[low]):
            findings.append(
                f"{segment.capitalize()} tokens: the most attended ones have value vectors {figure(ratios[low], 2)} to "
                f"{figure(ratios[high], 2)} times as long as all of them (least in layer {low}, most in layer {high})."
            )
    return Section(
        "value_norms",
        "Value norms of attended tokens",
        f"A token that receives much attention but has a short value vector contributes little: a sink. Mean norms of "
        f"the most attended {percent(subject.probe.settings['top_share'])} of the tokens before the image (system), of "
        "the image and of the text after it, against all tokens there.",
        findings,
        [
            Picture(
                "Mean norm of value vectors per layer; dashed: the most attended tokens only. A dashed line far below "
                "its solid one indicates sinks.",
                lambda: charts.lines(list(range(subject.layers)), drawn, xlabel="decoder layer",
                                     ylabel="mean value norm", pairs=True),
            )
        ],
        [per_layer_table("Per layer (95 %)", drawn)],
    )  # fmt: skip


def flip(subject: Subject) -> Section:
    """Overlap of the most attended tokens before and after the image is turned upside down."""
    values, chance = subject.values, subject.values["chance"]
    same, mirrored = series(values["same_position"]), series(values["mirrored"])
    layers = list(range(len(same.value)))
    place = [i for i in layers if same.value[i] > mirrored.value[i]]
    content = [i for i in layers if mirrored.value[i] > same.value[i]]
    findings = [
        f"Attention follows position more than content in {layer_names(place)}, and content more than position in "
        f"{layer_names(content)} (chance {percent(chance)})."
    ]
    if place:
        at = highest([same.value[i] - mirrored.value[i] for i in layers])
        findings.append(
            f"Position decides most in layer {at}: {percent(same.value[at])} of the most attended tokens stay where "
            f"they were, {percent(mirrored.value[at])} move with the picture."
        )
    if values["not_square"]:
        findings.append(f"{values['not_square']} of {subject.probe.n} samples have no single square image and are left "
                        "out.")  # fmt: skip
    return Section(
        "flip",
        "Does attention follow position or content?",
        "Each image is turned upside down. Do the most attended quarter of its tokens stay at the same positions, or "
        "do they move with the content?",
        findings,
        [
            Picture(
                "Overlap of the most attended quarter before and after the flip: at the same positions (position "
                "decides) and at the mirrored ones (content decides), with 95 % intervals.",
                lambda: charts.lines(layers, {"same positions": same, "moved with the picture": mirrored},
                                     xlabel="decoder layer", ylabel="overlap", share=True, level=("chance", chance)),
            )
        ],
        [per_layer_table("Per layer (95 %)", {"same positions": same, "moved with the picture": mirrored}, True)],
    )  # fmt: skip
