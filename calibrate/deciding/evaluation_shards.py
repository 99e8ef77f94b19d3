"""Parts of one evaluation, measured apart: what `plan evaluate --shard i/n` writes and `plan merge` unites.

A shard takes every n-th batch of the whole set, so that each batch is what it would be in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from calibrate.deciding.executed import Evaluation, Executed, united
from planner.document import Document
from planner.errors import CalibrationError, InputError
from planner.profile import Json
from planner.spec import ModelSpec


class EvaluationShard(Document):
    """One part.

    Attributes:
        plan_sha256: of the plan that was evaluated.
        config: facts of its model's configuration.
        settings: everything else that parts must have in common: seed, batch size, weights and so on.
        samples: in the whole set.
        shard: which part of how many.
    """

    KIND: ClassVar[str] = "evaluation shard"
    DIGEST_FIELD: ClassVar[str] = "evaluation_sha256"
    REMAKE: ClassVar[str] = "Make it again with `plan evaluate --shard`"

    plan_sha256: str
    config: dict[str, Json]
    settings: dict[str, Json]
    samples: int
    shard: tuple[int, int]
    executed: Executed
    evaluation_sha256: str = ""


def part_of(samples: int, batch_size: int, shard: tuple[int, int]) -> list[int]:
    """Positions of a shard's samples.

    Raises:
        InputError: there is no such shard, or not a batch for each.
    """
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard {index}/{count} does not exist", "Shards are 0/n to n-1/n")
    if count > -(-samples // batch_size):
        raise InputError(
            f"{samples} samples in batches of {batch_size} are too few for {count} shards",
            "Give fewer shards, or a smaller --batch-size",
        )
    return [i for i in range(samples) if i // batch_size % count == index]


def merged(paths: Sequence[Path]) -> Evaluation:
    """The evaluation that one process would have made.

    Raises:
        InputError: a file cannot be read.
        PlanError: it is no shard, or was changed.
        CalibrationError: shards of different evaluations, one twice, or not all; the file or number is named.
    """
    shards = [EvaluationShard.load(path) for path in paths]
    first = shards[0]
    for path, shard in zip(paths, shards, strict=True):
        different = [name for name, one, other in _compared(first, shard) if one != other]
        if different:
            raise CalibrationError(
                f"{path} is of another evaluation than {paths[0]}: {', '.join(different)} differ",
                "Give every shard the same plan, samples and options",
            )
    have = [shard.shard[0] for shard in shards]
    missing = sorted(set(range(first.shard[1])) - set(have))
    twice = sorted({one for one in have if have.count(one) > 1})
    if missing or twice:
        what = f"shard {missing[0]} of {first.shard[1]} is missing" if missing else f"shard {twice[0]} is given twice"
        raise CalibrationError(what, "Merge all shards of the evaluation, each once")
    return united([shard.executed for shard in shards]).evaluation(ModelSpec.from_config(first.config))


def _compared(one: EvaluationShard, other: EvaluationShard) -> list[tuple[str, object, object]]:
    a, b = one.executed, other.executed
    return [
        ("plans", one.plan_sha256, other.plan_sha256),
        ("samples", (a.digest, one.samples), (b.digest, other.samples)),
        ("loss or metric", (a.loss, a.metric), (b.loss, b.metric)),
        ("numbers of shards", one.shard[1], other.shard[1]),
        *((name, value, other.settings.get(name)) for name, value in one.settings.items()),
        ("policies", [run.policy for run in a.runs], [run.policy for run in b.runs]),
    ]
