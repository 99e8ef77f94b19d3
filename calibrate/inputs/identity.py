"""The identity of the model that is measured, for the profile, and the few facts that measuring needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from planner.profile import ModelIdentity
from planner.runtime.model.adapters import Parts, find_parts
from planner.spec import ModelSpec


@dataclass(frozen=True)
class Model:
    """A loaded model with its identity and facts."""

    identity: ModelIdentity
    spec: ModelSpec
    parts: Parts

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.parts.layers)

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Ids of the placeholder tokens of images."""
        return self.parts.visual_ids


def identify(model: Any, name: str, revision: str | None = None) -> Model:
    """The identity of a transformers model.

    Raises:
        UnsupportedModelError: no vision-language model, or of a family whose facts are not known.
        InputError: an invalid configuration.
    """
    parts = find_parts(model)
    # Through JSON: dtypes, paths and enumerations become texts there.
    config = json.loads(parts.model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # a path of this machine
    spec = ModelSpec.from_config(config)
    identity = ModelIdentity(
        id=name,
        revision=revision,
        family=spec.family,
        config=config,
        config_digest=spec.digest,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        image_token_id=spec.image_token_id,
    )
    return Model(identity, spec, parts)
