"""A package outside the tree that adds a policy, a probe, a model family and a hardware row, written into a folder.

`planner_toy` below is the whole of what CONTRIBUTING.md asks of such a package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

POLICY = '''
"""After one layer, a random share of the visual tokens stays."""
from planner.policies import Policy
from planner.policies.base import share_kept
from planner.schedule import Fraction, Schedule, Select, Stage


class Toy(Policy):
    name = "toy"
    summary = "after the first layer keep a random share"
    keep: float = 0.5

    def schedule(self, spec, workload=None, profile=None):
        select = Select(rank_by="random", keep=Fraction(fraction=self.keep))
        return Schedule(stages=(Stage(first=0, last=1, selects=(select,)), Stage(first=1, last=spec.layers)))

    @classmethod
    def scaled(cls, dropped):
        return (cls(keep=share_kept(dropped)),)

    @classmethod
    def candidates(cls, profile, spec):
        attention = profile.probes["toy_attention"].values["image"] if "toy_attention" in profile.probes else []
        return [cls(keep=0.97)] if attention else []
'''

PROBE = '''
"""The last token's attention on the image, by layer."""
from calibrate.probes.base import OnePassProbe


class ToyAttention(OnePassProbe):
    name = "toy_attention"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    @property
    def settings(self):
        return {"scale": self.scale}

    def measure(self, capture):
        return {"image": self.scale * (capture.weights.mean(dim=1) * capture.visual).sum(dim=1)}

    def summary(self):
        image = self.table.column("image").mean(axis=0)
        return {"image": image.tolist(), "highest": float(image.max())}
'''

READERS = '''
"""The toy family's projector: LLaVA's, and one more square matrix."""
from dataclasses import replace

from planner.spec.projectors import llava


def projector(model, vision, tower, hidden):
    found, images = llava(model, vision, tower, hidden)
    return replace(found, macs=found.macs + model.traits["matrices"] * hidden * hidden), images
'''

FAMILY = {
    "role": "vlm",
    "text": "llama",
    "vision": "clip_vision_model",
    "projector": "planner_toy.readers:projector",
    "traits": {"matrices": 1},
    "defaults": {"image_token_index": 3, "vision_feature_select_strategy": "default"},
}

HARDWARE = {
    "name": "Toy NPU",
    "peak_tflops": 2,
    "bandwidth_gbs": 100,
    "memory_gb": 8,
    "dtype": "bfloat16",
    "source": "made up for a test",
}

ENTRY_POINTS = """
[vlm_planner.policies]
toy = planner_toy.policy:Toy

[vlm_planner.probes]
toy_attention = planner_toy.probe:ToyAttention

[vlm_planner.families]
toy_vlm = planner_toy

[vlm_planner.hardware]
toy-npu = planner_toy
"""

#: A model of the toy family: LLaVA's code, under another model type.
MODEL = """
from transformers import LlavaConfig, LlavaForConditionalGeneration


class ToyConfig(LlavaConfig):
    model_type = "toy_vlm"


class ToyModel(LlavaForConditionalGeneration):
    config_class = ToyConfig
"""


def package(site: Path) -> None:
    """Install the toy package into a folder, as pip would."""
    files = {"__init__.py": "", "policy.py": POLICY, "probe.py": PROBE, "readers.py": READERS}
    data = {"toy_vlm.json": FAMILY, "toy-npu.json": HARDWARE}
    (site / "planner_toy").mkdir(parents=True)
    for name, text in {**files, **{name: json.dumps(body) for name, body in data.items()}}.items():
        (site / "planner_toy" / name).write_text(text.lstrip())
    metadata(site, "planner-toy", ENTRY_POINTS)


def metadata(site: Path, name: str, entry_points: str) -> None:
    """What tells Python that a package is there, and what it adds."""
    folder = site / f"{name.replace('-', '_')}-0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(entry_points)


def model(folder: Path, bundled: Path) -> None:
    """A model of the toy family, with the weights of a bundled LLaVA."""
    shutil.copytree(bundled, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "toy_vlm",
        "architectures": ["ToyModel"],
        "auto_map": {
            "AutoConfig": "modeling_toy.ToyConfig",
            "AutoModelForImageTextToText": "modeling_toy.ToyModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_toy.py").write_text(MODEL.lstrip())
