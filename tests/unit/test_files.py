"""Writing whole or not at all, with the modes and links that are there; JSON that is checked before it is believed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.files import DEEPEST, parse_json, read_text, write_atomic


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def parse(text: str) -> object:
    return parse_json(text, "it", InputError, "mend it")


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new", "a")
    finally:
        os.umask(old)
    assert mode(tmp_path / "new") == 0o640
    (tmp_path / "new").chmod(0o600)
    write_atomic(tmp_path / "new", "b")
    assert mode(tmp_path / "new") == 0o600 and (tmp_path / "new").read_text() == "b"


def test_the_umask_is_never_changed_for_other_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask of the whole process was touched"))
    threads = [threading.Thread(target=write_atomic, args=(tmp_path / f"{i}", "x")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_behind_a_link_the_file_it_names_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "real").read_text() == "new"
    (tmp_path / "dangling").symlink_to(tmp_path / "there" / "later")
    write_atomic(tmp_path / "dangling", "made")
    assert (tmp_path / "there" / "later").read_text() == "made"


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    left, own = tmp_path / f".a.{here}-{gone.pid}-0123abcd.tmp", tmp_path / f".a.{here}-{os.getpid()}-0123abcd.tmp"
    elsewhere, other = (
        tmp_path / f".a.elsewhere-{gone.pid}-0123abcd.tmp",
        tmp_path / f".b.{here}-{gone.pid}-0123abcd.tmp",
    )
    for path in (left, own, elsewhere, other):
        path.write_text("part")
    write_atomic(tmp_path / "a", "whole")
    assert not left.exists() and own.exists() and elsewhere.exists() and other.exists()


def test_the_folder_is_synchronised_after_the_name_is_right(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names))[1])

    def synchronise(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synchronise)
    write_atomic(tmp_path / "a", "x")
    assert done == ["file", "replace", "folder"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_atomic(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1e999", "1e999 is not a number"),
        ("[-1e999]", "not a number"),
        ("NaN", "NaN is not a JSON number"),
        (r'{"a": "\ud800"}', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        ("[" * 5000 + "]" * 5000, "nested"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested more than 64 levels"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ("1" * 5000, "not valid JSON"),
        ("{", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_believed_is_refused(text, says):
    with pytest.raises(InputError, match=says) as caught:
        parse(text)
    assert caught.value.remedy == "mend it"


def test_json_that_can_be_written_again_is_taken():
    assert parse('{"a": [1, 2.5e300, "é 😀", null]}') == {"a": [1, 2.5e300, "é 😀", None]}
    assert parse("[" * DEEPEST + "]" * DEEPEST)


def test_reading_text_refuses_what_is_no_small_file(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    for path, says in (
        (tmp_path, "not a file"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "a", "cannot read"),
    ):
        with pytest.raises(InputError, match=says):
            read_text(path)
    with pytest.raises(InputError, match="2 bytes"):
        read_text(tmp_path / "a", largest_bytes=1)
    with pytest.raises(InputError, match=r"cannot read|does not exist"):
        read_text("a\0b")
