"""A plan in lmms-eval: ``lmms-eval --model vlm_plan --model_args pretrained=MODEL,plan=plan.json --tasks ...``

It is lmms-eval's own Hugging Face chat model, with the plan attached once the weights are loaded. lmms-eval finds it by
the entry point ``lmms_eval.models``.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.models.chat.huggingface import Huggingface
from lmms_eval.models.registry_v2 import ModelManifest

from planner.plan import load_plan

manifest = ModelManifest("vlm_plan", chat_class_path="planner.harness.PlannedHuggingface")


class PlannedHuggingface(Huggingface):  # type: ignore[misc]
    """A model of transformers under a plan.

    Args:
        plan: file of the plan.
        allow_other_weights: as in `Plan.attach`.
        options: of lmms-eval's ``huggingface`` model.

    Raises:
        PlanMismatchError: the plan is for another model, or for other weights.
        UnsupportedModelError: the model lacks a part the runtime needs.
    """

    def __init__(self, plan: str, allow_other_weights: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.handle = load_plan(plan).attach(self.model, allow_other_weights=allow_other_weights)
