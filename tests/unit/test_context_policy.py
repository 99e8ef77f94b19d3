"""Context pruning as a schedule: its rate, given or the profile's, and what it is a rate of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from planner.errors import InputError
from planner.policies import Context, parse
from planner.schedule import Fraction, dense
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")


def test_context_prunes_its_rate_in_all() -> None:
    found = parse("context:layers=10,rate=0.3").schedule(
        SPEC, Workload(visual_tokens=576, text_tokens=500, context_tokens=400)
    )
    share = 1.0
    for select in found.selects:
        assert select.of == "context" and select.protect == 100
        assert isinstance(select.keep, Fraction)
        share *= select.keep.fraction
    assert share == pytest.approx(0.7)


#: ``rate = 0.0001 n + 0.1`` between 100 and 2,000 tokens, measured over 4 layers, never above 0.25.
FIT = {"coefficients": [0.0, 1e-4, 0.1], "shortest": 100.0, "longest": 2000.0, "highest": 0.25, "r2": 1.0}


def calibrated(fit: Mapping[str, object] = FIT, **probes: object) -> SimpleNamespace:
    values = {"fit": fit, "layers": {"7 of 32": 3, "10 of 32": 4, "13 of 32": 5}}
    return SimpleNamespace(probes=probes or {"context": SimpleNamespace(values=values)})


def asked(context: int) -> Workload:
    return Workload(visual_tokens=576, text_tokens=context + 60, context_tokens=context)


@pytest.mark.parametrize(("context", "rate"), [(400, 0.14), (1000, 0.2), (10, 0.11), (1800, 0.25), (100_000, 0.25)])
def test_an_automatic_rate_is_the_profiles_for_the_context_length(context: int, rate: float) -> None:
    settled = parse("context:rate=auto").resolve(SPEC, asked(context), calibrated())
    assert isinstance(settled, Context)
    assert settled.rate == pytest.approx(rate, abs=1e-12) and (settled.layers, settled.protect) == (4, 60)
    assert parse(str(settled)) == settled, "a plan can state it"
    found = parse("context:rate=auto").schedule(SPEC, asked(context), calibrated())
    assert found == settled.schedule(SPEC)
    shares = [select.keep.fraction for select in found.selects if isinstance(select.keep, Fraction)]
    assert len(shares) == 4 and math.prod(shares) == pytest.approx(1 - rate)


def test_protected_tokens_settle_what_is_context() -> None:
    workload = Workload(visual_tokens=576, text_tokens=460)
    settled = parse("context:rate=auto,protect=60").resolve(SPEC, workload, calibrated())
    assert isinstance(settled, Context) and settled.rate == pytest.approx(0.14)
    both = parse("context:rate=auto,protect=60+fastv:k=3").resolve(SPEC, workload, calibrated())
    assert str(both).startswith("context:layers=4,rate=0.14") and str(both).endswith("fastv:k=3")


def test_a_best_rate_of_nothing_drops_nothing() -> None:
    flat = {**FIT, "coefficients": [0.0, 0.0, -0.5]}
    assert parse("context:rate=auto").schedule(SPEC, asked(500), calibrated(flat)) == dense(32)


@pytest.mark.parametrize(
    ("text", "context", "profile", "says"),
    [
        ("context:rate=auto", 400, None, "none was given. Make a profile with `plan calibrate"),
        ("context:rate=auto", 400, calibrated(influence=None), "needs the context probe"),
        ("context:rate=auto", 400, calibrated({"none": "two lengths are too few"}), "two lengths are too few"),
        ("context:rate=auto", 0, calibrated(), "there is none. Give --context-tokens"),
        ("context:rate=auto,layers=10", 400, calibrated(), "over the first 4 layers, not 10"),
    ],
)
def test_an_automatic_rate_that_cannot_be_settled(text: str, context: int, profile: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(text).schedule(SPEC, asked(context), profile)
