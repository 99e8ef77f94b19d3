"""Measure a saved model: on the whole test split, and, for the ground truth, layer by layer.

Decisions: the **saved** half-precision weights are judged, computed in float32; every restriction is an explicit mask
(:mod:`.window`), so the figures owe nothing to any runtime; "what" and yes/no questions are never averaged away, since
yes/no can be answered half right without looking.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .build import IMAGE_SIZE, PROMPT, answer_ids
from .data import Question, Split, load_split, majority_answers
from .packing import Packer
from .samples import read_set
from .tower import load_pixels, tower_features
from .window import Window, l2_ranker, predict_answers, random_ranks, run_decoder

Scores = dict[str, float]
EVALUATION_BATCH = 16
PLAN = {"alone": 3, "closed": 3, "exit": 7}
AGREEMENT_SAMPLES = 100
KEPT = (5, 10, 20, 40, 80)


def figures(kinds: list[str], right: list[bool]) -> Scores:
    """Accuracy in all, per question type, and of "what" questions (shape and colour together)."""
    groups = {"all": kinds, "what": ["shape", "color"], "yes/no": ["yes/no"], "shape": ["shape"], "color": ["color"]}
    made = {}
    for name, members in groups.items():
        hits = [ok for kind, ok in zip(kinds, right, strict=True) if kind in members]
        if hits:
            made[name] = round(sum(hits) / len(hits), 4)
    return made


def conditions() -> Iterator[dict[str, Any]]:
    """The rows of the ground-truth table; keys as in :meth:`Window.uniform`, and ``rank`` where tokens are dropped."""
    yield {}
    yield from ({"closed": k} for k in range(1, 5))
    yield from ({"closed": k, "alone": k} for k in range(1, 5))
    yield from ({"exit": k} for k in range(9, 3, -1))
    yield PLAN
    for rank in ("random", "l2"):
        yield from ({**PLAN, "keep": keep, "rank": rank} for keep in KEPT)


class Judge:
    """A saved model, ready to be asked.

    Args:
        folder: of the saved model.
        device: where to compute.
        dtype: in what precision to compute.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.packer = Packer(self.processor.tokenizer)
        self.layers = self.model.config.text_config.num_hidden_layers

    def features(self, split: Split) -> dict[int, Tensor]:
        """Tower output of every image of a split, ``[144, 96]`` each."""
        ids = list(split.by_image())
        pixels = load_pixels(self.processor.image_processor, split.images, ids)
        return dict(zip(ids, tower_features(self.model, pixels, torch.float32), strict=True))

    @torch.no_grad()
    def answers(self, groups: list[list[Question]], features: dict[int, Tensor], **condition: Any) -> list[int]:
        """Predicted token behind each question, under one of the :func:`conditions`; a group shares its image."""
        device, given = self.model.device, []
        rank_by = condition.pop("rank", "random")
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(groups), EVALUATION_BATCH):
            part = groups[start : start + EVALUATION_BATCH]
            pack = self.packer.pack([[(q.prompt, q.answer) for q in group] for group in part]).to(device)
            images = torch.stack([features[group[0].image_id] for group in part]).to(device)
            window = Window.uniform(len(part), self.layers, **condition).to(device)
            rank = l2_ranker(pack) if rank_by == "l2" else random_ranks(pack.visual, generator)
            given += predict_answers(self.model, pack, run_decoder(self.model, pack, images, window, rank)).tolist()
        return given

    def score(self, groups: list[list[Question]], features: dict[int, Tensor], **condition: Any) -> Scores:
        """Accuracy under one of the :func:`conditions`."""
        asked = [question for group in groups for question in group]
        expected = [answer_ids(self.packer.tokenizer, q.answer)[0] for q in asked]
        given = self.answers(groups, features, **condition)
        return figures([q.type for q in asked], [a == b for a, b in zip(given, expected, strict=True)])

    def score_blank(self, questions: tuple[Question, ...]) -> Scores:
        """Accuracy with a white image in place of all; then an answer depends on the question's text alone."""
        strings = sorted({q.prompt for q in questions})
        white = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
        pixels = self.processor.image_processor([white], return_tensors="pt")["pixel_values"]
        features = {0: tower_features(self.model, pixels, torch.float32)[0]}
        # The answer packed behind a question is not seen by its last prompt token: any will do.
        given = self.answers([[Question(prompt, "no", 0) for prompt in strings]], features)
        said = dict(zip(strings, given, strict=True))
        expected = [answer_ids(self.packer.tokenizer, q.answer)[0] for q in questions]
        right = [said[q.prompt] == answer for q, answer in zip(questions, expected, strict=True)]
        return figures([q.type for q in questions], right)

    @torch.no_grad()
    def generated(self, split: Split, questions: list[Question]) -> list[int]:
        """First token that ``generate`` gives for separate, left-padded prompts through the processor."""
        images = [Image.open(split.images / f"{q.image_id}.png").convert("RGB") for q in questions]
        texts = [PROMPT.format(question=q.prompt) for q in questions]
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt").to(self.model.device)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=1)
        return [int(token) for token in output[:, -1]]


def share_equal(left: list[int], right: list[int]) -> float:
    """Share of equal entries."""
    return round(sum(a == b for a, b in zip(left, right, strict=True)) / len(left), 4)


def evaluate(folder: Path, device: torch.device, images: int | None = None) -> dict[str, Any]:
    """Measure the model in ``folder`` and write ``evaluation.json`` beside it; returns its content.

    Args:
        folder: of the saved model.
        device: where to compute.
        images: judge by the first so many images of each set only.
    """
    start = time.perf_counter()
    judge = Judge(folder, device)
    prior = majority_answers(load_split("train").questions)
    test, chosen = load_split("test").first(images), read_set("evaluation").first(images)
    groups, features = list(test.by_image().values()), judge.features(test)
    whole = {
        "intact": judge.score(groups, features),
        "plan, 20 random tokens kept": judge.score(groups, features, **PLAN, keep=20),
        "blank image": judge.score_blank(test.questions),
        "majority answer per question string": figures(
            [q.type for q in test.questions], [prior.get(q.prompt) == q.answer for q in test.questions]
        ),
    }
    singles, features = [[q] for q in chosen.questions], judge.features(chosen)
    table = [
        {"condition": row, "accuracy": judge.score(singles, features, **row)}
        for row in tqdm(list(conditions()), desc=f"{folder.name}: conditions", mininterval=5)
    ]
    # Bfloat16 without hardware support is some ten times slower than float32.
    few = singles[:AGREEMENT_SAMPLES]
    dense = judge.answers(few, features)
    half = Judge(folder, device, torch.bfloat16).answers(few, features)
    result = {
        "model": folder.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
        "test_split": {"images": len(groups), "questions": len(test.questions), "accuracy": whole},
        "evaluation_set": {
            "samples": len(singles),
            "what": sum(q.type != "yes/no" for q in chosen.questions),
            "prior": figures(
                [q.type for q in chosen.questions], [prior.get(q.prompt) == q.answer for q in chosen.questions]
            ),
            "table": table,
        },
        "agreement": {
            "samples": len(few),
            "bfloat16": share_equal(dense, half),
            "generate": share_equal(dense, judge.generated(chosen, [q for (q,) in few])),
        },
        "seconds": round(time.perf_counter() - start),
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
