"""The reference models that come with the package, by name: where the model lies, and the samples made for it.

``windowed`` and ``plain`` are shipped whole. Of ``pretrained`` the package holds what was trained; the model is rebuilt
into a folder under the working directory, because it is larger than a package should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from planner.errors import InputError, nearest

#: What the names start with where a hub id or a directory could stand too.
PREFIX = "reference/"
DEFAULT = "windowed"
#: Where ``rebuild`` puts the pretrained model unless told otherwise.
REBUILT = Path("reference-models") / "pretrained"
REBUILD = "python -m planner.profiles.reference.train.pretrained rebuild"


@dataclass(frozen=True)
class Reference:
    """One reference model.

    Attributes:
        name: without `PREFIX`.
        model: folder of the model.
        calibration, evaluation: JSONL of its samples; no sample of the latter was trained, chosen or decided on.
    """

    name: str
    model: Path
    calibration: Path
    evaluation: Path


def reference_path(name: str = DEFAULT) -> Path:
    """Folder of a bundled reference model or of bundled samples (``easy_vqa``)."""
    return Path(str(resources.files("planner.profiles"))) / "reference" / name


def references() -> dict[str, Reference]:
    """All reference models by name."""
    shapes, drawings = reference_path("easy_vqa"), reference_path("pretrained")
    asked = (shapes / "calibration.jsonl", shapes / "test.jsonl")
    return {
        "windowed": Reference("windowed", reference_path("windowed"), *asked),
        "plain": Reference("plain", reference_path("plain"), *asked),
        "pretrained": Reference("pretrained", REBUILT, drawings / "calibration.jsonl", drawings / "evaluation.jsonl"),
    }


def reference(name: str | None) -> Reference | None:
    """The reference model that a name means: ``reference/...``, or None for the default one.

    Returns:
        None for any other name: a hub id or a directory.

    Raises:
        InputError: there is no reference model of that name.
    """
    if name is None:
        return references()[DEFAULT]
    if not name.startswith(PREFIX):
        return None
    known = references()
    found = known.get(name.removeprefix(PREFIX))
    if found is None:
        raise InputError(
            f"no bundled model is called {name!r}",
            f"{nearest(name.removeprefix(PREFIX), known)}Bundled: {', '.join(known)}",
        )
    return found


def model_folder(found: Reference) -> Path:
    """The folder of a reference model.

    Raises:
        InputError: it has not been rebuilt yet.
    """
    if not (found.model / "config.json").is_file():
        raise InputError(
            f"the reference model {found.name} is not in {found.model}: it has to be rebuilt first",
            f"`{REBUILD}` does that here in a minute; a model that lies elsewhere goes by its folder",
        )
    return found.model
