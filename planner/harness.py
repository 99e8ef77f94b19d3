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
        pretrained: hub id or folder of the model.
        dtype: number format of the weights.
        allow_other_weights: as in `Plan.attach`.
        options: further ones of lmms-eval's ``huggingface`` model.

    Raises:
        PlanMismatchError: the plan is for another model, or for other weights.
        UnsupportedModelError: the model lacks a part the runtime needs.
    """

    def __init__(
        self, plan: str, pretrained: str, dtype: str = "bfloat16", allow_other_weights: bool = False, **options: Any
    ) -> None:
        from transformers import AutoModelForImageTextToText

        super().__init__(pretrained=pretrained, **options)
        if not self.model.can_generate() or dtype != "bfloat16":
            # lmms-eval 0.7 loads the model without its head where transformers has it as image-text-to-text.
            loaded = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, device_map=self.device_map)
            self._model, self._config = loaded.eval(), loaded.config
        self.handle = load_plan(plan).attach(self.model, allow_other_weights=allow_other_weights)
