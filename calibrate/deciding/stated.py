"""A proof and a split in the words of a plan's evidence."""

from __future__ import annotations

from calibrate.deciding.demand import Demand
from calibrate.deciding.proof import Proof
from calibrate.deciding.split import Split, count_pictures
from planner.evidence import LossName, Part, Parts, Promise, Rung


def promise_of(demand: Demand, loss: LossName, proof: Proof | None) -> Promise:
    """What was promised and what was shown of it.

    Args:
        demand: what was asked for.
        loss: the one that was measured.
        proof: None where no ladder was frozen.
    """
    tested = () if proof is None else proof.tested
    return Promise(
        loss=loss,
        metric=demand.metric if loss == "score" else None,
        limit=demand.limit,
        kind_limit=demand.kind_limit,
        confidence=demand.confidence,
        proven=proof is not None and proof.shipped is not None,
        rungs=0 if proof is None else proof.rungs,
        tested=tuple(
            Rung(
                policy=one.rung.policy,
                share=one.rung.flops,
                loss=one.loss,
                misses=one.misses,
                n=one.n,
                pictures=one.pictures,
                p=one.p,
                proven=one.proven,
                bound=one.bound,
                kinds=dict(one.kinds),
            )
            for one in tested
        ),
    )


def parts_of(split: Split) -> Parts:
    """The three parts with their digests."""
    found = {
        name: Part(digest=part.digest, n=len(part), pictures=count_pictures(part)) for name, part in split.parts.items()
    }
    return Parts(**found)
