"""What visual tokens and text do in the layers before a window in which the text reads few visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ShallowRule:
    """A rule for shallow layers.

    Attributes:
        curve: the masking curve that tells how deep the rule may reach.
        settings: the policy's parameters that make the rule.
    """

    curve: str
    settings: tuple[tuple[str, Any], ...]
