"""Plans and profiles on the Hugging Face Hub: ``hf://user/repo@revision`` names a plan there.

A repository holds ``plan.json``, a model card, and the profile where one was pushed along. Files that were fetched stay
in the hub's own cache, so that a revision that is there needs no connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError

#: Names of the files in a repository. The tables of a profile lie beside it.
PLAN, PROFILE, TABLES, CARD = "plan.json", "profile.json", "profile.safetensors", "README.md"
#: `Path` leaves one of two slashes.
_REFERENCE = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Reference:
    """A repository, and the branch, tag or commit that is meant; None is the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def reference(text: str | Path) -> Reference | None:
    """What ``hf://user/repo@revision`` refers to; None for anything that does not begin so.

    Raises:
        InputError: it begins so, and names no repository.
    """
    if not str(text).startswith("hf:/"):
        return None
    found = _REFERENCE.fullmatch(str(text))
    if found is None:
        raise InputError(f"{text} names no repository", "Write it like hf://user/repo or hf://user/repo@revision")
    return Reference(found[1], found[2])


def repository(text: str) -> Reference:
    """``user/repo@revision``, with or without ``hf://`` before it.

    Raises:
        InputError: it is no such name.
    """
    found = reference(text)
    if found is not None:
        return found
    plain = _REPOSITORY.fullmatch(text)
    if plain is None:
        raise InputError(f"'{text}' names no repository", "Write it like user/repo or user/repo@revision")
    return Reference(plain[1], plain[2])


def local(path: str | Path) -> Path:
    """Where a plan lies on this machine: itself, or what ``hf://user/repo@revision`` refers to, fetched.

    Raises:
        InputError: as `reference` and `fetch`.
    """
    where = reference(path)
    return Path(path) if where is None else fetch(where)


def fetch(where: Reference, name: str = PLAN) -> Path:
    """A file of a repository, in the hub's cache.

    Raises:
        InputError: there is no such repository, revision or file, no access to it, or no connection and nothing in the
            cache.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(where.repository, name, revision=where.revision))
    except Exception as error:  # the library raises many kinds; all mean that the file cannot be had
        raise InputError(
            f"{name} of {where} could not be read from the hub ({type(error).__name__})",
            "Check the name and revision, the connection and, for private repositories, `hf auth login`",
        ) from error


def holds(where: Reference, name: str) -> bool:
    """Whether a repository has a file.

    Raises:
        InputError: as `fetch`.
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        fetch(where, name)
    except InputError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return False
        raise
    return True


def fetch_profile(where: Reference) -> Path:
    """A repository's profile, in the hub's cache, with its tables beside it where it has any.

    Raises:
        InputError: as `fetch`.
    """
    if holds(where, TABLES):
        fetch(where, TABLES)
    return fetch(where, PROFILE)


def push(where: Reference, files: Mapping[str, bytes], message: str, private: bool = False) -> str:
    """Write files to a repository in one commit; it is made where there is none.

    Args:
        where: its revision is the branch that is written to.
        files: contents by name.

    Returns:
        Where the commit can be seen.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    try:
        hub.create_repo(where.repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = hub.create_commit(where.repository, operations, commit_message=message, revision=where.revision)
    except Exception as error:  # as in `fetch`
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{where} could not be written: {reason}", "Check the name, the connection, and `hf auth login`"
        ) from error
    return str(done.commit_url)
