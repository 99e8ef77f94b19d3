"""Parts of an evaluation: together they are the whole, in whatever order they come."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.deciding.evaluation_shards import part_of
from calibrate.deciding.executed import Executed, Ran, united
from planner.errors import InputError
from planner.schedule import dense


def executed(n: int, seed: int, losses: bool = True) -> Executed:
    """Two runs whose every value tells its sample and run."""
    rng = random.Random(seed)

    def run(name: str, role: str) -> Ran:
        return Ran(
            policy=name,
            role=role,  # type: ignore[arg-type]
            schedule=dense(4),
            answers=tuple(f"{name} {i}" for i in range(n)),
            ended=tuple(rng.random() < 0.5 for _ in range(n)),
            scores=tuple(rng.random() for _ in range(n)),
            losses=tuple(rng.random() for _ in range(n)) if losses else None,
            along=tuple(tuple(rng.random() for _ in range(1 + i % 5)) for i in range(n)) if losses else (),
            prefill_ms=1.5,
        )

    return Executed(
        digest="d",
        ids=tuple(range(n)),
        shapes=tuple((i, 10 + i, 20 + i) for i in range(n)),
        kinds=tuple(f"kind {i % 3}" for i in range(n)),
        loss="tokens",
        metric="exact",
        runs=(run("dense", "dense"), run("plan", "plan")),
    )


def cut(whole: Executed, part: list[int], first: bool) -> Executed:
    """What a shard with these samples would hold; only the first one measures times."""

    def chosen(values: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(values[i] for i in part)

    runs = tuple(
        run.model_copy(
            update={
                **{name: chosen(getattr(run, name)) for name in ("answers", "ended", "scores")},
                "losses": None if run.losses is None else chosen(run.losses),
                "along": chosen(run.along) if run.along else (),
                "prefill_ms": run.prefill_ms if first else None,
            }
        )
        for run in whole.runs
    )
    fields = {name: chosen(getattr(whole, name)) for name in ("ids", "shapes", "kinds")}
    return whole.model_copy(update={**fields, "runs": runs})


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.booleans(), st.randoms(use_true_random=False))
def test_parts_unite_to_the_whole(n: int, batch: int, count: int, losses: bool, rng: random.Random) -> None:
    batches = -(-n // batch)
    if count > batches:
        with pytest.raises(InputError, match="too few"):
            part_of(n, batch, (0, count))
        return
    whole = executed(n, 3, losses)
    parts = [part_of(n, batch, (i, count)) for i in range(count)]
    assert sorted(i for part in parts for i in part) == list(range(n))
    # Batches stay together, in the same places of their batch.
    assert all(i // batch % count == number for number, part in enumerate(parts) for i in part)
    shards = [cut(whole, part, number == 0) for number, part in enumerate(parts)]
    rng.shuffle(shards)
    assert united(shards) == whole
