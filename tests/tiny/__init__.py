"""Tiny random models of the real transformers classes, and inputs for them made by hand: no network, no processor.

    model("llava")                           a LlavaForConditionalGeneration in float64, random but sharply attending
    inputs("llava", batch=2, left_pad=3)     what its processor would give

Attention in a freshly initialised model is nearly flat, so that every score ties and a wrong selection looks right.
Weights are therefore drawn again with unit gain and a gain above one for queries and keys.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers

from tests.tiny.configs import FAMILIES, VOCAB
from tests.tiny.extra import EXTRA
from tests.tiny.gemma3n import GEMMA3N
from tests.tiny.prompts import TEXT_ONLY, inputs
from tests.tiny.recent import RECENT

EXTRA.update(RECENT)
EXTRA.update(GEMMA3N)

__all__ = ["FAMILIES", "TEXT_ONLY", "VISION", "config", "inputs", "model", "randomise", "transformers_has", "window_of"]

#: Families that take an image.
VISION = tuple(family for family in FAMILIES if family not in TEXT_ONLY)
#: Families without a fused kernel: transformers refuses sdpa where scores are capped or have relative positions.
EAGER_ONLY = ("paligemma2", "got_ocr2", "pp_chart2table")
#: Families whose encoder of sounds had no fused kernel up to transformers 5.2.
EAGER_SOUNDS = tuple(GEMMA3N)
#: Standard deviation of attention scores is about the square of this.
ATTENTION_GAIN = 1.6


def transformers_has(family: str) -> bool:
    """Whether the installed release knows the family."""
    return hasattr(transformers, made_of(family)[0])


def made_of(family: str) -> tuple[str, Any]:
    """Model class, and what makes a configuration of a number of layers."""
    return (EXTRA[family].class_name, EXTRA[family].make) if family in EXTRA else FAMILIES[family]


def config(family: str, layers: int = 4, window: int | None = None) -> Any:
    """The family's configuration, with every default the class fills in.

    Args:
        window: another sliding window or chunk, for towers that have one.
    """
    class_name, make = made_of(family)
    other = EXTRA[family].config if family in EXTRA else ""
    config_class = transformers.CONFIG_MAPPING[other] if other else getattr(transformers, class_name).config_class
    made = config_class(**make(layers))
    text = made.get_text_config()
    for name in ("sliding_window", "attention_chunk_size"):
        if window is not None and getattr(text, name, None):
            setattr(text, name, window)
    return made


def window_of(made: Any) -> int | None:
    """The sliding window of a configuration's text tower."""
    return getattr(made.get_text_config(), "sliding_window", None)


def model(
    family: str,
    dtype: torch.dtype = torch.float64,
    attn: str = "sdpa",
    layers: int = 4,
    seed: int = 0,
    window: int | None = None,
    fresh: bool = False,
) -> Any:
    """A model in evaluation mode. The same arguments give the same object again, unless `fresh`.

    Args:
        attn: attention implementation; `EAGER_ONLY` families are eager whatever is asked for.
    """
    attn = "eager" if family in EAGER_ONLY else attn
    return (_build.__wrapped__ if fresh else _build)(family, dtype, attn, layers, seed, window)


@functools.lru_cache(maxsize=64)
def _build(family: str, dtype: torch.dtype, attn: str, layers: int, seed: int, window: int | None) -> Any:
    class_name, _ = made_of(family)
    model_class = getattr(transformers, class_name)
    # The same weights inside `float64_throughout` as outside, and whatever was drawn before.
    with torch._C.DisableTorchFunction(), torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        kernels = {"": attn, "audio_config": "eager"} if family in EAGER_SOUNDS else attn
        built = model_class._from_config(config(family, layers, window), attn_implementation=kernels)
        randomise(built, seed)
    if dtype == torch.float64 and hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("eager")  # the grouped kernel has no float64
    built.generation_config.pad_token_id = 0
    # No answer ends before its length. Not None, which older releases cannot look for in assisted decoding.
    built.generation_config.eos_token_id = VOCAB
    # Not .to(dtype): that would drop the imaginary part of complex rotary tables.
    return built._apply(lambda t: t.to(dtype if t.is_floating_point() else t.dtype)).eval()


@torch.no_grad()
def randomise(built: torch.nn.Module, seed: int) -> None:
    """Draw every weight again, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in built.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() < 2:
            # Norm weights, biases and gates: near their own values, so that none is the identity.
            parameter.add_(0.1 * noise.to(parameter.dtype))
            continue
        if "embed" in name and parameter.dim() == 2:
            parameter.copy_(noise)
            continue
        gain = ATTENTION_GAIN if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
        inputs_per_output = parameter.numel() // parameter.shape[0] if parameter.dim() != 3 else parameter.shape[-1]
        parameter.copy_(noise * gain / inputs_per_output**0.5)
