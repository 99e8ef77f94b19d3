"""vLLM's processor of a family, under a plan: shorter prompts, and pictures that are another plan's no more.

The placeholders of a picture are as many as the plan keeps. Everything that vLLM keeps of a picture (processed pixels,
encoded tokens, prefixes of prompts) is kept under a name that holds the plan's digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from planner.runtime.selection.picture import PictureEntry
from planner.vllm_plugin.carried import Carried
from planner.vllm_plugin.prompts import shortened

#: What vLLM's processors give beside the pixels that says how tokens lie.
BESIDE = ("image_sizes", "image_grid_thw")


def picture_entry(plan: Carried, config: Any) -> PictureEntry:
    """The plan's selection for a model.

    Raises:
        PlanMismatchError: the plan was made for another.
    """
    plan.check(config)
    return PictureEntry(config, plan.select, plan.plan.decision.seed)


def planned_factories(factories: Any, plan: Carried) -> Any:
    """How vLLM makes the processor of a model class, for that class under a plan.

    Args:
        factories: of the class as it is.
    """

    def info(context: Any) -> Any:
        made = factories.info(context)
        return _subclass(PlannedInfo, made, plan)(context)

    def processor(info: Any, dummy_inputs: Any, **options: Any) -> Any:
        made = factories.processor(info, dummy_inputs, **options)
        return _subclass(PlannedProcessor, made, plan)(info, dummy_inputs, **options)

    return replace(factories, info=info, processor=processor)


def _subclass(mixin: type, made: Any, plan: Carried) -> type:
    """vLLM chooses some classes by the configuration, so that what it made says which one it is."""
    return type(f"Planned{type(made).__name__}", (mixin, type(made)), {"plan": plan})


class PlannedInfo:
    """What a model takes: pictures alone, and one of them where the plan has a budget for a prompt."""

    plan: Carried

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """How many items of each kind a prompt may hold; None: any number."""
        known = super().get_supported_mm_limits()  # type: ignore[misc]
        return {**dict.fromkeys(known, 0), "image": 1 if self.plan.select.per == "prompt" else None}


class PlannedProcessor:
    """Processor of a family, under a plan."""

    plan: Carried

    def __init__(self, info: Any, dummy_inputs: Any, **options: Any) -> None:
        super().__init__(info, dummy_inputs, **options)  # type: ignore[call-arg]
        self.entry = picture_entry(self.plan, info.ctx.model_config.hf_config)

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        found = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {modality: [f"{one}-{self.plan.digest}" for one in hashes] for modality, hashes in found.items()}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        from vllm.multimodal.parse import ImageEmbeddingItems

        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        if "image" not in mm_items or isinstance(mm_items["image"], ImageEmbeddingItems):
            return updates  # type: ignore[no-any-return]  # embeddings that a client sends are used as they are
        items = out_mm_kwargs["image"]
        return [
            replace(update, replacement=partial(self._shortened, update, items))
            if update.modality == "image"
            else update
            for update in updates
        ]

    def _shortened(self, update: Any, items: Any, index: int) -> Any:
        details = update.resolve(index).content
        embeds = [True] * len(details.full) if details.is_embed is None else details.is_embed(details.full).tolist()
        item = items[index]
        beside = {name: item[name].data[None] for name in BESIDE if name in item}
        return replace(details, full=shortened(details.full, embeds, self.entry.pieces(sum(embeds), beside)))
