"""Load a vision-language model and its processor: hub id, local directory, or the bundled reference model."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import logging

from calibrate.inputs.bundled import PREFIX, model_folder, reference, references
from calibrate.inputs.encode import PIXEL_SETTINGS
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.plain_processor import PlainProcessor
from calibrate.ranks import local_rank
from planner.errors import InputError, UnsupportedModelError
from planner.spec import shipped


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its processor, and what to call it."""

    model: Any
    processor: Any
    id: str
    revision: str | None = None


def load(
    name: str | None = None, options: LoadOptions | None = None, check: Callable[[Any], None] | None = None
) -> Loaded:
    """A model and its processor.

    Args:
        name: hub id or directory, or a bundled model such as ``reference/plain``; None for ``reference/windowed``.
        options: how; None leaves all of `LoadOptions` at its defaults.
        check: gets the transformers configuration once it is read; what it raises ends the loading before the weights.

    Raises:
        UnsupportedModelError: not a vision-language model that transformers can load.
        InputError: the model cannot be found or read, or an option is invalid.
    """
    options = options or LoadOptions()
    where, hub = _device(options.device), options.hub
    source = _source(name)
    config = _attempt(source, AutoConfig.from_pretrained, **hub)
    _check_vision_language(source, config)
    if check is not None:
        check(config)
    on_cpu = where.type == "cpu" and options.device_map is None
    settings: dict[str, Any] = {**hub, "dtype": "float32" if on_cpu and options.dtype == "auto" else options.dtype}
    for setting in ("attn_implementation", "device_map"):
        if getattr(options, setting) is not None:
            settings[setting] = getattr(options, setting)
    with _quiet_unless_terminal():
        model, loading = _attempt(
            source, AutoModelForImageTextToText.from_pretrained, output_loading_info=True, **settings
        )
    _check_complete(source, loading)
    if options.device_map is None:
        model = model.to(where)
    processor = _processor(source, config, hub, dict(options.processor))
    return Loaded(model.eval(), processor, _identity(source), options.revision)


def _source(name: str | None) -> str:
    """The hub id or directory that a name stands for.

    Raises:
        InputError: a bundled model that is not there, or the name of shipped facts.
    """
    found = reference(name)
    if found is None and name in shipped() and not Path(str(name)).exists():
        raise InputError(
            f"'{name}' is shipped as facts without weights: nothing can be run",
            "Give a model directory, or its hub id: `plan ls models` has it under source",
        )
    return str(name) if found is None else str(model_folder(found))


def _identity(source: str) -> str:
    """The hub id; for a directory its name, and for the bundled models the name that finds them again."""
    path = Path(source).resolve()
    if not path.is_dir():
        return source
    bundled = next((one for one in references().values() if one.model.resolve() == path), None)
    return path.name if bundled is None else f"{PREFIX}{bundled.name}"


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        # One accelerator per process of a launch.
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, local_rank())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that a backend was compiled in
        cause = f"device {name!r} cannot be used ({_first_line(error)})"
        raise InputError(cause, "Use --device auto or cpu") from error
    return device


@contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """No progress bars of transformers where nobody watches them."""
    silenced = not sys.stderr.isatty() and logging.is_progress_bar_enabled()
    if silenced:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silenced:
            logging.enable_progress_bar()


def _check_vision_language(source: str, config: Any) -> None:
    remote = getattr(config, "auto_map", None) or {}
    if type(config) in AutoModelForImageTextToText._model_mapping or AutoModelForImageTextToText.__name__ in remote:
        return
    raise UnsupportedModelError(
        f"{source} is a '{config.model_type}' model, not a vision-language model that transformers can load",
        "Give a model of the image-text-to-text kind, such as a LLaVA, Qwen2-VL or InternVL checkpoint",
    )


def _check_complete(source: str, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers only warns, and leaves them random."""
    lacking = sorted(str(name) for name in loading.get("missing_keys", ()))
    if lacking:
        raise InputError(
            f"{source} lacks {len(lacking)} of the model's weights, {lacking[0]} for one: they would stay random",
            "Give a whole checkpoint, or the release of transformers that wrote it",
        )


def _processor(source: str, config: Any, hub: dict[str, Any], changed: dict[str, Any]) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(source, **hub, **changed)
    except ImportError as error:
        # Some processors insist on a video processor, which needs torchvision; images and text do without.
        processor = PlainProcessor(
            _attempt(source, AutoImageProcessor.from_pretrained, **hub, **changed),
            _attempt(source, AutoTokenizer.from_pretrained, **hub),
            config,
            missing=_first_line(error).split(". ")[0],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(source, error) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise UnsupportedModelError(f"{source} has no processor with a tokenizer", "Add the processor's files")
    _check_taken(getattr(processor, "image_processor", None), changed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _check_taken(image_processor: Any, changed: dict[str, Any]) -> None:
    """Refuse settings that the image processor does not have: it would ignore them."""
    known = {} if image_processor is None else json.loads(image_processor.to_json_string())
    for name, value in changed.items():
        if name not in PIXEL_SETTINGS or (name not in known and getattr(image_processor, name, None) != value):
            has = ", ".join(sorted(PIXEL_SETTINGS & set(known))) or "none"
            raise InputError(f"the image processor has no setting '{name}'", f"Its settings: {has}")


def _attempt(source: str, loader: Any, **settings: Any) -> Any:
    try:
        return loader(source, **settings)
    except ImportError as error:
        raise InputError(f"{source} needs a package: {_first_line(error)}", "Install it") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, *_DAMAGED) as error:
        raise _refusal(source, error) from error


#: What readers of checkpoints raise for damaged ones.
_DAMAGED = (SafetensorError, pickle.UnpicklingError, RecursionError)


def _refusal(source: str, error: BaseException) -> InputError:
    """One line of cause and a remedy for what transformers and the hub client raise."""
    names = {type(link).__name__ for link in _chain(error)}
    if isinstance(error, _DAMAGED) or "Weights only load failed" in str(error):
        remedy = "The checkpoint is damaged, or a pickle of other things than weights: get it again, as safetensors"
    elif Path(source).exists():
        remedy = "Check that the directory is a complete save_pretrained model with its processor"
    elif HF_HUB_OFFLINE or names & {"OfflineModeIsEnabled"}:
        remedy = "The hub is switched off (HF_HUB_OFFLINE): unset it, or give a local directory"
    elif names & {"GatedRepoError"}:
        remedy = "Ask for access on the model's page and log in with `hf auth login`"
    elif names & {"RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"}:
        remedy = "Check the id and --revision, or log in if the model is private"
    elif names & {"LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout"}:
        remedy = "It is not in the local cache and the hub cannot be reached: check the network or give a directory"
    else:
        remedy = "Check the id or path; --trust-remote-code may be needed for models with code of their own"
    return InputError(f"cannot load {source}: {_first_line(error)}", remedy)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
