"""What a calibration says of its cost beforehand, and of its time afterwards."""

from __future__ import annotations

import pytest

from calibrate.probes.attribution.probe import AttributionProbe
from calibrate.probes.context.probe import ContextProbe
from calibrate.probes.masking import MaskingProbe
from calibrate.progress import spell_time
from planner.profile import PromptShape
from tests.integration import calibrate_stub as stub
from tests.integration.calibrate_stub import PROBES, REQUESTED, SETTINGS, run


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    return stub.samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory):
    return stub.samples(tmp_path_factory.mktemp("unanswered"), count=8, answer=None)


def test_cost_is_shown_before_and_time_after(chosen):
    lines = []
    run(chosen, lines=lines, probes=("influence", "masking"))
    before, after = lines[:3], lines[3:]
    assert before[0].startswith("prompt, influence: one forward pass over 12 samples together, about ")
    # Dense and 4 discards; answers, the prompt with them, everywhere, and up to and from each of 3 quarters.
    assert before[1].startswith("masking: 14 forward passes over 5 samples, about ")
    assert before[2].startswith("in all about ") and before[2].endswith(" ms per sample")
    for name in ("prompt", "influence", "masking", "shared forward passes"):
        assert any(line.startswith(f"{name}: ") and line.endswith(" s") for line in after), name
    assert "MiB of rows" in after[-1]


def test_the_cost_of_every_probe_is_shown(unanswered):
    lines = []
    run(unanswered, lines=lines, probes=(*PROBES, *REQUESTED["probes"]), settings={**SETTINGS, **REQUESTED["settings"]})
    before = lines[: next(i for i, line in enumerate(lines) if line.startswith("in all"))]
    shared, *executed = before
    assert shared.startswith("prompt, influence, sinks, sparsity, value_norms: one forward pass over 8 samples")
    assert [line.split(":")[0] for line in executed] == ["masking", *REQUESTED["probes"]]
    assert any(line.startswith("attribution: 400 forward passes over 3 samples") for line in executed)


def test_estimated_seconds_are_forward_passes_times_their_time(unanswered, monkeypatch):
    monkeypatch.setattr("calibrate.measuring.estimate._sample_s", lambda batch: 0.5)
    lines = []
    run(unanswered, lines=lines, probes=("flip",), settings=REQUESTED["settings"])
    assert lines[0] == "prompt: one forward pass over 8 samples together, about 4 s"
    assert lines[1] == "flip: 2 forward passes over 3 samples, about 3 s"
    assert lines[2] == "in all about 7 s, by a forward pass of 500.0 ms per sample"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.04 s"), (99, "99 s"), (119, "2 min"), (5400, "90 min"), (9000, "2.5 h")]
)
def test_times_are_shown_in_their_unit(seconds, shown):
    assert spell_time(seconds) == shown


def test_work_counts_short_and_long_passes():
    prompt = PromptShape(visual_tokens=80, text_tokens=10, system_tokens=10)
    # Over a tenth of the prompt each: 1,200 masks that share a third of the layers by fours and a third by twos, and
    # 500 others; the prompt itself, and 4 images of the mean for 2 samples.
    attribution = AttributionProbe(samples=2, masks=1200, image_masks=500, mean_images=4)
    assert attribution.work(32, prompt) == pytest.approx((300 + 600 + 1200) / 3 / 10 + 50 + 1 + 2)
    # Dense, 3 rates, 7 variants, attention twice, each 2, 3 and 4 times as long as without a context.
    context = ContextProbe(lengths=(100, 200, 300), rates=(0.0, 0.3, 0.6), flow=False)
    assert context.work(32, prompt) == (1 + 3 + 7 + 2) * (2 + 3 + 4)
    # From k on a tenth of the prompt runs: (4 + 3 + 2 + 1) / 4 of a tenth, and the dense pass.
    assert MaskingProbe(curves=("masked_from",)).work(4, prompt) == pytest.approx(1 + 0.25)
    # The rule in all layers, and what lies behind 1, 2, 3 and 4 of them.
    assert MaskingProbe(curves=("self_before",)).work(4, prompt) == pytest.approx(1 + 1 + 1.5)
