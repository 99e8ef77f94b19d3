"""A plan in vLLM: ``VLM_PLAN=plan.json vllm serve MODEL``.

vLLM loads `register` through the entry point ``vllm.general_plugins`` in each of its processes. Without the variable
nothing happens. With it, the model classes of the families in `planner.vllm_plugin.carried` are exchanged for
subclasses that hand the decoder only the image tokens that the plan keeps.

    models         the model classes, made when vLLM looks for them
    axes           positions of what is left, in families that place tokens on several axes
    planned        selection of what was encoded
    processing     counts before encoding, and the identity of a picture under a plan
    prompts        which placeholders of a picture stay in a prompt
    carried        what of a plan vLLM can carry; refusals
    architectures  the families
"""

from __future__ import annotations

import logging
import os

#: Names the plan; without it the plugin does nothing.
VARIABLE = "VLM_PLAN"

_log = logging.getLogger("vllm.vlm_planner")  # below vLLM's own logger, so that its settings hold


def register() -> None:
    """Exchange vLLM's model classes, if a plan is asked for.

    Raises:
        InputError, PlanError: the plan cannot be read, or vLLM cannot carry it; vLLM does not start then.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    from vllm import ModelRegistry

    from planner.vllm_plugin.architectures import ARCHITECTURES
    from planner.vllm_plugin.carried import carried

    plan = carried(path)
    if plan is None:
        _log.warning("%s=%s is the dense plan: nothing is dropped", VARIABLE, path)
        return
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"planner.vllm_plugin.models:{architecture}")
    _log.info("plan %s: %s", plan.digest[:12], plan.policy)
    for difference in plan.differences:
        _log.warning("plan %s: %s", plan.digest[:12], difference)
