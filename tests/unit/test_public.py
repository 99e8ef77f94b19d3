"""What `planner` itself offers: exactly the names it shows, and torch only for what runs a model."""

from __future__ import annotations

import subprocess
import sys

import pytest

import planner
from planner.cost.flops import cost
from planner.policies.base import REGISTRY
from planner.spec import ModelSpec
from planner.workload import Workload

#: What users import, besides the policies.
NAMES = {
    "Composition", "ImageCache", "ImageStream", "ModelSpec", "Plan", "PlannerError", "Policy", "Profile", "Schedule",
    "Workload", "__version__", "attach", "cost", "load_plan", "parse",
}  # fmt: skip


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dir_shows_the_public_names_and_every_policy_of_its_own():
    own = {policy.__name__ for policy in REGISTRY.values() if policy.__module__.startswith("planner.")}
    assert dir(planner) == sorted(NAMES | own) == sorted(planner.__all__)
    for name in dir(planner):
        assert getattr(planner, name) is not None
    assert planner.VisiPruner is REGISTRY["visipruner"]


def test_looking_around_and_costing_import_no_torch():
    run(
        "import sys, planner\n"
        "assert not {'numpy', 'pydantic'} & set(sys.modules), 'import planner costs nothing'\n"
        "dir(planner), planner.__version__, planner.VisiPruner, planner.load_plan, planner.cost, planner.parse\n"
        "spec = planner.ModelSpec.from_config('llava-1.5-7b')\n"
        "planner.cost(spec, planner.Workload(visual_tokens=9), planner.FastV().schedule(spec))\n"
        "assert not {'torch', 'transformers', 'calibrate'} & set(sys.modules)\n"
        "planner.attach, planner.ImageCache, planner.ImageStream\n"
        "assert 'torch' in sys.modules\n"
    )


@pytest.mark.parametrize(
    "before", ["", "import planner.cost\n", "from planner.cost import sweep\n", "from planner import cost\n"]
)
def test_cost_is_one_thing_however_it_was_imported(before):
    script = (
        f"{before}import planner\nspec = planner.ModelSpec.from_config('llava-1.5-7b')\n"
        "import planner.cost.flops\n"
        "print(planner.cost(spec, planner.Workload(visual_tokens=9), planner.Dense().schedule(spec)).prefill_flops)\n"
        "print(planner.cost.sweep.__name__)"
    )
    spec = ModelSpec.from_config("llava-1.5-7b")
    expected = cost(spec, Workload(visual_tokens=9), planner.Dense().schedule(spec)).prefill_flops
    assert run(script).split() == [str(expected), "sweep"]


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'Handle'"):
        planner.Handle  # noqa: B018
