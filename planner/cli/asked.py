"""What is asked of a plan, as options: what has to hold, what is saved, and what it may cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])
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

    found = cast(F, gathered)
    for option in reversed((*_WHAT_HOLDS, *_WHAT_IS_SAVED)):
        found = option(found)
    return found


_WHAT_HOLDS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--goal",
        type=click.Choice(["agreement", "accuracy"]),
        default="agreement",
        show_default=True,
        help="Keep the dense model's answers, or its accuracy.",
    ),
    click.option(
        "--agreement",
        "--min-agreement",
        type=float,
        default=0.98,
        show_default=True,
        help="Least expected share that is kept: of the dense model's answers or tokens, or of accuracy.",
    ),
    click.option(
        "--confidence",
        type=float,
        default=0.8,
        show_default=True,
        help="One-sided confidence with which --agreement must be proven.",
    ),
    click.option(
        "--loss",
        type=click.Choice(["answer", "tokens", "nll", "score"]),
        help="What a sample loses. [default: whole answers, tokens where answers are long; the metric's score under "
        "--goal accuracy]",
    ),
    click.option(
        "--metric",
        default="exact",
        show_default=True,
        help="When an answer is right: exact, leading, contains, vqa, anls, or module:function.",
    ),
    click.option("--kind-limit", type=float, help="Largest expected loss of each kind of question."),
    click.option("--best-effort", is_flag=True, help="Where nothing is proven, take the best candidate, labelled so."),
)
_WHAT_IS_SAVED: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--minimise",
        type=click.Choice(["flops", "kv", "prefill-ms", "latency"]),
        default="flops",
        show_default=True,
        help="What a plan should need least of.",
    ),
    click.option("--max-flops", type=float, help="Largest share of the dense decoder FLOPs, such as 0.3."),
    click.option(
        "--max-kv-mb", type=float, help="Largest KV cache after the prefill, in 10^6 bytes (16-bit elements)."
    ),
    click.option("--max-latency-ms", type=float, help="Longest time of a request on --hardware."),
    click.option(
        "--hardware",
        help="Where times are estimated: a row of `plan ls hardware`; measured: prefills on this machine.",
    ),
    click.option("--portable", help="Only what this engine can carry: vllm, openvino, trt-edge, llamacpp."),
    click.option(
        "--questions",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Questions per image that costs are compared for. More than one assumes an image cache.",
    ),
)
