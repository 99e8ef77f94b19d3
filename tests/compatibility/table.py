"""The table of `reports/compatibility.md`."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

Results = list[dict[str, Any]]

_HEAD = """# Families and releases of transformers

Made by `python -m tests.compatibility --out reports/compatibility.md`, with tiny random models in float64. A family is
*ok* on a release when, with a plan attached,

* **logits**: prefill and decode steps equal the slow reference to 1e-10 under six schedules (stages of every kind,
  counts and thresholds, pruning before the decoder, context pruning, redistribution), sdpa and eager, padded batches
  with images of different sizes;
* **generation**: assisted decoding, `use_cache=False`, beam search and a second turn agree with plain greedy search;
* **FLOPs and bytes**: what a counter sees in the prefill and the bytes in the cache equal the prediction, as integers;
* **encoder attention**: pruning before the decoder keeps in a batch what it keeps in each sample alone.

A family that lacks a part which a plan needs is *refused*, with the reason. What fails without a plan just the same is
the release's own fault, noted with a number.

Not in the table: decoding over fixed shapes as one compiled graph (`planner.runtime.fix`) is tested with the newest
release. `torch.compile` gives up with an error on the masks of 4.57, and of 5.2 for some families.
"""


def wrong(results: Results) -> list[str]:
    """What must not be."""
    found = [
        f"transformers {result['version']}, {family}, {check}: {finding['note']}"
        for result in results
        for family, checks in result["families"].items()
        for check, finding in checks.items()
        if finding["status"] == "wrong"
    ]
    return found + [
        f"transformers {result['version']}, commands: {result['commands']['note']}"
        for result in results
        if result["commands"]["status"] == "wrong"
    ]


def render(results: Results) -> str:
    """Markdown: a row a family, a column a release, notes below."""
    notes: list[str] = []

    def number(note: str) -> int:
        if note not in notes:
            notes.append(note)
        return notes.index(note) + 1

    families = list(results[0]["families"])
    rows = [[family, *(_cell(result["families"][family], number) for result in results)] for family in families]
    rows.append(["`plan calibrate`, `run`, `bench`", *(_command_cell(result["commands"]) for result in results)])
    table = tabulate(rows, headers=["", *(result["version"] for result in results)], tablefmt="github")
    listed = "\n".join(f"{index}. {note}" for index, note in enumerate(notes, start=1))
    return f"{_HEAD}\n{table}\n\n{listed}\n"


def _cell(checks: dict[str, dict[str, str]], number: Any) -> str:
    statuses = {finding["status"] for finding in checks.values()}
    if statuses == {"absent"}:
        return "not in this release"
    refused = [f"{check}: {finding['note']}" for check, finding in checks.items() if finding["status"] == "refused"]
    if len(refused) == len(checks):
        return f"refused ({number(next(iter(checks.values()))['note'])})"
    marks = [number(f"{name}: {finding['note']}") for name, finding in checks.items() if finding["status"] != "ok"]
    word = "**wrong**" if "wrong" in statuses else "ok"
    return f"{word} ({', '.join(map(str, marks))})" if marks else word


def _command_cell(finding: dict[str, str]) -> str:
    return "ok" if finding["status"] == "ok" else f"**wrong**: {finding['note']}"
