"""Plans and profiles that come with the package, by the name of their model: ``reference/windowed``."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

_NAME = re.compile(r"reference/(\w+)")


def plans() -> list[str]:
    """Names of the bundled plans."""
    return sorted(
        {f"reference/{file.parent.name}" for folder in _folders("plan") for file in folder.glob("*/plan.json")}
    )


def bundled(path: str | Path, kind: str) -> Path:
    """Where the document of a bundled model lies; of any other path, and of one that is there, the path itself.

    Args:
        kind: ``plan`` or ``profile``.
    """
    name = _NAME.fullmatch(str(path))
    if name is None or Path(path).exists():
        return Path(path)
    files = [folder / name[1] / f"{kind}.json" for folder in _folders(kind)]
    return next((file for file in files if file.is_file()), Path(path))


def _folders(kind: str) -> list[Path]:
    """Profiles lie beside their models; plans below them once they are installed, and in a checkout with the reports
    that show them."""
    root = Path(str(resources.files("planner.profiles")))
    models = root / "reference"
    return [models] if kind == "profile" else [models / "plans", root.parent / "reports" / "reference"]
