"""The identity of the model that is measured, for the profile, and the few facts that measuring needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from planner.profile import ModelIdentity
from planner.runtime.model.adapters import Parts, find_parts
from planner.runtime.model.weights import weights_of
from planner.spec import ModelSpec
from planner.spec.read import facts_of


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


def identify(model: Any, name: str, revision: str | None = None, full_digest: bool = False) -> Model:
    """The identity of a transformers model.

    Args:
        full_digest: with a digest over all bytes of its weights.

    Raises:
        UnsupportedModelError: no vision-language model, or of a family whose facts are not known, or without weights.
        InputError: an invalid configuration, or weights that are not finite.
    """
    parts = find_parts(model)
    config = _facts(parts.model.config)
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
        weights=weights_of(model, full_digest),
    )
    return Model(identity, spec, parts)


def spec_of(config: Any) -> ModelSpec:
    """The facts of a model from its transformers configuration, before there are weights.

    Raises:
        UnsupportedModelError: of a family whose facts are not known.
        InputError: an invalid configuration.
    """
    return ModelSpec.from_config(_facts(config))


def _facts(config: Any) -> dict[str, Any]:
    # Through JSON: dtypes, paths and enumerations become texts there.
    return facts_of(json.loads(config.to_json_string(use_diff=False)))
