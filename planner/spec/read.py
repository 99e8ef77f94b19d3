"""From a configuration, however it is given, to a `ModelSpec`."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from planner.errors import InputError, nearest
from planner.files import is_file, is_folder, parse_json, read_text
from planner.spec.config import Config, family, reader, role_of
from planner.spec.decoder import read_decoder, with_around
from planner.spec.facts import ImageRule, ModelSpec, Projector, Storage, Tower
from planner.spec.processor import image_rule, processor_beside, video_rule
from planner.spec.storage import read_storage


def read(config: Mapping[str, Any] | str | os.PathLike[str], processor: Mapping[str, Any] | None = None) -> ModelSpec:
    """See `ModelSpec.from_config`."""
    values, name, beside = _loaded(config)
    return _understood(lambda: _from_values(values, name, beside if processor is None else processor), name)


def read_alone(config: Mapping[str, Any] | str | os.PathLike[str]) -> ModelSpec:
    """The text decoder alone of any model, whatever stands in front of it.

    Raises:
        InputError: as `ModelSpec.from_config`, or there is no block that could be a text decoder.
        UnsupportedModelError: the decoder's model type or a layer type is unknown.
    """
    values, name, _ = _loaded(config)
    return _understood(lambda: _alone(values, name), name)


#: Where a whole model keeps its text decoder's fields, the most common first.
_TEXT_BLOCKS = ("text_config", "llm_config", "language_config", "thinker_config")


def _alone(values: Mapping[str, Any], name: str) -> ModelSpec:
    found = next((values[block] for block in _TEXT_BLOCKS if isinstance(values.get(block), Mapping)), None)
    if found is not None:
        return _alone(found, name)
    model_type = values.get("model_type")
    if role_of(str(model_type)) in ("vlm", "original"):
        spec = _from_values(values, name, {})
        return ModelSpec(family=spec.decoder.family, decoder=spec.decoder, name=spec.name, storage=spec.storage)
    if not isinstance(model_type, str):
        raise InputError("the text decoder has no field 'model_type'", "Give the model's complete config.json")
    decoder = read_decoder(values, model_type)
    return ModelSpec(model_type, decoder, name=name or model_type, storage=_storage(values, values, model_type))


def _loaded(
    config: Mapping[str, Any] | str | os.PathLike[str],
) -> tuple[Mapping[str, Any], str, dict[str, Any]]:
    """A configuration, what to call it, and the processor files beside it.

    Raises:
        InputError: there is no such file or shipped model, or it is no configuration.
    """
    if isinstance(config, Mapping):
        return config, "", {}
    text = os.fspath(config)
    if text in shipped():
        entry = shipped_model(text)
        return entry["config"], text, entry.get("processor", {})
    path = Path(text)
    if text.startswith("reference/") and not is_folder(path):  # a bundled model
        path = Path(str(resources.files("planner.profiles"))) / text
    if is_folder(path):
        path = path / "config.json"
    if not is_file(path):
        raise InputError(f"there is no model named '{text}' and no configuration at that path", _suggestion(text))
    values = parse_json(read_text(path), str(path), InputError, "Give a Hugging Face config.json")
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds {type(values).__name__}, not a configuration", "Give a Hugging Face config.json"
        )
    if "config" in values and "model_type" not in values:
        values = values["config"]
    if not isinstance(values, Mapping):
        raise InputError(f"{path.name} is not a block of fields", "Give a Hugging Face config.json")
    return values, path.parent.name if path.name == "config.json" else path.stem, processor_beside(path)


class _Recorded(Mapping[str, Any]):
    """A block that remembers what was asked of it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._held = values
        self.asked: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._held[name]
        if name not in self.asked:
            self.asked[name] = _Recorded(value) if isinstance(value, Mapping) else value
        return self.asked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def facts(self) -> dict[str, Any]:
        return {name: value.facts() if isinstance(value, _Recorded) else value for name, value in self.asked.items()}


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a configuration that a `ModelSpec` is read from; no path, no token, nothing else.

    Raises:
        InputError, UnsupportedModelError: as `ModelSpec.from_config`.
    """
    recorded = _Recorded(config)
    read(recorded)
    return recorded.facts()


@functools.lru_cache(maxsize=1)
def shipped() -> tuple[str, ...]:
    """Names of the models whose facts are shipped."""
    folder = resources.files("planner.profiles") / "models"
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


def shipped_model(name: str) -> dict[str, Any]:
    """A shipped model's file: ``name``, ``source``, ``config``, and the ``visual_tokens`` of an ordinary picture.

    Raises:
        InputError: there is no such model.
    """
    if name not in shipped():
        raise InputError(f"no model named '{name}' is shipped", _suggestion(name))
    entry: dict[str, Any] = json.loads((resources.files("planner.profiles") / "models" / f"{name}.json").read_text())
    return entry


def _suggestion(name: str) -> str:
    return (
        f"{nearest(name, shipped())}Shipped models: {', '.join(shipped())}; or give a config.json or a model directory"
    )


def _understood(read_it: Callable[[], ModelSpec], name: str) -> ModelSpec:
    """What a user gave, in which a field may be anything.

    Raises:
        InputError: a field is of a kind that no reader expects.
    """
    try:
        return read_it()
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        cause = f"a field of {name or 'the configuration'} is not what it should be ({error})"
        raise InputError(cause, "Give the model's own config.json") from error


def _from_values(values: Mapping[str, Any], name: str, processor: Mapping[str, Any]) -> ModelSpec:
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise InputError("the configuration has no field 'model_type'", "Give the model's complete config.json")
    if role_of(model_type) == "decoder":
        return ModelSpec(
            family=model_type,
            decoder=read_decoder(values, model_type, where="config"),
            name=name or model_type,
            storage=_storage(values, values, model_type),
        )
    if role_of(model_type) == "original":
        data = family(model_type, "original")
        extra = (data["text"],) if "text" in data else ()
        rewritten = reader(data, "rewrite", "planner.spec.originals")(values, *extra)
        return _from_values(rewritten, name or model_type, processor)
    data = family(model_type, "vlm")
    if "rewrite" in data:
        values = reader(data, "rewrite", "planner.spec.originals")(values)
    config = Config(values, model_type, data)
    text, vision = _block(values, "text_config", data["text"]), _block(values, "vision_config", data["vision"])
    decoder = read_decoder(text, _type_of(text, data["text"]))
    decoder = with_around(decoder, _words_embedded(config, data) * decoder.hidden_size)
    tower_type = _type_of(vision, data["vision"])
    tower_data = family(tower_type, "tower")
    vision_config = Config(vision, "vision_config", tower_data)
    tower: Tower = reader(tower_data, "reader", "planner.spec.towers")(vision_config, tower_type)
    parts: tuple[Projector, ImageRule] = reader(data, "projector", "planner.spec.projectors")(
        config, vision_config, tower, decoder.hidden_size
    )
    projector, images = parts
    deepstack = len(vision_config.numbers("deepstack_visual_indexes"))
    return ModelSpec(
        family=model_type,
        decoder=replace(decoder, deepstack=deepstack, modelled=decoder.modelled or bool(data.get("modelled"))),
        vision=tower,
        projector=projector,
        image_token_id=config.size("image_token_id", "image_token_index", least=0),
        images=image_rule(images, data, processor),
        video=video_rule(images, data, processor),
        name=name or model_type,
        storage=_storage(values, text, _type_of(text, data["text"])),
    )


def _words_embedded(config: Config, data: Mapping[str, Any]) -> int:
    """Width of what every token of a prompt is looked up in and projected from besides, whatever it is: Gemma 3n has
    words of pictures and of sounds."""
    blocks = data.get("word_embedders", {}).items()
    return sum(config.block(name).size("hidden_size", default=width) for name, width in blocks)


def _storage(values: Mapping[str, Any], text: Mapping[str, Any], text_type: str) -> Storage:
    """How the weights are stored; not asked of a configuration whose facts are recorded, as a plan does not depend on
    it."""
    if isinstance(values, _Recorded):
        return Storage()
    return read_storage(values, text, family(text_type, "decoder").get("defaults", {}))


def _block(values: Mapping[str, Any], name: str, model_type: str) -> Mapping[str, Any]:
    """A nested block. The Qwen family's early files keep the text decoder's fields at the top level."""
    block = values.get(name)
    if block is None and name == "text_config" and "hidden_size" in values:
        return {key: value for key, value in values.items() if key not in ("model_type", "vision_config")}
    if block is None:
        raise InputError(
            f"the configuration has no block '{name}'",
            "Give the whole model's config.json; plan report --decoder-only costs a text decoder alone",
        )
    if not isinstance(block, Mapping):
        raise InputError(
            f"the configuration's {name} is not a block of fields but {block!r}",
            "Give the model's complete config.json",
        )
    return block


#: Towers and decoders that carry the whole model's type, or none, in older files.
def _type_of(block: Mapping[str, Any], default: str) -> str:
    model_type = block.get("model_type")
    part = model_type is not None and role_of(str(model_type)) in ("decoder", "tower")
    same_family = model_type is not None and not part and default.startswith(str(model_type))
    return default if model_type in (None, "") or same_family else str(model_type)
