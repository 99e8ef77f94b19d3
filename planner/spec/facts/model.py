"""A whole model's facts, and the digest that tells two computations apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planner.spec.facts.decoder import Decoder
from planner.spec.facts.processor import ImageRule, VideoRule
from planner.spec.facts.vision import Projector, Tower


@dataclass(frozen=True, slots=True)
class Storage:
    """How a checkpoint stores its weights.

    Attributes:
        tied: the language-model head is the input embedding.
        layer_bits: bits per weight of the decoder layers' matrices, scales included; 0: as all others; None: the
            configuration does not say. Tower, projector, embedding and head are not quantised.
        quantization: its method's name.
        looked_up: elements of the table in which every layer's input of a token is looked up; 0 where layers have none.
    """

    tied: bool = False
    layer_bits: float | None = 0.0
    quantization: str = ""
    looked_up: int = 0


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """Everything about a model that a cost or a schedule depends on. Two are the same computation if their `digest` is.

    Attributes:
        family: model type of the whole model (``llava``, ``qwen2_vl``, ...).
        decoder, vision, projector: the parts; the latter two are None for a text-only model.
        image_token_id: id of the placeholder token in a prompt, None for a text-only model.
        images: how pixels become tokens, None for a text-only model.
        video: how a video does, None where a model takes none.
        name: as the user called it.
        storage: how the weights are stored, which the computation does not depend on.
    """

    family: str
    decoder: Decoder
    vision: Tower | None = None
    projector: Projector | None = None
    image_token_id: int | None = None
    images: ImageRule | None = None
    video: VideoRule | None = None
    name: str = ""
    storage: Storage = Storage()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | str | os.PathLike[str], processor: Mapping[str, Any] | None = None
    ) -> ModelSpec:
        """Read the facts from a Hugging Face configuration.

        Args:
            config: the configuration as a dict (``config.to_dict()``), a ``config.json``, a model directory, or the
                name of a shipped or bundled model (``reference/plain``).
            processor: what ``preprocessor_config.json`` says of sizes, which decides how many tokens an image becomes;
                where it is not given, it is read from the files beside ``config.json``.

        Raises:
            InputError: there is no such file or shipped model, it is not JSON, or a field is missing or absurd.
            UnsupportedModelError: the family or a layer type is unknown.
        """
        from planner.spec.read import read

        return read(config, processor)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.decoder.hidden_size

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the facts the computation depends on: the same for every spelling of a configuration."""
        facts = {
            "family": self.family,
            "decoder": dataclasses.asdict(self.decoder, dict_factory=_told),
            "vision": dataclasses.asdict(self.vision, dict_factory=_told) if self.vision else None,
            "projector": dataclasses.asdict(self.projector, dict_factory=_told) if self.projector else None,
            "image_token_id": self.image_token_id,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


#: Facts that came after the first plans, and what they are where there is nothing to tell: then a digest leaves them
#: out, so that those plans still fit their models.
_LATER = {
    "modelled": False,
    "state_lead": 0,
    "chunk": 0,
    "chunk_macs": 0,
    "float_state_elements": 0,
    "patches": 1,
    "pooled": 0,
    "latents": 0,
    "row_macs": 0,
    "side_macs": 0,
    "beside": None,
    "beside_side": 0,
    "answer_window": 0,
    "text_macs": 0,
    "text_pair_macs": 0,
    "extra": 0,
    "index_macs": 0,
    "visual_expert_macs": 0,
    "front_macs": 0,
    "back_macs": 0,
    "before_macs": 0,
}


_NOTHING = object()


#: Nothing that transformers computes depends on how many experts other engines run, or on what a policy could do with a
#: tower.
_UNTOLD = {"routed", "fed_macs", "match_macs", "unread_blocks"}


def _told(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in _UNTOLD and value != _LATER.get(name, _NOTHING)}
