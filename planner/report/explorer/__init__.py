"""The interactive page of the cost model: its facts as JSON, beside the scripts that compute and draw.

The page is one file. It asks nothing of a server, and its figures are those of `planner.report.costs.report`:
``layers.js`` and ``costs.js`` hold the formulas, ``policies.js`` the policies that have sliders, ``state.js`` what is
chosen, ``pictures.js`` draws, ``page.js`` ties them to controls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from planner.cost.conventions import CONVENTIONS
from planner.cost.engine import ENGINES, absorbed, engine
from planner.cost.hardware import Hardware
from planner.cost.memory import device_weights, layer_bits
from planner.cost.parallel import Parallel
from planner.cost.vision import vision_flops
from planner.policies.base import relative_layers
from planner.policies.pyramiddrop import PUBLISHED_LAYERS
from planner.report.targets import Target, asked_workload
from planner.report.templates import render_page, text_of
from planner.schedule import Schedule
from planner.spec.facts import LayerSpec, ModelSpec, Projector
from planner.spec.images import encode_all
from planner.workload import Workload

#: Width and height in pixels that the page offers beside what a user names.
SIZES = (
    (640, 480), (336, 336), (448, 448), (800, 600), (1024, 1024), (1280, 720), (1920, 1080), (1080, 1920), (1240, 1754),
    (3840, 2160),
)  # fmt: skip
#: Bits per weight that the page offers.
WEIGHT_BITS = (16, 8, 4)
#: What an image adds to a prompt.
_ADDED = ("visual_tokens", "system_tokens", "text_tokens", "between_tokens", "mark_tokens")
_SCRIPTS = tuple(f"explorer/{name}.js" for name in ("layers", "costs", "policies", "state", "pictures", "page"))
_PICTURES = (
    ("tokens", "Visual tokens that each decoder layer computes"),
    ("layers", "FLOPs of the prefill in each decoder layer, whole batch"),
    ("components", "FLOPs of the prefill by component, whole batch"),
    ("first", "Estimated time to the first token"),
    ("answer", "Estimated time of the whole answer"),
    ("memory", "Memory of the device, at the end of the answer"),
)


def explorer(
    targets: Mapping[str, Target], hardware: Mapping[str, Hardware], sizes: Sequence[tuple[int, int]] = ()
) -> str:
    """The page as HTML text.

    Args:
        targets: models to choose from, by how a command line spells them; the page begins with the first one.
        hardware: rows by name, the first one first too; `planner.cost.hardware.hardware` reads one.
        sizes: of pictures in pixels, offered before `SIZES`.

    Raises:
        InputError: a model's processor refuses one of these sizes.
        UnsupportedModelError: a checkpoint does not say how many bits its weights take.
    """
    from planner import __version__

    offered = tuple(dict.fromkeys((*sizes, *SIZES)))
    facts = {
        "models": [_model(spelled, target, offered) for spelled, target in targets.items()],
        "hardware": [{"id": name, **row.model_dump(mode="json")} for name, row in hardware.items()],
        "engines": [engine(name).model_dump(exclude={"sources"}) for name in ENGINES],
        "conventions": [
            {"name": rule.name, "formula": rule.formula} for rule in CONVENTIONS.values() if rule.real
        ],
    }  # fmt: skip
    return render_page(
        "explorer/page.html.jinja",
        # A name cannot end the element that holds it.
        facts=json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c"),
        scripts=[text_of(name) for name in _SCRIPTS],
        pictures=_PICTURES,
        version=__version__,
    )


def _model(spelled: str, target: Target, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Facts of a model, under the names that `planner.spec.facts` gives them."""
    spec, base = target.spec, _words(target)
    kinds = [layer for layer, _ in spec.decoder.kinds]
    served = engine("vllm").executed(spec).decoder.layers
    bits = {bits: base.model_copy(update={"weight_bits": bits}) for bits in WEIGHT_BITS}
    blocks = spec.vision.layers if spec.vision is not None else ()
    return {
        "name": target.name,
        "spelled": spelled,
        "modelled": spec.decoder.modelled,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.decoder.vocab_size,
        "head_macs": spec.decoder.head_macs,
        "cross": spec.decoder.cross,
        "kind_of": [kinds.index(layer) for layer in spec.decoder.layers],
        "kinds": [_kind(layer, served[spec.decoder.layers.index(layer)]) for layer in kinds],
        "state_bits": 32 * sum(layer.attention.float_state_elements for layer in spec.decoder.layers),
        "weights_bytes": {name: device_weights(spec, one, Parallel()) for name, one in bits.items()},
        "layer_bits": {name: layer_bits(spec, one) for name, one in bits.items()},
        "tower_weights": sum(block.repeat * block.macs for block in blocks),
        "tower_layers": sum(block.repeat for block in blocks),
        "projector_weights": spec.projector.macs + spec.projector.patch_macs if spec.projector is not None else 0,
        "projector_text": _reading(spec.projector),
        "pyramid_layers": relative_layers(PUBLISHED_LAYERS, spec.layers),
        "prompt": {name: getattr(base, name) for name in ("system_tokens", "text_tokens", "output_tokens")},
        "pictures": [_picture(target, base, size) for size in sizes] if spec.images is not None else [],
        "plans": [
            {"name": policy, "schedule": schedule.model_dump(mode="json")}
            for policy, schedule in target.plans
            if _computed(schedule)
        ],
    }


