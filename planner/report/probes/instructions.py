"""Are the same visual tokens attended whatever the instruction?"""

from __future__ import annotations

from planner.report import charts
from planner.report.section import (
    Picture,
    Section,
    Subject,
    highest,
    layer_names,
    lowest,
    per_layer_table,
    percent,
    series,
)


def section(subject: Subject) -> Section:
    """Overlap of the most attended visual tokens under two instructions, and between two pictures."""
    values, part = subject.values, subject.probe.settings["top_share"]
    drawn = {
        "another instruction": series(values["other_instruction"]),
        "another picture": series(values["other_picture"]),
    }
    told, shown = (one.value for one in drawn.values())
    layers, chance = list(range(len(told))), values["chance"]
    own = values["instructions_of_the_picture"]["value"]
    static = [layer for layer in layers if told[layer] >= 0.5]
    by_place = [layer for layer in layers if shown[layer] >= 0.5]
    most, least = highest(told), lowest(told)
    return Section(
        "instructions",
        "Does attention on the image follow the instruction?",
        f"The same picture under two instructions: how many of the most attended {percent(part)} of the visual tokens "
        "are the same (VisiPruner 3.1)? Where the overlap is high, they are attended whatever is asked; where it is "
        "low, attention looks for what was asked. The overlap between two pictures shows what position explains.",
        [
            f"Half or more of the most attended visual tokens stay the same under another instruction in "
            f"{layer_names(static)}: most in layer {most} ({percent(told[most])}), least in layer {least} "
            f"({percent(told[least])}; chance {percent(chance)}).",
            f"Even another picture leaves half of them the same in {layer_names(by_place)}, where position decides.",
            f"The other instruction was one of the same picture in {percent(own)} of {subject.probe.n} samples, and of "
            "another picture otherwise.",
        ],
        [
            Picture(
                f"Overlap of the most attended {percent(part)} of the visual tokens with those under another "
                "instruction, and with those of another picture, with 95 % intervals.",
                lambda: charts.lines(layers, drawn, xlabel="decoder layer", ylabel="overlap", share=True,
                                     level=("chance", chance)),
            )
        ],
        [per_layer_table("Per layer (95 %)", drawn, True)],
    )  # fmt: skip
