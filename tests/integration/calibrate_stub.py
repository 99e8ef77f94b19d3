"""A processor and samples for a tiny LLaVA, so that whole calibrations run without any file from a hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from calibrate.inputs.samples import SampleSet, load_samples
from calibrate.measuring.run import calibrate
from tests import tiny
from tests.tiny.configs import FIRST_TEXT, IMAGE, LAST_TEXT, PAD, SIDE

LAYERS, VISUAL = 4, 16


class Tokenizer:
    """One token per character."""

    bos_token = None
    pad_token_id = PAD

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [FIRST_TEXT + ord(c) % (LAST_TEXT - FIRST_TEXT) for c in text]}

    def decode(self, ids: list[int]) -> str:
        codes = [token - FIRST_TEXT for token in ids]
        return "".join(chr(code if code >= ord(" ") else code + LAST_TEXT - FIRST_TEXT) for code in codes)

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(str(token) for token in row.tolist() if token != PAD) for row in ids]


class Processor:
    """As a LlavaProcessor: one placeholder becomes 16 visual tokens, batches are padded on the left."""

    chat_template = None
    image_token = "<image>"
    image_processor = None

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()

    def __call__(self, images, text, padding, padding_side, return_tensors):
        assert padding and padding_side == "left" and return_tensors == "pt"
        rows = []
        for one in text:
            before, after = one.split(self.image_token)
            ids = [self.tokenizer(part)["input_ids"] for part in (f"ab{before}", after)]
            rows.append([*ids[0], *[IMAGE] * VISUAL, *ids[1]])
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        pixels = [torch.tensor(list(image.resize((SIDE, SIDE)).tobytes())) for group in images for image in group]
        values = torch.stack(pixels).view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2) / 64 - 2
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": values}


def model(dtype: torch.dtype = torch.float32, fresh: bool = False):
    """The tiny LLaVA with its own head, in float32."""
    return tiny.model("llava", dtype=dtype, layers=LAYERS, fresh=fresh)


def samples(folder: Path, count: int = 12, answer: str | None = "x") -> SampleSet:
    """Noise images and questions of different lengths."""
    lines = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        noise = torch.randint(0, 255, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
        entry = {"image": f"{i}.png", "prompt": "what" + "?" * (i % 4)}
        lines.append(json.dumps(entry | ({"answer": answer} if answer else {})))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return load_samples(folder / "samples.jsonl")


PROBES = ("influence", "sinks", "sparsity", "value_norms", "masking", "flip")
SETTINGS = {
    "masking": {"samples": 5, "curves": ("masked_from", "uncached"), "answer_tokens": 2},
    "flip": {"samples": 4},
}
#: Probes that only run on request, on samples without answers: a random model answers none rightly.
REQUESTED = {
    "probes": ("flip", "lens", "instructions", "sink_masking", "encoder_sinks", "attribution", "context"),
    "settings": {
        "flip": {"samples": 3},
        "lens": {"samples": 3},
        "instructions": {"samples": 3},
        "sink_masking": {"samples": 4},
        "encoder_sinks": {"samples": 3, "norm_multiple": 1.1},
        "attribution": {"samples": 3, "masks": 200, "image_masks": 200, "mean_images": 4},
        "context": {"samples": 3, "lengths": (8, 16, 24), "rates": (0.0, 0.3, 0.6)},
    },
}
ORDINARY = {"probes": PROBES, "settings": SETTINGS}
BATCH = 2


def run(chosen, built=None, lines=None, **options):
    """Calibrate the stub's model on some samples; what is said goes into `lines`."""
    echo = (lines if lines is not None else []).append
    options = {**ORDINARY, "batch_size": BATCH, "echo": echo, **options}
    return calibrate(built or model(), Processor(), chosen, **options)
