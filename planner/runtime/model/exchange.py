"""Attributes of one object exchanged for the length of a block: how a plan gets between a model and its callers.

An instance attribute shadows the method of the class, so the class, and every other model of it, stays as it is.
Nothing is exchanged while the model runs: only when a plan is attached, and back when it is detached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from planner.errors import RuntimeStateError

Function = Callable[..., Any]


@contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute on one object, until the block ends.

    What somebody else has put in its place meanwhile stays: their wrapper calls ours, which then passes calls on.
    """
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if vars(owner).get(name) is value:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


@contextmanager
def wrapped(owner: Any, name: str, around: Callable[[Function], Function]) -> Iterator[None]:
    """A method replaced by what `around` makes of it; signature and name stay the original's."""
    original = getattr(owner, name)
    with exchanged(owner, name, functools.wraps(original)(around(original))):
        yield


@contextmanager
def uncopied(owner: Any) -> Iterator[None]:
    """Refuse deep copies and pickles of an object while the block runs: a copy would call the original's methods."""

    def refuse(*_: Any) -> Any:
        raise RuntimeStateError(
            f"a {type(owner).__name__} cannot be copied or pickled while a plan is attached",
            "Detach the plan first, and attach it to the copy as well",
        )

    with exchanged(owner, "__deepcopy__", refuse), exchanged(owner, "__reduce_ex__", refuse):
        yield
