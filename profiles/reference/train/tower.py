"""Train the vision tower alone, on what each patch shows; the decoder's training finds it frozen.

Decision: **dense** labels (shape and colour of the object under a patch, or background). An objective on the pooled
image would put the whole answer into every patch: then any single visual token suffices, and no rule that selects
tokens can be told from another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration

from .build import IMAGE_SIZE, PATCH_SIZE
from .data import COLORS, SHAPES, Split, attributes
from .packing import IGNORED

Log = Callable[..., None]
OBJECT_DISTANCE = 0.6  # in normalised pixel values; the grounds are plain and light, every shape is far from them
OBJECT_SHARE = 0.2  # a patch shows the object when this share of its pixels does


def load_pixels(image_processor: CLIPImageProcessor, images: Path, ids: list[int]) -> Tensor:
    """The images through the model's own image processor: float32 ``[n, 3, 60, 60]``."""
    batches = []
    for start in range(0, len(ids), 256):
        opened = [Image.open(images / f"{image_id}.png").convert("RGB") for image_id in ids[start : start + 256]]
        batches.append(image_processor(opened, return_tensors="pt")["pixel_values"])
    return torch.cat(batches)


def patch_labels(pixels: Tensor, split: Split, ids: list[int]) -> Tensor:
    """Shape and colour class of every patch: int64 ``[n, 144, 2]``, 0 for background, -100 where unknown.

    What lies under a patch comes from the pixels (distance from the border's median), what it is called from the
    image's questions and answers.
    """
    border = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
    ground = border.median(dim=2).values[:, :, None, None]
    differs = ((pixels - ground).abs().amax(dim=1) > OBJECT_DISTANCE).float()
    on_object = F.avg_pool2d(differs[:, None], PATCH_SIZE).flatten(1) >= OBJECT_SHARE
    questions = split.by_image()
    names = torch.full((len(ids), 2), IGNORED)
    for row, image_id in enumerate(ids):
        shape, color = attributes(questions[image_id])
        if shape is not None:
            names[row, 0] = 1 + SHAPES.index(shape)
        if color is not None:
            names[row, 1] = 1 + COLORS.index(color)
    return torch.where(on_object[..., None], names[:, None], 0)


def train_tower(
    model: LlavaForConditionalGeneration, pixels: Tensor, labels: Tensor, steps: int, log: Log, batch: int = 64
) -> None:
    """Train ``model``'s vision tower in place with two linear read-outs, then freeze it.

    Args:
        pixels: ``[n, 3, 60, 60]``.
        labels: ``[n, 144, 2]`` of :func:`patch_labels`.
        steps: optimiser steps of ``batch`` images.
        log: called with one row of the training curve every 20 steps.
    """
    tower, device = model.model.vision_tower, model.device
    width, side = tower.config.hidden_size, IMAGE_SIZE // PATCH_SIZE
    readout = nn.Linear(width, 2 + len(SHAPES) + len(COLORS)).to(device)
    weights = [*tower.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = min(50, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.5e-3, total_steps=steps + 1, pct_start=warmup / steps
    )
    progress = tqdm(range(1, steps + 1), desc="tower", mininterval=5)
    for step in progress:
        rows = torch.randint(len(pixels), (batch,))
        image, label = pixels[rows].to(device), labels[rows].to(device)
        if torch.rand(()) < 0.5:
            image, label = image.flip(-1), label.unflatten(1, (side, side)).flip(2).flatten(1, 2)
        # The same hidden state that the projector will get: last layer, before the final norm, no class token.
        hidden = tower(image, output_hidden_states=True).hidden_states[-1][:, 1:]
        shape, color = readout(hidden).split([1 + len(SHAPES), 1 + len(COLORS)], dim=-1)
        losses = [F.cross_entropy(x.flatten(0, 1), label[..., i].flatten()) for i, x in enumerate((shape, color))]
        loss = losses[0] + losses[1]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            seen = label.amin(dim=-1) > 0
            right = torch.stack([shape.argmax(-1), color.argmax(-1)], dim=-1) == label
            accuracy = right.all(dim=-1)[seen].float().mean().item()
            log(phase="tower", step=step, loss=loss.item(), accuracy=accuracy, lr=schedule.get_last_lr()[0])
            progress.set_postfix(loss=f"{loss.item():.3f}", object_patches=f"{accuracy:.3f}")
    tower.requires_grad_(False)


@torch.no_grad()
def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """What the frozen tower hands to the projector, kept on the CPU as ``dtype``: ``[n, 144, 96]``."""
    tower = model.model.vision_tower
    batches = []
    for part in pixels.split(128):
        hidden = tower(part.to(model.device, tower.dtype), output_hidden_states=True).hidden_states[-1][:, 1:]
        batches.append(hidden.to("cpu", dtype))
    return torch.cat(batches)
