"""Tiny random checkpoints as `save_pretrained` writes them, with the real processor classes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tests import tiny
from tests.processors.families import FAMILIES, Family

LAYERS = 4
_FIRST = ("<pad>", "<bos>", "<eos>", "<unk>")


def write(name: str, folder: Path) -> None:
    """A checkpoint of a family: weights, configuration, tokenizer, processors, chat template."""
    family = FAMILIES[name]
    tokenizer = _tokenizer(family)
    _processor(family, tokenizer).save_pretrained(folder)
    _model(name, family, tokenizer).save_pretrained(folder)


def _tokenizer(family: Family) -> Any:
    """One token per printable character, and the family's special ones."""
    special = dict.fromkeys((*family.tokens.values(), *family.named.values(), *family.more))
    vocabulary = dict.fromkeys((*_FIRST, *string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"))
    backend = Tokenizer(models.WordLevel({text: place for place, text in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    # Not stripped, not normalised: templates write them right beside text.
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*_FIRST, *special)])
    if family.adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", _FIRST.index("<bos>"))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=family.named,
        padding_side="left",
    )


def _processor(family: Family, tokenizer: Any) -> Any:
    made = {"tokenizer": tokenizer}
    for role in ("image_processor", "video_processor"):
        if getattr(family, role) is not None:
            class_name, options = getattr(family, role)
            made[role] = getattr(transformers, class_name)(**options)
    class_name, options = family.processor
    template = family.template.jinja() if family.template is not None else None
    return getattr(transformers, class_name)(**made, **options, chat_template=template)


def _model(name: str, family: Family, tokenizer: Any) -> Any:
    class_name, make = tiny.FAMILIES[name]
    values = make(LAYERS)
    values["vision_config"] |= family.vision
    values["text_config"] |= {"vocab_size": len(tokenizer), "max_position_embeddings": 8192}
    if "sliding_window" in values["text_config"]:  # as in the released models it reaches the image from the question
        values["text_config"]["sliding_window"] = 1024
    for field in ("image_token_index", "video_token_index"):  # one spelling of each
        values.pop(field, None)
    values |= {field: tokenizer.convert_tokens_to_ids(token) for field, token in family.tokens.items()}
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        built = model_class._from_config(model_class.config_class(**values))
        tiny.randomise(built, seed=0)
    # A trained model does not answer with placeholders of images.
    built.generation_config.suppress_tokens = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    built.generation_config.pad_token_id = tokenizer.pad_token_id
    built.generation_config.eos_token_id = tokenizer.eos_token_id
    return built.eval()
