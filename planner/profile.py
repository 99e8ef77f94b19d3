"""The profile: what calibration measured about one model on one sample set.

``profile.json`` holds identities and summaries with their intervals; ``profile.safetensors`` beside it holds the
per-sample tables behind the summaries, so that other quantiles can be read off without running the model again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from planner.document import Document, write_atomic
from planner.errors import PlanDigestError, PlanError
from planner.hub import fetch_profile, reference
from planner.weights import Weights

Arrays = dict[str, NDArray[Any]]

if TYPE_CHECKING:
    Json = Any  # readers index into it freely
else:
    from pydantic import JsonValue as Json


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def without_absent(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """Leave out fields that older documents do not have, so that their text and digest stay what they were."""
    return {name: value for name, value in body.items() if value is not None or name not in names}


def processor_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two processors as a profile holds them, a phrase each.

    Facts that only one of them knows are left out, and so is the class: releases of transformers rename it.
    """
    mine, theirs = one.get("image_processor") or {}, other.get("image_processor") or {}
    found = [
        f"{name} ({mine[name]} and {theirs[name]})"
        for name in sorted(mine)
        if mine[name] != theirs.get(name, mine[name])
    ]
    digests = {"tokenizer_sha256": "the tokenizer", "chat_template_sha256": "the chat template"}
    if not found and one.get("class") == other.get("class"):
        digests = {"image_processor_sha256": "a setting of the image processor", **digests}
    for name, what in digests.items():
        if name in one and name in other and one[name] != other[name]:
            found.append(what if one[name] and other[name] else f"{what}, which one of them lacks")
    return found


class ModelIdentity(_Frozen):
    """Which model was measured.

    Attributes:
        id: hub id or folder name.
        config: those facts of the Hugging Face configuration that `ModelSpec.from_config` reads, and no others.
        config_digest: `ModelSpec.digest` of it.
        weights: fingerprint of all weights; None in documents of before there was one.
    """

    id: str
    revision: str | None = None
    family: str
    config: dict[str, Json]
    config_digest: str
    layers: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    image_token_id: int | None
    weights: Weights | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_absent(handler(self), "weights")


class SampleIdentity(_Frozen):
    """On which samples: digest over pixels' files and texts, how many, and where they came from.

    Attributes:
        questions: a short digest of each sample's images and prompt (`calibrate.inputs.overlap`), so that an evaluation
            can tell that it has been measured on; None in older documents.
    """

    digest: str
    n: Annotated[int, Field(ge=1)]
    source: str
    questions: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_absent(handler(self), "questions")


class PromptShape(_Frozen):
    """Mean token counts of the calibration prompts: what costs are computed for."""

    visual_tokens: Annotated[int, Field(ge=0)]
    text_tokens: Annotated[int, Field(ge=0)]
    system_tokens: Annotated[int, Field(ge=0)]


class ProbeResult(_Frozen):
    """What one probe found: settings, number of samples, summaries with intervals."""

    n: Annotated[int, Field(ge=0)]
    settings: dict[str, Json]
    values: dict[str, Json]


class Profile(Document):
    """A calibration profile; `probes` by name (``influence``, ``sinks``, ``sparsity``, ``masking``, ...)."""

    KIND: ClassVar[str] = "profile"
    DIGEST_FIELD: ClassVar[str] = "profile_sha256"
    REMAKE: ClassVar[str] = "Make it again with `plan calibrate`"

    model: ModelIdentity
    samples: SampleIdentity
    prompt: PromptShape
    processor: dict[str, Json]
    probes: dict[str, ProbeResult]
    environment: dict[str, Json]
    created_with: str
    arrays_sha256: str | None = None
    profile_sha256: str = ""
    _arrays: Arrays | None = PrivateAttr(default=None)
    _arrays_path: Path | None = PrivateAttr(default=None)

    # What was read so far is no part of the document.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content()[self.DIGEST_FIELD])

    def with_arrays(self, arrays: Arrays) -> Profile:
        """A copy that carries per-sample tables (written beside the JSON by `save`)."""
        digest = hashlib.sha256(_pack(arrays)).hexdigest() if arrays else None
        copy = self.model_copy(update={"arrays_sha256": digest})
        copy._arrays = arrays
        return copy

    @property
    def arrays(self) -> Arrays:
        """Per-sample tables, ``probe/column`` to array; read on first use.

        Raises:
            PlanError: the file beside the profile is missing.
            PlanDigestError: it is not the one the profile was written with.
        """
        if self._arrays is None:
            self._arrays = self._read_arrays()
        return self._arrays

    def save(self, path: str | Path) -> None:
        """Write the profile, and its tables under the same name with the suffix ``.safetensors``.

        Raises:
            InputError: the place cannot be written.
        """
        if self.arrays_sha256 is not None:
            write_atomic(Path(path).with_suffix(".safetensors"), _pack(self.arrays))
        super().save(path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile; its tables are read when asked for.

        Args:
            path: a file or its folder, ``hf://user/repo@revision``, or the name of a bundled model.

        Raises:
            InputError, PlanError: as `Document.load` does; the hub has no such profile.
        """
        where = reference(path)
        file = cls.located(path) if where is None else fetch_profile(where)
        profile = super().load(file)
        profile._arrays_path = file.with_suffix(".safetensors")
        return profile

    @property
    def tables(self) -> Path | None:
        """Where the tables lie; None of a profile that was made here and not read."""
        return self._arrays_path

    def _read_arrays(self) -> Arrays:
        if self.arrays_sha256 is None:
            return {}
        path = self._arrays_path
        if path is None or not path.is_file():
            cause = f"the profile's tables {path or ''} are missing"
            raise PlanError(cause, "Keep the .safetensors file beside the profile's .json")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.arrays_sha256:
            raise PlanDigestError(f"{path} does not belong to this profile or was changed", self.REMAKE)
        from safetensors.numpy import load

        return dict(load(content))


def _pack(arrays: Arrays) -> bytes:
    """Safetensors bytes, a function of the arrays alone."""
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))
