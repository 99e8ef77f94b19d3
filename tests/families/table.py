"""The table of families, from the lists that the tests run over."""

from __future__ import annotations

import transformers
from tabulate import tabulate
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from planner.spec.config import families, family, role_of
from tests import tiny
from tests.integration.test_families_counted import UNCOMPARED
from tests.integration.test_families_equality import ATTACHED, REFUSED
from tests.integration.test_runtime_equality import FAMILIES as CORE
from tests.integration.test_runtime_equality import REFUSED as CORE_REFUSED
from tests.tiny.extra import EXTRA

#: Families whose tokens for pictures of nine sizes are compared with their processor's.
TOKENS = (
    "deepseek_ocr2", "fuyu", "gemma4", "glm4v", "granite4_vision", "hunyuan_vl", "idefics2", "idefics3", "internvl",
    "llava_next", "llava_onevision", "minicpmv4_6", "mistral3", "mllama", "molmo2", "ovis2", "paddleocr_vl",
    "qwen2_vl", "smolvlm", "step3p7", "video_llama_3",
)  # fmt: skip
#: Why those without a cost have none.
REASONS = {
    "an encoder reads the picture, and a decoder asks it: no visual token is in a decoder's sequence": (
        "blip", "evolla", "florence2", "idefics", "pix2struct", "pp_formulanet", "t5gemma2", "udop",
        "vision-encoder-decoder",
    ),
    "it does not answer token by token: it makes a robot's movements, or denoises blocks of an answer": (
        "diffusion_gemma", "pi0",
    ),
    "its vision tower is timm's, whose sizes no configuration states": ("fast_vlm", "perception_lm"),
    "its layers are Mamba-2 mixers, attention or experts alone, which a schedule's layers do not know": (
        "nemotron_h_omni",
    ),
    "several streams of hidden states run through its decoder": ("glm5_next", "qwen4_exp"),
    "its attention has short convolutions, some with weights made for every token, and relative positions": (
        "inkling2", "inkling_mm_model",
    ),
    "its vision tower routes patches to experts": ("dots3_note",),
    "pictures become words through convolutions over time as well, which no tower here has": ("emu3",),
    "its visual tokens stand ahead of the prompt and have no place in it": ("git",),
}  # fmt: skip
#: In the order of the columns.
COLUMNS = ("family", "cost", "counted forward", "weights of the class", "tokens of its processor", "a plan at run time")

HEAD = """# Families

Every type that transformers {version} loads as an image-text-to-text model. Made by
`python -m tests.families --out reports/families.md`; a test keeps it current.

- **cost**: `exact` equals a counter on a forward of the model, as integers; `modelled` leaves a part out or guesses it,
  and reports say so; `refused` is not guessed. Text decoders alone can be reported on whatever stands in front of them.
- **counted forward**: a tiny model was counted, prefill and decode step.
- **weights of the class**: its matrices equal the facts, within a thousandth: with its own defaults, or in a tiny model
  where it has none.
- **tokens of its processor**: tiles and visual tokens equal the processor's for nine sizes.
- **a plan at run time**: `equal` is the slow reference to 1e-10, and counted FLOPs are the predicted ones; `refused`
  names the missing part; `not checked` makes no claim.

{summary}

"""
TAIL = """
Without a cost:

"""


def render() -> str:
    """The page, as Markdown."""
    rows = [_row(name) for name in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)]
    costed = [row for row in rows if row[1] != "refused"]
    modelled = sum(row[1] == "modelled" for row in rows)
    said = f"{modelled} of them modelled" if modelled else "all of them exact"
    equal = sum(row[5] == "equal" for row in rows)
    summary = f"{len(costed)} of {len(rows)} have a cost, {said}; {equal} are equal at run time."
    head = HEAD.format(version=transformers.__version__, summary=summary)
    refused = {row[0] for row in rows if row[1] == "refused"}
    reasons = [
        f"- {', '.join(name for name in names if name in refused)}: {reason}."
        for reason, names in REASONS.items()
        if refused & set(names)
    ]
    return head + tabulate(rows, headers=COLUMNS, tablefmt="github") + "\n" + TAIL + "\n".join(reasons) + "\n"


def _row(name: str) -> tuple[str, ...]:
    role = role_of(name)
    if role not in ("vlm", "decoder"):
        return name, "refused", "", "", "", "refused"
    data = family(name, role)
    cost = "modelled" if data.get("modelled") else "exact"
    # A text decoder in the list is checked with the decoders.
    counted = "yes" if _is_tiny(name) or role == "decoder" else "no"
    weights = "no" if name in UNCOMPARED or name not in families("vlm") else "yes"
    return name, cost, counted, weights, "yes" if name in TOKENS else "", _runtime(name)


def _is_tiny(name: str) -> bool:
    return name in tiny.FAMILIES or name in EXTRA


def _runtime(name: str) -> str:
    if name in CORE or name in ATTACHED:
        return "equal"
    if name in (*CORE_REFUSED, *REFUSED):
        return "refused"
    return "not checked" if role_of(name) == "vlm" else ""