def _reading(projector: Projector | None) -> dict[str, int]:
    """What the projector takes of the prompt's text, on every tile."""
    names = ("latents", "text_macs", "text_pair_macs")
    return {name: getattr(projector, name) if projector is not None else 0 for name in names}


def _words(target: Target) -> Workload:
    """The text of a target's prompt."""
    names = ("system_tokens", "text_tokens", "output_tokens")
    given = {name: target.prompt[name] for name in names if name in target.prompt}
    return Workload.of(visual_tokens=0, **given)


def _computed(schedule: Schedule) -> bool:
    """Whether the page's formulas know all of a schedule: no budget for each picture, no smaller pictures."""
    entry = schedule.entry
    return entry is None or (entry.per == "prompt" and entry.merge != "pixels")


def _kind(layer: LayerSpec, served: LayerSpec) -> dict[str, Any]:
    """A layer as transformers runs it, as a serving engine does, and as that one decodes."""
    return {"plain": _layer(layer), "served": _layer(served), "decoded": _layer(absorbed(served))}


def _layer(layer: LayerSpec) -> dict[str, Any]:
    attention, ffn = layer.attention, layer.ffn
    return {
        "attention": {
            **dataclasses.asdict(attention),
            "projection_macs": attention.projection_macs,
            "pair_macs": attention.pair_macs,
        },
        "ffn": {**dataclasses.asdict(ffn), "macs": ffn.macs, "visual_macs": ffn.visual_macs},
    }


def _picture(target: Target, base: Workload, size: tuple[int, int]) -> dict[str, Any]:
    """What pictures of a size add to a prompt; several of them too, where they are not cut as one alone is."""
    rule = target.spec.images
    several = {"several": _shown(target, base, size, 2)} if rule is not None and rule.alone else {}
    return {"size": f"{size[0]}x{size[1]}", **_shown(target, base, size, 1), **several}


def _shown(target: Target, base: Workload, size: tuple[int, int], least: int) -> dict[str, Any]:
    """What the first of `least` pictures or more adds to a prompt, what each further one does, and what seeing them
    takes.

    A tower's FLOPs grow with the pictures; where one sequence holds all of them, a part grows with their square.
    """
    spec, few, many = target.spec, (size,) * least, (size,) * (least + 1)
    words = {name: getattr(base, name) for name in ("system_tokens", "text_tokens")}
    fewer, more = (asked_workload(target, images, words) for images in (few, many))
    tower, projector, ranking = (flops // least for flops in vision_flops(spec, few, fewer.visual_tokens, 1, True))
    shared = any(block.span == "batch" for block in spec.vision.blocks) if spec.vision is not None else False
    both = vision_flops(spec, many, more.visual_tokens, 1, False)[0]
    paired = (both - 2 * tower) // 2 if shared else 0
    executed: ModelSpec = engine("vllm").executed(spec)
    each = {name: getattr(more, name) - getattr(fewer, name) for name in _ADDED}
    return {
        "tiles": len(encode_all(spec, few)[0].tiles),
        "one": {name: getattr(fewer, name) - getattr(base, name) - (least - 1) * each[name] for name in _ADDED},
        "more": each,
        "fixed_flops": tower - paired,
        "paired_flops": paired,
        "served_flops": vision_flops(executed, few, fewer.visual_tokens, 1, False)[0] // least,
        "projector_flops": projector,
        "ranking_flops": ranking,
    }
