"""The model card of a plan on the Hugging Face Hub."""

from __future__ import annotations

import json

from planner.hub import Reference
from planner.plan import Plan
from planner.report.plan_view import describe


def card(plan: Plan, where: Reference) -> str:
    """A ``README.md``: what the hub reads, how the plan is used, and all that `plan show` says of it, evidence
    included."""
    about = {
        "library_name": "vlm-planner",
        "base_model": plan.model.id,
        "tags": ["vlm-planner", "vision-language-model", "token-pruning", plan.model.family],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in about.items()]  # JSON is YAML
    return "\n".join(
        [
            "---",
            *lines,
            "---",
            "",
            f"# {plan.decision.policy} for {plan.model.id}",
            "",
            "A plan of VLM planner: which visual tokens the model computes in which layer, and what that keeps of its",
            "answers. It holds no weights.",
            "",
            "```python",
            "from planner import load_plan",
            "",
            f'plan = load_plan("{where}")',
            "with plan.apply(model):  # the model it was made for, loaded with transformers",
            "    model.generate(**inputs)",
            "```",
            "",
            describe(plan, "md"),
            "",
        ]
    )
