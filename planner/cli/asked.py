"""What is asked of a plan, as options: what has to hold, what is saved, and what it may cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import click

from planner.cli.completion import devices, engines, names
from planner.cli.options import judging, with_options
from planner.cli.words import F, option

#: Schedules that a search may execute, unless told.
MEASURE = 160
#: Parameters of the command that make up a `Demand` and an `Objective`.
_DEMAND = ("goal", "loss", "metric", "agreement", "confidence", "kind_limit", "best_effort")
_OBJECTIVE = ("minimise", "max_flops", "max_kv_mb", "max_latency_ms", "hardware", "portable", "questions")


def asked(function: F) -> F:
    """The command gets a `Demand` as its argument `demand` and an `Objective` as `objective`.

    Numbers that make no sense are refused here, before torch is imported.
    """

    @functools.wraps(function)
    def gathered(**given: Any) -> Any:
        from calibrate.deciding.demand import Demand
        from calibrate.deciding.objective import Objective

        demand = Demand(**{name: given.pop(name) for name in _DEMAND})
        objective = Objective(**{name: given.pop(name) for name in _OBJECTIVE})
        return function(**given, demand=demand, objective=objective)

    found = with_options(cast(F, gathered), _WHAT_IS_SAVED, "What is minimised")
    return with_options(judging("exact")(found), _WHAT_HOLDS, "What has to hold")


_WHAT_HOLDS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--goal",
        type=click.Choice(["agreement", "accuracy"]),
        default="agreement",
        show_default=True,
        help="Keep the dense model's answers, or its accuracy.",
    ),
    option(
        "--agreement",
        aliases=["--min-agreement"],
        type=float,
        default=0.98,
        show_default=True,
        help="Least expected share that is kept: of the dense model's answers or tokens, or of accuracy.",
    ),
    option(
        "--confidence",
        type=float,
        default=0.8,
        show_default=True,
        help="One-sided confidence with which --agreement must be proven.",
    ),
    option("--kind-limit", type=float, help="Largest expected loss of each kind of question."),
    option("--best-effort", is_flag=True, help="Where nothing is proven, take the best candidate, labelled so."),
)
_WHAT_IS_SAVED: tuple[Callable[[Any], Any], ...] = (
    option(
        "--minimise",
        type=click.Choice(["flops", "kv", "prefill-ms", "latency"]),
        default="flops",
        show_default=True,
        help="What a plan should need least of.",
    ),
    option("--max-flops", type=float, help="Largest share of the dense decoder FLOPs, such as 0.3."),
    option("--max-kv-mb", type=float, help="Largest KV cache after the prefill, in 10^6 bytes (16-bit elements)."),
    option("--max-latency-ms", type=float, help="Longest time of a request on --hardware."),
    option(
        "--hardware",
        shell_complete=names(devices, lambda: ["measured"], files=True),
        help="Where times are estimated: a row of `plan ls hardware`; measured: prefills on this machine.",
    ),
    option(
        "--portable",
        shell_complete=names(engines),
        help="Only what this engine can carry: vllm, openvino, trt-edge, llamacpp.",
    ),
    option(
        "--questions",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Questions per image that costs are compared for. More than one assumes an image cache.",
    ),
)
