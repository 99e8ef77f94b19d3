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
        self.processor: Any = _Processor(self.processor)
        self.handle = load_plan(plan).attach(self.model, allow_other_weights=allow_other_weights)


class _Processor:
    """A processor that is not asked for media of which there are none: transformers 5 refuses the names that lmms-eval
    0.7 has for them."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._processor(*args, **{name: value for name, value in options.items() if value != []})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)
