"""A plan's page of figures written by hand, whole: every kind of section, pictures and samples. No measurement."""

from __future__ import annotations

from PIL import Image, ImageDraw

from calibrate.inputs.bundled import reference_path
from planner.evidence import Kind, Measured, Point, Row, Search
from planner.plan import Plan, predict
from planner.report.page import page
from planner.report.samples import Kept, Shown, stored
from planner.spec import ModelSpec
from planner.workload import Workload
from tests.unit import report_documents as made
from tests.unit.test_plan import POLICY, make_plan

GRID = (12, 12)
#: Policy, role, whole answers as dense, share of FLOPs, prefill in milliseconds.
_ROWS = (
    ("dense", "dense", 1.0, 1.0, 12.5),
    (POLICY, "plan", 0.985, 0.4, 10.2),
    ("dense again, batches of 9, bfloat16", "floor", 0.995, None, None),
    ("no picture", "blind", 0.02, None, None),
    ("fastv:k=1,ratio=0.8", "policy", 0.975, 0.4, 9.1),
    ("random:k=1,ratio=0.8", "policy", 0.86, 0.4, 9.0),
    ("resize:keep=0.4", "policy", 0.965, 0.41, 9.4),
)


def example() -> str:
    """The page as HTML text."""
    return page(example_plan(), made.profile(made.written()), path="calibration/plan.json", samples=_samples())


def example_plan() -> Plan:
    """A proven plan, beside policies that cost the same and keep about as much."""
    plan = make_plan()
    assert plan.evidence is not None
    rows = tuple(_row(*one) for one in _ROWS)
    kinds = tuple(
        Kind(kind=name, accuracy=_near(0.97), dense_accuracy=_near(0.98), agreement=_near(kept))
        for name, kept in (("colour", 0.99), ("shape", 0.97))
    )
    front = tuple(
        Point(policy=f"visipruner:filter=3,keep={keep},exit=7", share=share, loss=_near(loss))
        for keep, share, loss in ((5, 0.3, 0.12), (20, 0.4, 0.0), (60, 0.6, 0.0))
    )
    evidence = plan.evidence.model_copy(
        update={
            "rows": rows,
            "kinds": kinds,
            "search": Search(minimised="decoder FLOPs", candidates=885, executed=156, front=front),
        }
    )
    spec = ModelSpec.from_config(reference_path("windowed"))
    prediction = predict(spec, Workload(visual_tokens=144), plan.decision.schedule)
    return plan.model_copy(update={"evidence": evidence, "prediction": (prediction,)})


def _near(value: float, n: int = 400) -> Measured:
    return Measured(value=value, low=max(value - 0.01, 0), high=min(value + 0.01, 1), n=n)


def _row(policy: str, role: str, kept: float, share: float | None, ms: float | None) -> Row:
    return Row.model_validate(
        {
            "policy": policy,
            "role": role,
            "accuracy": _near(kept * 0.98),
            "agreement": _near(kept),
            "runaway": _near(0.0),
            "decoder_flops": None if share is None else share * 1e9,
            "decoder_flops_ratio": share,
            "visual_attention_ratio": share,
            "kv_cache_bytes": None if share is None else share * 4e5,
            "kv_cache_ratio": share,
            "prefill_ms": ms,
        }
    )


def _samples() -> list[Shown]:
    """Six pictures of a disc, of which a stage keeps some patches; the first answer differs."""
    found = []
    for number in range(6):
        picture = Image.new("RGB", (64, 64), (225, 235, 230))
        left = 4 + 7 * number
        ImageDraw.Draw(picture).ellipse((left, 18, left + 24, 42), fill=(20, 120, 110))
        link, size = stored(picture)
        kept = [row * 12 + column for row in range(4, 8) for column in range(number, number + 5)]
        found.append(
            Shown(
                prompt="What colour is the disc, and is it to the left of the middle of the picture?",
                dense="teal",
                planned="grey" if number == 0 else "teal",
                same=number > 0,
                kind="colour",
                accepted=("teal",),
                picture=link,
                size=size,
                kept=(Kept("after layer 3", tuple(kept), GRID), Kept("after layer 5", tuple(kept[::3]), GRID)),
            )
        )
    return found
