"""What inference engines can carry of a plan, and how they are told. One engine, one file in ``profiles/exports``.

Nothing here knows a policy: a schedule says what is to be done, a file what its engine does, and `carried` compares
them. Adding an engine means adding a file.
"""

from planner.engines.carry import Carried, carried, portability
from planner.engines.facts import Engine, Level, Route, engine, engine_names
from planner.engines.handover import Handover, hand_over
from planner.engines.nearest import Nearest, nearest

__all__ = [
    "Carried",
    "Engine",
    "Handover",
    "Level",
    "Nearest",
    "Route",
    "carried",
    "engine",
    "engine_names",
    "hand_over",
    "nearest",
    "portability",
]
