"""The table of `reports/processors.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from tabulate import tabulate

_HEAD = """# The user path on the real processors

Made by `OMP_NUM_THREADS=1 python -m tests.processors --out reports/processors.md` with transformers {transformers},
torch {torch} and torchvision {torchvision} on a CPU. Each family has a tiny checkpoint that `AutoProcessor` reads as
the family's own processor class, with its image and video processors and a chat template. The weights are random, so
nothing here says how well a plan answers. Sliding windows reach the image, as those of the released models do. The plan
of the steps after `calibrate` is `{policy}`.

* **visual tokens**: predicted from the sizes of pictures and counted in the processor's output, for eight sizes and for
  two pictures of one prompt;
* **fallback**: what stands in for a processor that needs torchvision gives the same inputs, or refuses;
* **calibrate**: `plan calibrate` on 16 samples of six picture sizes, every fourth with two pictures, and `plan freeze`;
* **run**, **two images**: `plan run` answers as generating by hand, and computes the planned tokens in each layer;
* **overlay**: `plan run --overlay`; where an image's tokens are no grid it is refused before anything is generated;
* **batch**: prompts of one and of two pictures, padded together, are answered as alone;
* **reference**: their logits in float64, prefill and two steps, equal the slow reference's to 1e-10;
* **evaluate**, **bench**: the commands; the KV cache is as large as predicted;
* **pipeline**: transformers' `image-text-to-text` pipeline with the plan attached answers as `plan run`;
* **video**: four frames, where the family takes video; logits as in **reference**.

**fallback** and **video** concern the families whose processor contains a video processor. That needs torchvision, and
SmolVLM's num2words besides.
"""


@dataclass(frozen=True)
class Finding:
    """How a step came out.

    Attributes:
        status: ``ok``, ``refused`` (by the product, saying why), ``none`` (not a step of this family) or ``wrong``.
    """

    status: str
    note: str


@dataclass(frozen=True)
class Result:
    """A family's findings by step, and its processor class."""

    family: str
    processor: str
    findings: dict[str, Finding]


def render(results: Sequence[Result], policy: str) -> str:
    """Markdown: a row a family, a column a step, notes below."""
    notes: list[str] = []

    def cell(finding: Finding) -> str:
        if not finding.note:
            return "" if finding.status == "none" else finding.status
        if finding.note not in notes:
            notes.append(finding.note)
        word = "**wrong**" if finding.status == "wrong" else finding.status
        return f"{word} ({notes.index(finding.note) + 1})"

    rows = [
        [
            result.family,
            result.processor,
            *(cell(finding) for step, finding in result.findings.items() if step != "processor"),
        ]
        for result in results
    ]
    table = tabulate(rows, headers=["", *results[0].findings], tablefmt="github")
    versions = {name: metadata.version(name) for name in ("transformers", "torch", "torchvision")}
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return f"{_HEAD.format(policy=policy, **versions)}\n{table}\n\n{listed}\n"
