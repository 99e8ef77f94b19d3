"""Parts that configurations name and leave to code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedModelError


def known(names: Mapping[str, Any], name: str, kind: str) -> Any:
    """The part of a name.

    Raises:
        UnsupportedModelError: it is not known.
    """
    if name not in names:
        raise UnsupportedModelError(
            f"the {kind} '{name}' is not known, and its cost is not guessed", f"Known: {', '.join(names)}"
        )
    return names[name]
