"""Attribution and context probes on a trained model, through the engine: shards unite to what one process finds."""

from __future__ import annotations

import random

import pytest

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.load import load
from calibrate.inputs.samples import SampleSet, load_samples
from calibrate.measuring.run import calibrate, merge_states

SETTINGS = {
    "probes": ("attribution", "context"),
    "settings": {
        "attribution": {"samples": 3, "masks": 200, "image_masks": 0, "mean_images": 5},
        "context": {"samples": 1, "lengths": (30, 90), "rates": (0.0, 0.3, 0.6), "flow": False},
    },
    "batch_size": 2,
    "echo": lambda line: None,
}


@pytest.fixture(scope="module")
def loaded():
    if not (reference_path("plain") / "config.json").exists():
        pytest.skip("the plain reference model is not in this checkout")
    return load(str(reference_path("plain")))


def test_shards_give_the_profile_of_one_process(loaded, tmp_path):
    all_of_them = load_samples(reference_path("easy_vqa") / "calibration.jsonl")
    chosen = random.Random(0).sample(range(len(all_of_them)), 10)  # some of whose answers need the image
    samples = SampleSet(tuple(all_of_them[i] for i in chosen), all_of_them.source)
    whole = calibrate(loaded.model, loaded.processor, samples, **SETTINGS)
    for shard in range(2):
        calibrate(loaded.model, loaded.processor, samples, out=tmp_path, shard=(shard, 2), **SETTINGS)
    assert merge_states(sorted(tmp_path.iterdir())) == whole
    attribution, context = whole.probes["attribution"].values, whole.probes["context"].values
    assert attribution["attributed"] + attribution["answered_wrongly"] + attribution["image_independent"] == 3
    if attribution["attributed"]:
        needed = attribution["heads_needed"]["faithfulness > 0.8"]
        assert needed["attribution"]["value"] < needed["random"]["value"]
        assert attribution["r2"]["value"] > 0.3
    # Context pruning: more text, less attention on the image (eq. 2); less text, more of it and less entropy
    # (propositions 1 and 2).
    dense, pruned = (context["visual_dependency"][run]["value"] for run in ("dense", "pruned"))
    assert dense[0] > dense[-1]
    assert all(after > before for before, after in zip(dense, pruned, strict=True))
    assert context["entropy_rises"]["value"] == 0
