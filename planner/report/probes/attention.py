"""Attention on the image: how sparse it is, the values of attended tokens, whether it follows place or content."""

from __future__ import annotations

import math

from planner.report import charts
from planner.report.section import (
    Picture,
    Section,
    Subject,
    figure,
    highest,
    layer_names,
    lowest,
    per_layer_table,
    percent,
    series,
)


def sparsity(subject: Subject) -> Section:
    """Share of the image attention on its most attended part, per layer."""
    values, part = subject.values, subject.probe.settings["top_share"]
    top, image = series(values["top_quarter_share"]), series(values["image_attention"])
    layers, most, least = list(range(len(top.value))), highest(top.value), lowest(top.value)
    return Section(
        "sparsity",
        "How sparse is attention on the image?",
        f"Of the last prompt token's attention on the image: how much goes to the most attended {percent(part)} of the "
        f"image tokens? Spread evenly it would be {percent(part)}.",
        [
            f"The most attended {percent(part)} of the image tokens get {percent(top.value[least])} of the image "
            f"attention in layer {least} and {percent(top.value[most])} in layer {most}.",
            f"The image as a whole gets {percent(image.value[highest(image.value)])} of all attention in layer "
            f"{highest(image.value)} and {percent(image.value[lowest(image.value)])} in layer {lowest(image.value)}.",
        ],
        [
            Picture(
                f"Share of the image attention on the most attended {percent(part)} of the image tokens, and the "
                "image's share of all attention, with 95 % intervals.",
                lambda: charts.lines(layers, {f"top {percent(part)} of the image": top, "image of everything": image},
                                     xlabel="decoder layer", ylabel="attention", share=True, level=("even", part)),
            )
        ],
        [per_layer_table("Per layer (95 %)", {"on the top part": top, "on the image": image}, True)],
    )  # fmt: skip


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
