"""The untrained model and its processor, in exactly the layout that Hugging Face LLaVA models are saved in.

Decisions: images of 64 pixels are resized to 60, so that patches of 5 give 12 x 12 = 144 visual tokens; the byte-level
BPE is trained on the prompts until every word is one token, so that an answer is one token; the chat template renders
``USER: <image>\\n{question} ASSISTANT:``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .data import Split

IMAGE_SIZE, PATCH_SIZE = 60, 5
VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<image>")
VOCABULARY = 512
PROMPT = "USER: <image>\n{question} ASSISTANT:"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}{{ ' ' }}{%- endif -%}"
    "{{ message['role'] | upper + ': ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)


def build_tokenizer(split: Split) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the split's prompts and answers; puts ``<s>`` in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = sorted({f"{PROMPT.format(question=q.prompt)} {q.answer}".replace("<image>", "") for q in split.questions})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    long_answers = [a for a in {q.answer for q in split.questions} if len(answer_ids(fast, a)) != 1]
    if long_answers:
        raise ValueError(f"answers of more than one token: {sorted(long_answers)}; raise VOCABULARY")
    return fast


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer as it follows ``ASSISTANT:``."""
    ids: list[int] = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return ids


def build_processor(split: Split) -> LlavaProcessor:
    """Image processor, tokenizer and chat template as one LlavaProcessor."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(split),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        image_token="<image>",
        # CLIP puts a class token before the patches; "default" drops it again.
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any) -> LlavaForConditionalGeneration:
    """A randomly initialised LlavaForConditionalGeneration of 2.1 M parameters."""
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id, generation.max_new_tokens = tokenizer.pad_token_id, 4
    return model


def save_model(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Save the model so that transformers 4 and 5 both load it."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    # Later releases drop a level from the names of the vision tower's weights and read both; earlier ones need it, and
    # would leave the tower as it was initialised.
    short, long = "vision_tower.", "vision_tower.vision_model."
    weights = {
        long + name.removeprefix(long).removeprefix(short) if name.startswith(short) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def save_processor(processor: LlavaProcessor, folder: Path) -> None:
    """Save the processor so that transformers 4 and 5 both load it."""
    processor.save_pretrained(folder)
    # Release 5 nests the image processor in processor_config.json, release 4 looks for a file of its own.
    processor.image_processor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Release 5 writes the name of its backend class, which release 4 does not know; both know this one.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Both take named tokens of the model's own as a mapping; release 4 fails on the list that release 5 writes.
    config["extra_special_tokens"] = {"image_token": processor.image_token}
    config.pop("model_specific_special_tokens", None)
    # Release 4 would also give token types, which the model does not take.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")
