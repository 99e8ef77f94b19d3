"""A space of candidates that the decision searches by execution: a window of layers in which the text reads few visual
tokens, between shallow layers that it does without and deep layers that need none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.policies.base import Policy


@dataclass(frozen=True)
class ShallowRule:
    """What visual tokens and text do in the layers before the window.

    Attributes:
        curve: the masking curve that tells how deep the rule may reach; empty where nothing measures it.
        settings: the policy's parameters that make the rule.
    """

    curve: str
    settings: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Window:
    """What a policy proposes in place of single members (`Policy.candidates`).

    Attributes:
        rules: for the shallow layers, in the order in which they are tried where they may reach equally deep.
        untouched: the rule that leaves shallow layers as the model has them.
        member: the policy of a filter layer, a budget (`planner.policies.base.keep_of`), an exit layer (None: no exit),
            a score and a rule's settings.
        trimmed: a cheaper form of the member that was chosen, to be tried at last; None: there is none.
    """

    rules: tuple[ShallowRule, ...]
    untouched: ShallowRule
    member: Callable[[int, float, int | None, str, dict[str, Any]], Policy]
    trimmed: Callable[[Policy], Policy | None]
