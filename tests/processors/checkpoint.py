"""One checkpoint on disk with its samples, and what the product makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from click.testing import CliRunner, Result

from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model, identify
from calibrate.inputs.load import Loaded, load
from calibrate.inputs.samples import Sample
from planner import load_plan
from planner.cli import cli
from planner.schedule import Schedule
from tests.processors import samples

#: What is executed, whatever calibration decides: a shallow stage without reading, a selection, an exit.
POLICY = "visipruner:filter=1,keep=4,exit=3,visual_attention=self"


class Wrong(Exception):
    """A step came out otherwise than it must."""


@dataclass
class Checkpoint:
    """A checkpoint on disk with its samples, and what is made of it on the way.

    Attributes:
        folder: holds ``model``, the samples, and in ``out`` the profile and the plans.
    """

    family: str
    folder: Path

    @cached_property
    def loaded(self) -> Loaded:
        """As the product loads it."""
        return load(str(self.folder / "model"))

    @cached_property
    def known(self) -> Model:
        """Its facts."""
        return identify(self.loaded.model, self.family)

    @cached_property
    def encoder(self) -> Encoder:
        """As the product encodes for it."""
        return Encoder(self.loaded.processor, self.known.visual_ids)

    @property
    def plan(self) -> Path:
        """The plan of `POLICY`."""
        return self.folder / "out" / "pruned.json"

    @property
    def schedule(self) -> Schedule:
        """What the plan executes."""
        return load_plan(self.plan).decision.schedule

    def sample(self, *images: int) -> Sample:
        """A question about pictures of the evaluation set."""
        paths = tuple(self.folder / f"evaluation-{number}-0.png" for number in images)
        return Sample(paths, samples.QUESTION, where="the prompt")

    def command(self, *arguments: str | Path) -> Result:
        """Run `plan` in this process.

        Raises:
            Wrong: bad usage, which no step means to be.
        """
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            raise Wrong(result.stderr.strip().splitlines()[-1])
        return result
