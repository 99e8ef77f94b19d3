"""The profile document: what it holds, what it refuses, and its tables beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planner.document import digest
from planner.errors import PlanDigestError, PlanError, PlanVersionError
from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity


def profile(**changes):
    fields = {
        "model": ModelIdentity(
            id="some/model",
            family="llava",
            config={"model_type": "llava", "text_config": {"hidden_size": 8}},
            config_digest="d" * 64,
            layers=4,
            hidden_size=8,
            image_token_id=3,
        ),
        "samples": SampleIdentity(digest="s" * 64, n=5, source="samples.jsonl"),
        "prompt": PromptShape(visual_tokens=16, text_tokens=7, system_tokens=3),
        "processor": {"class": "LlavaProcessor"},
        "probes": {"influence": ProbeResult(n=5, settings={"exit_cos": 0.995}, values={"layers": 4})},
        "environment": {"device": "cpu"},
        "created_with": "vlm-planner 0.1.0",
    }
    return Profile(**(fields | changes))


def test_save_then_load_is_identity_with_tables(tmp_path):
    arrays = {"influence/ids": np.arange(5), "influence/kept.data": np.ones((5, 2), np.float32)}
    whole = profile().with_arrays(arrays).sealed()
    whole.save(tmp_path / "profile.json")
    back = Profile.load(tmp_path / "profile.json")
    assert back == whole and hash(back) == hash(whole)
    assert back.arrays.keys() == arrays.keys()
    assert all(np.array_equal(back.arrays[k], arrays[k]) and back.arrays[k].dtype == arrays[k].dtype for k in arrays)
    assert back != profile().with_arrays(arrays | {"influence/ids": np.arange(1, 6)}).sealed()


def test_a_profile_without_tables_is_one_file(tmp_path):
    profile().save(tmp_path / "profile.json")
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]
    assert Profile.load(tmp_path / "profile.json").arrays == {}


def test_edited_newer_or_incomplete_profiles_are_refused(tmp_path):
    path = tmp_path / "profile.json"
    profile().save(path)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "created_with": "me"}))
    with pytest.raises(PlanDigestError, match="changed after it was written") as caught:
        Profile.load(path)
    assert "plan calibrate" in caught.value.remedy
    path.write_text(json.dumps({**body, "schema_version": 2}))
    with pytest.raises(PlanVersionError):
        Profile.load(path)
    del body["samples"], body["profile_sha256"]
    path.write_text(json.dumps({**body, "profile_sha256": digest(body)}))
    with pytest.raises(PlanError, match="samples"):
        Profile.load(path)


def test_missing_or_foreign_tables_are_refused_when_they_are_read(tmp_path):
    profile().with_arrays({"a/ids": np.arange(3)}).save(tmp_path / "profile.json")
    tables = tmp_path / "profile.safetensors"
    back = Profile.load(tmp_path / "profile.json")
    content = bytearray(tables.read_bytes())
    content[-1] ^= 1
    tables.write_bytes(content)
    with pytest.raises(PlanDigestError, match=r"profile\.safetensors"):
        _ = back.arrays
    tables.unlink()
    with pytest.raises(PlanError, match="missing"):
        _ = back.arrays


def test_nan_never_gets_into_a_profile():
    with pytest.raises(ValueError, match="finite"):
        ProbeResult(n=1, settings={}, values={"x": float("nan")})
