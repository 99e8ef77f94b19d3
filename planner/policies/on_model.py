"""A policy on a model without a plan: ``with VisiPruner(filter=8, keep=10, exit=24).apply(model): ...``"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.runtime import Handle
    from planner.schedule import Schedule
    from planner.spec import ModelSpec
    from planner.workload import Workload

_log = logging.getLogger(__name__)


def warn_of_kept(schedule: Schedule) -> None:
    """Warn where decoding finds fewer visual tokens in a layer than the prompt's text saw there: what that does to
    answers shows in no prefill, so that only executed answers tell."""
    if any(stage.cache_visual == "kept" for stage in schedule.stages):
        _log.warning(
            "decoding finds fewer visual tokens in the cache than the prompt saw (filter_cache=kept, or evict), and "
            "answers were not measured; calibrate, or take filter_cache=all"
        )


class OnModel:
    """What has a schedule can be attached to a model."""

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        """See `Policy.schedule`."""
        raise NotImplementedError

    def attach(
        self, model: Any, workload: Workload | None = None, profile: Profile | None = None, **options: Any
    ) -> Handle:
        """Make a loaded transformers model compute by this policy until ``handle.detach()``.

        Nothing says what accuracy that keeps; a plan does (`plan calibrate`).

        Args:
            model: an unmodified transformers model in evaluation mode.
            workload, profile: for policies that take parameters from them, see `Policy.schedule`.
            options: passed on to `planner.runtime.attach`.

        Raises:
            UnsupportedModelError: the model is of an unknown family, or lacks a part the runtime needs.
            InputError: a parameter does not fit the model, or a workload or profile is needed.
        """
        from planner.runtime import attach
        from planner.spec import ModelSpec

        schedule = self.schedule(ModelSpec.from_config(model.config.to_dict()), workload, profile)
        warn_of_kept(schedule)
        return attach(model, schedule, **options)

    @contextlib.contextmanager
    def apply(
        self, model: Any, workload: Workload | None = None, profile: Profile | None = None, **options: Any
    ) -> Iterator[Handle]:
        """`attach` for the length of a ``with`` block; the model is untouched afterwards, also after an exception."""
        handle = self.attach(model, workload, profile, **options)
        try:
            yield handle
        finally:
            handle.detach()

    def before_decoder(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> bool:
        """Whether everything it does on a model happens before the decoder, so that an engine that can drop visual
        embeddings, and hides its decoder's layers, can carry it."""
        return self.schedule(spec, workload, profile).before_decoder
