"""Samples on a plan's page: which ones, what of a picture the model sees, and which patches lie where."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from calibrate.deciding.executed import Executed, Ran
from calibrate.running.patches import kept_patches, seen
from planner.policies import parse
from planner.report.overlay import side_by_side
from planner.report.plan_charts import side_by_side as beside
from planner.report.samples import Kept, Shown, stored, told
from planner.schedule import dense
from planner.spec import ModelSpec
from tests.unit.test_verdict import measured

SPEC = ModelSpec.from_config("llava-1.5-7b")
KINDS = ("a", "a", "b", "a", "b", "a", "a", "b")


def ran(policy: str, role: Any, answers: str, scores: tuple[float, ...] = (), losses: Any = None) -> Ran:
    schedule = dense(SPEC.layers) if role == "dense" else parse(policy).schedule(SPEC)
    return Ran(
        policy=policy, role=role, schedule=schedule, answers=tuple(answers), ended=(True,) * len(answers),
        scores=scores, losses=losses,
    )  # fmt: skip


def worst(*runs: Ran, loss: Any = "answer") -> tuple[tuple[int, bool], ...]:
    n = len(runs[0].answers)
    found = Executed(
        digest="d",
        ids=tuple(range(n)),
        shapes=((4, 576, 8),) * n,
        kinds=KINDS[:n],
        loss=loss,
        metric="exact",
        runs=runs,
    )
    return found.evaluation(SPEC).worst


def test_answers_that_got_worse_come_first_then_other_answers_then_each_kind() -> None:
    """Sample 5 was right and is wrong, 3 is another wrong answer; then kinds a, b, a, b by turns."""
    right = (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    planned = (1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0)
    found = worst(ran("dense", "dense", "xxxxxxxx", right), ran("fastv:k=2,ratio=0.5", "plan", "xxxyxyxx", planned))
    assert found == ((5, False), (3, False), (0, True), (2, True), (1, True), (4, True))


def test_losses_order_samples_where_there_are_some() -> None:
    plan = ran("fastv:k=2,ratio=0.5", "plan", "xyxx", losses=(0.0, 0.1, 0.4, 0.0))
    assert worst(ran("dense", "dense", "xxxx"), plan, loss="tokens")[:2] == ((2, True), (1, False))


def test_a_dense_plan_has_none() -> None:
    assert worst(ran("dense", "dense", "xxxx")) == ()


def test_the_model_sees_the_middle_that_its_processor_crops() -> None:
    """A stripe of 10 pixels at each end of a wide picture goes: 80 x 60 becomes 60 x 60."""
    picture = Image.new("RGB", (80, 60), "white")
    picture.paste("red", (0, 0, 10, 60))
    picture.paste("red", (70, 0, 80, 60))
    settings = SimpleNamespace(
        do_center_crop=True, size={"shortest_edge": 336}, crop_size=SimpleNamespace(height=336, width=336)
    )
    found = seen(picture, SimpleNamespace(image_processor=settings))
    assert found.size == (60, 60) and found.getcolors() == [(3600, (255, 255, 255))]
    settings.crop_size = {"height": 168, "width": 168}
    assert seen(picture, SimpleNamespace(image_processor=settings)).size == (30, 30)
    settings.do_center_crop = False
    assert seen(picture, SimpleNamespace(image_processor=settings)) is picture
    assert seen(picture, SimpleNamespace()) is picture


def test_stages_are_named_and_what_drops_the_image_is_left_out() -> None:
    schedule = parse("prellm:keep=0.5+visipruner:filter=8,keep=10,exit=24").schedule(SPEC)
    found = kept_patches(schedule, [[[5, 1]], [[3]], [[]]], (2, 3))
    assert [one.caption for one in found] == ["before layer 0: 2 of 6", "after layer 8: 1 of 6"]
    assert found[0].patches == (1, 5)


def test_patches_are_drawn_in_their_places() -> None:
    """Of two rows of three, 1 and 5 are kept: row 0 loses 0 and 2, row 1 loses 3 and 4, which are one box."""
    found = Kept("after layer 1", (1, 5), (2, 3))
    assert found.dropped_path == "M0 0h1v1h-1zM2 0h1v1h-1zM0 1h2v1h-2z"
    assert found.kept_path == "M1 0h1v1h-1zM2 1h1v1h-1z"


def test_a_picture_is_stored_small_and_in_the_shorter_way() -> None:
    link, size = stored(Image.new("RGB", (1000, 500), "teal"))
    kind, _, body = link.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(body))) as opened:
        assert kind == "data:image/png" and size == opened.size == (224, 112)
    noise = Image.effect_noise((224, 224), 80).convert("RGB")
    assert stored(noise)[0].startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("kept", "parted", "says"),
    [
        (
            0.985,
            2,
            "6 of 400 answers part from the dense model's; the worst come first, then some that stayed the same.",
        ),
        (0.995, 2, "2 of 400 answers part from the dense model's; they come first, then some that stayed the same."),
        (1.0, 0, "None of 400 answers parts from the dense model's. 3 of them:"),
    ],
)
def test_how_many_parted_is_said(kept: float, parted: int, says: str) -> None:
    evidence = measured().evidence
    assert evidence is not None
    row = evidence.rows[1].model_copy(
        update={"agreement": evidence.rows[1].agreement.model_copy(update={"value": kept, "n": 400})}
    )
    evidence = evidence.model_copy(update={"rows": (evidence.rows[0], row)})
    assert told([Shown("q", "a", "b", same=i >= parted) for i in range(3)], evidence) == says


def test_text_above_an_overlay_is_folded_to_its_width() -> None:
    picture = Image.new("RGB", (100, 50), "teal")
    alone, below = side_by_side([("a", picture)]), side_by_side([("a", picture)], ["question: " + "word " * 20])
    assert below.width == alone.width and below.height >= alone.height + 22 * 8
    assert below.getpixel((50, below.height - 20)) == alone.getpixel((50, alone.height - 20)) == (0, 128, 128)


def test_points_that_would_hide_another_stand_beside_it() -> None:
    """The first stays; of those at its place, who meets it goes right, then left; who does not stays."""
    places = [(0.4, 0.97, 0.99), (0.4, 0.965, 0.985), (0.4, 0.98, 1.0), (0.4, 0.5, 0.6), (0.9, 0.97, 0.99)]
    assert beside(places, apart=0.04) == pytest.approx([0.4, 0.44, 0.36, 0.4, 0.9])
