"""Canonical JSON, atomic writing, and refusals of documents that cannot be trusted."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

import pytest

from planner.document import Document, canonical, digest, read_json, write_atomic
from planner.errors import InputError, PlanDigestError, PlanError, PlanVersionError


class Note(Document):
    KIND: ClassVar[str] = "note"
    DIGEST_FIELD: ClassVar[str] = "note_sha256"
    REMAKE: ClassVar[str] = "Write it again"
    note_sha256: str = ""
    words: tuple[str, ...]
    weight: float


def test_canonical_text_is_sorted_indented_and_ends_in_a_newline():
    assert canonical({"b": 1, "a": [0.1, "é"]}) == '{\n  "a": [\n    0.1,\n    "é"\n  ],\n  "b": 1\n}\n'
    assert digest({"b": 1}) == hashlib.sha256(b'{\n  "b": 1\n}\n').hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_save_then_load_is_identity_and_saving_again_gives_the_same_bytes(tmp_path):
    note = Note(words=("a", "b"), weight=3.0)
    note.save(tmp_path / "deep" / "note.json")
    back = Note.load(tmp_path / "deep" / "note.json")
    assert back == note.sealed() and back.words == ("a", "b")
    back.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "deep" / "note.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "deep"], "no temporary file stays"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"weight": 4.0}, PlanDigestError, "changed after it was written"),
        ({"schema_version": 2}, PlanVersionError, "schema version 2"),
        ({"schema_version": "1"}, PlanError, "unknown schema version"),
        ({"note_sha256": None}, PlanDigestError, "changed after"),
    ],
)
def test_a_document_that_was_edited_or_is_newer_is_refused(tmp_path, change, error, says):
    path = tmp_path / "note.json"
    Note(words=(), weight=3.0).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=says) as caught:
        Note.load(path)
    assert caught.value.remedy


def test_a_reformatted_document_is_the_same_document(tmp_path):
    path = tmp_path / "note.json"
    Note(words=("x",), weight=0.5).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=None))
    assert Note.load(path).weight == 0.5


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', '{"a": 1, "a": 2}', "[]", '{"note_sha256": "0"}'])
def test_what_is_not_a_document_is_refused(tmp_path, text):
    path = tmp_path / "note.json"
    path.write_text(text)
    with pytest.raises(PlanError):
        Note.load(path)


def test_a_wrong_field_is_named(tmp_path):
    body = {"schema_version": 1, "words": [], "weight": "heavy"}
    (tmp_path / "note.json").write_text(json.dumps({**body, "note_sha256": digest(body)}))
    with pytest.raises(PlanError, match="weight"):
        Note.load(tmp_path / "note.json")


def test_a_missing_file_and_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below.json", "x")
