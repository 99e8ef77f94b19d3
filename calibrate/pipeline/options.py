"""What is asked of a calibration: the options of `plan calibrate`, and the samples that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Objective
from calibrate.deciding.split import by_picture
from calibrate.inputs.bundled import reference
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.samples import Columns, SampleSet, load_samples
from calibrate.probes.base import DEFAULT
from planner.errors import InputError


@dataclass(frozen=True)
class Options:
    """All options of `plan calibrate`.

    Attributes:
        model: hub id or directory; None for the bundled reference model.
        data: JSONL, image folder or `datasets` id; None for the reference model's calibration set.
        evaluation_data: the same for the final comparison; None for the reference model's test set, and for a
            user's model no evaluation.
        prompt: for image folders.
        num_samples: how many calibration samples are drawn by `seed`; None: all.
        loading: how the model is loaded.
        probes, settings: which, and their constructor arguments by name.
        profile: decide from this profile, measured before, in place of measuring.
        full_digest: bind the profile to every byte of the weights.
        out: folder for states; nothing is written there by this function but states.
        shard: ``(i, n)``.
        demand, objective: what is asked of a plan, and what it should save.
        measure: schedules that the search may execute.
        answer_tokens: longest answer.
        decide: False stops after the profile.
        timing_rounds: 0 leaves prefill times out.
        verbose: say what is being tried.
    """

    model: str | None = None
    data: str | None = None
    evaluation_data: str | None = None
    prompt: str | None = None
    columns: Columns = field(default_factory=Columns)
    split: str = "test"
    num_samples: int | None = None
    evaluation_samples: int | None = None
    seed: int = 0
    batch_size: int = 16
    loading: LoadOptions = field(default_factory=LoadOptions)
    probes: tuple[str, ...] = DEFAULT
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profile: Path | None = None
    out: Path | None = None
    resume: bool = False
    full_digest: bool = False
    shard: tuple[int, int] = (0, 1)
    demand: Demand = field(default_factory=Demand)
    objective: Objective = field(default_factory=Objective)
    measure: int = 160
    answer_tokens: int = 16
    decide: bool = True
    timing_rounds: int = 15
    verbose: bool = False


def chosen_samples(options: Options) -> tuple[SampleSet, SampleSet | None]:
    """Calibration samples, drawn and shuffled by the seed, and evaluation samples.

    Raises:
        InputError: none are named, and none are bundled with the model.
    """
    bundled = reference(options.model)
    evaluation: str | Path | None = options.evaluation_data
    if options.data is not None:
        data: str | Path = options.data
    elif bundled is not None:
        data, evaluation = bundled.calibration, evaluation or bundled.evaluation
    else:
        raise InputError("there are no bundled samples for this model", "Give --data: JSONL, image folder, datasets id")
    reading: dict[str, Any] = {"prompt": options.prompt, "columns": options.columns, "split": options.split}
    # Samples about one picture stand together, so that the parts of the split are stretches of the set.
    samples = by_picture(load_samples(data, **reading).choose(options.num_samples, options.seed))
    if evaluation is None:
        return samples, None
    return samples, load_samples(evaluation, **reading).choose(options.evaluation_samples, options.seed)
