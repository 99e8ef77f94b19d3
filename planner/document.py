"""Documents on disk: canonical JSON with a digest over its content.

Plans and profiles are such documents. The text of a document is a function of its content (sorted keys, two spaces, no
NaN, one final newline), so equal content means equal files, and a digest over the content tells a changed file from an
untouched one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.bundled import bundled
from planner.errors import PlanDigestError, PlanError, PlanVersionError
from planner.files import in_folder, parse_json, read_text, write_atomic

__all__ = ["Document", "canonical", "digest", "read_json", "write_atomic"]

Self = TypeVar("Self", bound="Document")


def canonical(obj: Any) -> str:
    """The one JSON text of `obj` (JSON types only): sorted keys, two spaces, a final newline.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest(obj: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical text of `obj`."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()


def read_json(path: str | Path) -> Any:
    """Parse a JSON file strictly (`planner.files.parse_json`).

    Raises:
        InputError: the file cannot be read.
        PlanError: it is not JSON.
    """
    return parse_json(read_text(path), str(path), PlanError, "Restore the file or make it again")


class Document(BaseModel):
    """A frozen document with a schema version and a digest over everything else.

    A subclass names its digest field, adds that field with the default ``""``, and says how to make the document again:

        class Plan(Document):
            KIND: ClassVar[str] = "plan"
            DIGEST_FIELD: ClassVar[str] = "plan_sha256"
            REMAKE: ClassVar[str] = "Make it again with `plan freeze`"
            plan_sha256: str = ""
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    KIND: ClassVar[str] = "document"
    DIGEST_FIELD: ClassVar[str] = "sha256"
    REMAKE: ClassVar[str] = "Make it again"
    SCHEMA_VERSION: ClassVar[int] = 1
    #: Version of an older schema -> what makes of such a content one of the next version.
    UPGRADES: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}

    schema_version: int = 1

    def content(self) -> dict[str, Any]:
        """The document as JSON types, with its digest set."""
        body = self.model_dump(mode="json")
        body.pop(self.DIGEST_FIELD, None)
        return {**body, self.DIGEST_FIELD: digest(body)}

    def sealed(self: Self) -> Self:
        """A copy whose digest field is right."""
        return self.model_copy(update={self.DIGEST_FIELD: self.content()[self.DIGEST_FIELD]})

    def save(self, path: str | Path) -> None:
        """Write the document, digest included, atomically.

        Raises:
            InputError: the place cannot be written.
        """
        write_atomic(path, canonical(self.content()))

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read a document and check version, digest and fields, in that order; an older schema is brought up to date.

        Args:
            path: see `located`.

        Raises:
            InputError: the file cannot be read.
            PlanVersionError: a newer schema wrote it.
            PlanDigestError: it was changed after it was written.
            PlanError: it is not such a document.
        """
        path = cls.located(path)
        return cls.parse(read_json(path), source=str(path))

    @classmethod
    def located(cls, path: str | Path) -> Path:
        """Where a document lies: at a path, in a folder under its kind's name, such as ``plan.json``, or with the
        package, under the name of a bundled model."""
        return in_folder(bundled(path, cls.KIND), f"{cls.KIND}.json")

    @classmethod
    def parse(cls: type[Self], body: Any, source: str = "the document") -> Self:
        """`load` for JSON that has been parsed already; `source` names it in errors."""
        if not isinstance(body, dict) or cls.DIGEST_FIELD not in body:
            raise PlanError(f"{source} is not a {cls.KIND}: it has no '{cls.DIGEST_FIELD}'", cls.REMAKE)
        version = body.get("schema_version")
        if isinstance(version, int) and version > cls.SCHEMA_VERSION:
            raise PlanVersionError(
                f"{source} has schema version {version}, this release reads up to {cls.SCHEMA_VERSION}",
                "Update vlm-planner, or make the file again with this release",
            )
        if version != cls.SCHEMA_VERSION and (type(version) is not int or version not in cls.UPGRADES):
            raise PlanError(f"{source} has the unknown schema version {version!r}", cls.REMAKE)
        stated = body[cls.DIGEST_FIELD]
        try:
            actual = digest({k: v for k, v in body.items() if k != cls.DIGEST_FIELD})
        except (ValueError, TypeError, RecursionError) as error:  # parsed by someone less strict
            raise PlanError(f"{source} holds what no {cls.KIND} can: {error}", cls.REMAKE) from error
        if stated != actual:
            raise PlanDigestError(
                f"{source} was changed after it was written: {cls.DIGEST_FIELD} says {str(stated)[:12]}, "
                f"its content has {actual[:12]}",
                cls.REMAKE,
            )
        try:
            while body["schema_version"] < cls.SCHEMA_VERSION:
                body = cls.UPGRADES[body["schema_version"]](body)
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{source} is not a valid {cls.KIND} of schema {version}: {error!r}", cls.REMAKE) from error
        try:
            # Through JSON text: strict models take lists for tuples there, and only there.
            found = cls.model_validate_json(json.dumps(body))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the top level"
            raise PlanError(f"{source} is not a valid {cls.KIND}: {first['msg']} (at {place})", cls.REMAKE) from error
        return found if version == cls.SCHEMA_VERSION else found.sealed()
