"""Probe settings from texts: types, refusals, and the same settings back from their spelling."""

from __future__ import annotations

import pytest

from calibrate.probes.base import BUILT_IN, build_probes, probe_class
from calibrate.probes.context.probe import ContextProbe
from calibrate.probes.masking import MaskingProbe
from calibrate.probes.settings import parse_settings, setting_types, spelled_defaults
from calibrate.probes.sinks import SinksProbe
from planner.errors import InputError


def test_values_take_the_constructors_types():
    found = parse_settings(
        [
            "attribution.masks=10000", "attribution.ablated=0.5", "context.lengths=100/200/300", "context.flow=false",
            "context.texts=long.txt", "masking.curves=masked_from", "sinks.tau=12", "sinks.rho=0.5",
        ]
    )  # fmt: skip
    assert found == {
        "attribution": {"masks": 10000, "ablated": 0.5},
        "context": {"lengths": (100, 200, 300), "flow": False, "texts": "long.txt"},
        "masking": {"curves": ("masked_from",)},
        "sinks": {"tau": 12.0, "rho": (0.5,)},
    }
    assert type(found["attribution"]["masks"]) is int and type(found["sinks"]["tau"]) is float
    assert ContextProbe(**found["context"]).settings["lengths"] == [100, 200, 300]
    assert SinksProbe(**found["sinks"]).settings["tau"] == 12 and MaskingProbe(**found["masking"]).curves == (
        "masked_from",
    )
    assert parse_settings([]) == {}


def test_auto_leaves_the_choice_to_the_probe():
    assert parse_settings(["sinks.tau=auto", "context.lengths=auto"]) == {
        "sinks": {"tau": None},
        "context": {"lengths": None},
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_are_spelled_so_that_they_are_read_back(name):
    spelled, probe = spelled_defaults(name), probe_class(name)
    assert list(spelled) == list(setting_types(probe)) == list(probe().settings), "a constructor argument is a setting"
    again = parse_settings([f"{name}.{key}={value}" for key, value in spelled.items()])
    assert build_probes([name], again)[name].settings == probe().settings


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["masking=3"], r"'masking=3' is not PROBE\.KEY=VALUE.*masking\.samples=16"),
        (["masking.samples"], "is not PROBE"),
        (["maskin.samples=3"], "no probe 'maskin'. Did you mean 'masking'"),
        (["masking.sample=3"], "no setting 'sample'. Did you mean 'samples'.*samples, curves, answer_tokens"),
        (["prompt.samples=3"], "'prompt' has no setting 'samples'. Its settings: none"),
        (["masking.samples=3", "masking.samples=4"], r"masking\.samples is given twice"),
        (["masking.samples=many"], r"masking\.samples: input should be a valid integer.*got 'many'"),
        (["masking.samples=2.5"], r"masking\.samples: .*integer"),
        (["attribution.masks=auto"], r"attribution\.masks: .*integer"),
        (["context.flow=perhaps"], r"context\.flow: .*boolean"),
        (["context.rates=0/x/1"], r"context\.rates: .*number"),
    ],
)
def test_refusals(texts, says):
    with pytest.raises(InputError, match=says):
        parse_settings(texts)


@pytest.mark.parametrize(
    "text",
    [
        "masking.samples=0", "masking.answer_tokens=0", "masking.curves=masked", "flip.samples=-1", "sinks.tau=-1",
        "sink_masking.tau=0", "sparsity.top_share=0", "value_norms.top_share=1.5", "attribution.ablated=1",
        "attribution.masks=0", "context.rates=0/0.5", "context.lengths=9/3", "influence.keep_l2=0",
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_by_the_probe(text):
    settings = parse_settings([text])
    with pytest.raises(InputError) as caught:
        build_probes(list(settings), settings)
    assert caught.value.remedy
