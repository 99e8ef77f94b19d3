"""Configurations from the Hugging Face hub, for reports on models that are not on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from planner.errors import InputError
from planner.spec.processor import FILES

#: ``owner/name``, as the hub spells it.
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether it can only be an id: two names, and nothing at that path; ``reference/...`` are bundled models."""
    bundled = text.startswith("reference/")
    return bool(_ID.fullmatch(text)) and not bundled and not text.endswith(".json") and not Path(text).exists()


def hub_folder(model: str) -> Path:
    """A folder with the model's ``config.json`` and processor files, kept in the hub's own cache.

    Raises:
        InputError: there is no such model, no access to it, or no connection and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        found = Path(hf_hub_download(model, "config.json")).parent
    except Exception as error:
        raise InputError(
            f"the configuration of '{model}' could not be read from the hub ({type(error).__name__})",
            "Check the id, the connection and, for gated models, `hf auth login`; or give a config.json",
        ) from error
    for name in ("processor_config.json", *FILES):
        try:
            hf_hub_download(model, name)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue  # most models have only some of them
        except Exception as error:
            raise InputError(
                f"{name} of '{model}' could not be read from the hub ({type(error).__name__})",
                "Try again, or give a model directory",
            ) from error
    return found
