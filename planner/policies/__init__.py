"""Token policies: each turns a model's facts and a workload into a schedule.

parse("fastv:k=3,ratio=0.75").schedule(spec)
parse("prellm:keep=0.5+visipruner:filter=8,keep=20,exit=24")
"""

from __future__ import annotations

from planner.policies.base import Policy
from planner.policies.blind import Blind
from planner.policies.cdpruner import CDPruner
from planner.policies.compose import AnyPolicy, Composition, combine
from planner.policies.context import Context
from planner.policies.dart import Dart
from planner.policies.dense import Dense
from planner.policies.diverse import Diverse
from planner.policies.evict import Evict
from planner.policies.evs import EVS
from planner.policies.fastv import FastV
from planner.policies.fitprune import FitPrune
from planner.policies.generated import Generated
from planner.policies.hired import HiRED
from planner.policies.known import names, parse, policy_class, usable
from planner.policies.pool import Pool
from planner.policies.prellm import PreLLM
from planner.policies.pyramiddrop import PyramidDrop
from planner.policies.random import Random
from planner.policies.resize import Resize
from planner.policies.shortv import ShortV
from planner.policies.sparsevlm import SparseVLM
from planner.policies.tome import ToMe
from planner.policies.var import VAR
from planner.policies.vidcom2 import VidCom2
from planner.policies.visipruner import VisiPruner
from planner.policies.vispruner import VisPruner
from planner.policies.vtw import VTW
from planner.policies.window import ShallowRule

__all__ = [
    "EVS",
    "VAR",
    "VTW",
    "AnyPolicy",
    "Blind",
    "CDPruner",
    "Composition",
    "Context",
    "Dart",
    "Dense",
    "Diverse",
    "Evict",
    "FastV",
    "FitPrune",
    "Generated",
    "HiRED",
    "Policy",
    "Pool",
    "PreLLM",
    "PyramidDrop",
    "Random",
    "Resize",
    "ShallowRule",
    "ShortV",
    "SparseVLM",
    "ToMe",
    "VidCom2",
    "VisPruner",
    "VisiPruner",
    "combine",
    "names",
    "parse",
    "policy_class",
    "usable",
]
