"""A counted forward beside its prediction, for readers and machines (`calibrate.running.check`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from planner.workload import Workload


class CheckRow(Protocol):
    """One prefill, predicted and counted (`calibrate.running.check.Check`)."""

    @property
    def policy(self) -> str: ...

    @property
    def predicted(self) -> Mapping[str, int]: ...

    @property
    def torch(self) -> Mapping[str, int]: ...

    @property
    def fvcore(self) -> Mapping[str, int] | None: ...

    @property
    def torch_equal(self) -> bool: ...

    @property
    def fvcore_equal(self) -> bool | None: ...

    @property
    def note(self) -> str: ...


#: Components as tables show them.
_SHOWN = {
    "vision": "vision and projector",
    "attention": "attention and selection",
    "ffn": "feed-forward",
    "lm_head": "LM head",
}


def render_checks(model: str, workload: Workload, checks: Sequence[CheckRow], notes: Sequence[str], fmt: str) -> str:
    """Checks as ``table``, ``md`` or ``json``: FLOPs by component and in all, and whether they are equal."""
    if fmt == "json":
        return json.dumps(_document(model, workload, checks, notes), indent=2) + "\n"
    from tabulate import tabulate

    rows = []
    for found in checks:
        columns = [found.predicted, found.torch, found.fvcore]
        for name in found.predicted:
            rows.append([found.policy, _SHOWN[name], *(_figure(None if one is None else one[name]) for one in columns)])
        totals = (None if one is None else sum(one.values()) for one in columns)
        rows.append([found.policy, "total", *map(_figure, totals)])
    headers = ["policy", "prefill FLOPs", "predicted", "torch counts", "fvcore counts"]
    style = "github" if fmt == "md" else "simple"
    align = ["left", "left", "right", "right", "right"]
    title = (
        f"{model}, one forward of {workload.system_tokens} + {workload.visual_tokens} visual + "
        f"{workload.text_tokens} text tokens; fvcore's multiply-adds count twice, as everywhere here."
    )
    table = tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align)
    verdicts = [line for found in checks for line in _verdicts(found)]
    bullet = "- " if fmt == "md" else ""
    return "\n\n".join([title, table, "\n".join(bullet + line for line in (*verdicts, *notes))]) + "\n"


def _verdicts(found: CheckRow) -> list[str]:
    fvcore = {True: "yes", False: "no", None: "not counted"}[found.fvcore_equal]
    reason = f" ({found.note})" if found.note else ""
    return [
        f"{found.policy}: torch equals the prediction: {'yes' if found.torch_equal else 'no'}",
        f"{found.policy}: fvcore equals the prediction: {fvcore}{reason}",
    ]


def _figure(flops: int | None) -> str:
    return "" if flops is None else f"{flops:,}"


def _document(model: str, workload: Workload, checks: Sequence[CheckRow], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "model": model,
        "workload": workload.model_dump(include={"system_tokens", "visual_tokens", "text_tokens", "images"}),
        "checks": [
            {
                "policy": found.policy,
                **{
                    name: None if flops is None else {**flops, "total": sum(flops.values())}
                    for name, flops in (
                        ("predicted_flops", found.predicted),
                        ("torch_flops", found.torch),
                        ("fvcore_flops", found.fvcore),
                    )
                },
                "torch_equal": found.torch_equal,
                "fvcore_equal": found.fvcore_equal,
                "note": found.note,
            }
            for found in checks
        ],
        "notes": list(notes),
    }
