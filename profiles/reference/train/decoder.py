"""Train decoder and projector: first plainly, then inside the window that a pruning plan will execute.

Decisions: cross-entropy on the answer and ``</s>`` only; one packed sequence per image, batches of eight images with
about the same number of questions; horizontal flips, which no question can tell. The window phase draws, image by
image, what may be used, in three cases: nothing restricted, the whole plan, or any mix of its parts. So the model stays
whole under dense attention and learns to need no more than the plan leaves. It begins by moving the layers of the plain
model deeper, to where the plan lets the image in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from .build import VISUAL_TOKENS
from .data import Split
from .packing import IGNORED, Packer
from .tower import Log
from .window import Window, random_ranks, run_decoder

TRAINING_BATCH = 8
BUCKET = 64


@dataclass(frozen=True)
class Recipe:
    """What differs between the phases.

    Attributes:
        name: phase, as the training log calls it.
        lr: peak learning rate.
        windowed: restrict attention at random, towards ``shallow``, ``exit`` and ``filter``.
        shallow: text sees no image, and visual tokens only themselves, in layers ``[0, shallow)``.
        exit: text sees no image in layers ``[exit, L)``.
        filter: visual tokens are dropped after this layer.
        keep: smallest share that is kept there; shares are log-uniform from it to 1.
    """

    name: str
    lr: float
    windowed: bool
    shallow: int = 3
    exit: int = 7
    filter: int = 3
    keep: float = 0.05


PLAIN = Recipe("plain", lr=1e-3, windowed=False)
WINDOWED = Recipe("windowed", lr=4e-4, windowed=True)


@torch.no_grad()
def move_deeper(model: LlavaForConditionalGeneration, by: int) -> None:
    """Move every decoder layer ``by`` places deeper; the last ``by`` come to the front, their outputs set to zero.

    So the circuit that reads the image from layer 0 on reads it from layer ``by`` on, while the layers in front start
    as no-ops. Training alone did not move it: 800 steps under the same windows left yes/no answers near the prior.
    """
    layers = model.model.language_model.layers
    states = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    for index, layer in enumerate(layers):
        layer.load_state_dict(states[(index - by) % len(layers)])
    for layer in layers[:by]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


@dataclass
class Features:
    """The frozen tower's output for every image, as it is and flipped: each ``[n, 144, 96]``."""

    views: tuple[Tensor, Tensor]
    rows: dict[int, int]

    @classmethod
    def of(cls, straight: Tensor, flipped: Tensor, ids: list[int]) -> Features:
        """Features of the images ``ids``, in that order."""
        return cls((straight, flipped), {image_id: row for row, image_id in enumerate(ids)})

    def take(self, ids: list[int], flip: list[bool]) -> Tensor:
        """Features of some images, ``[B, 144, 96]`` float32."""
        picked = [self.views[int(f)][self.rows[i]] for i, f in zip(ids, flip, strict=True)]
        return torch.stack(picked).float()


def draw_window(recipe: Recipe, batch: int, layers: int, rng: np.random.Generator) -> Window:
    """A window per image: dense for a fifth, the whole plan for half, any mix of its parts for the rest."""
    case = rng.choice(3, size=batch, p=[0.2, 0.5, 0.3])
    mixed = rng.random((4, batch)) < 0.5
    part = (case == 1) | ((case == 2) & mixed)
    depth = np.where(case == 1, recipe.shallow, rng.integers(1, recipe.shallow + 1, size=batch))
    share = np.exp(rng.uniform(math.log(recipe.keep), 0.0, size=batch))
    keep = np.ceil(share * VISUAL_TOKENS).astype(np.int64)
    return Window(
        alone=torch.as_tensor(np.where(part[0], depth, 0)),
        closed=torch.as_tensor(np.where(part[1], depth, 0)),
        exit=torch.as_tensor(np.where(part[2], recipe.exit, layers)),
        keep=torch.as_tensor(np.where(part[3], keep, VISUAL_TOKENS)),
        filter=recipe.filter,
    )


def batches(sizes: dict[int, int], rng: np.random.Generator) -> list[list[int]]:
    """One epoch of image ids in batches of similar question counts, so that little of a batch is padding."""
    ids = rng.permutation(list(sizes)).tolist()
    made = []
    for start in range(0, len(ids), BUCKET):
        bucket = sorted(ids[start : start + BUCKET], key=sizes.__getitem__)
        made += [bucket[i : i + TRAINING_BATCH] for i in range(0, len(bucket), TRAINING_BATCH)]
    return [made[i] for i in rng.permutation(len(made))]


def train_decoder(
    model: LlavaForConditionalGeneration,
    packer: Packer,
    features: Features,
    split: Split,
    recipe: Recipe,
    steps: int,
    seed: int,
    log: Log,
) -> None:
    """Train ``model``'s decoder and projector in place for ``steps`` batches; the tower is not touched.

    ``log`` is called with one row of the training curve every 20 steps: mean loss and accuracy over those steps, on
    batches that were not trained on yet in that epoch.
    """
    rng = np.random.default_rng(seed)
    if recipe.windowed:
        move_deeper(model, recipe.shallow)
    model.model.vision_tower.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = min(100, max(1, steps // 10))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    questions, layers = split.by_image(), model.config.text_config.num_hidden_layers
    sizes = {image_id: len(asked) for image_id, asked in questions.items()}
    queue: list[list[int]] = []
    losses: list[float] = []
    hits: list[float] = []
    progress = tqdm(range(1, steps + 1), desc=recipe.name, mininterval=5)
    for step in progress:
        queue = queue or batches(sizes, rng)
        ids = queue.pop()
        pack = packer.pack([[(q.prompt, q.answer) for q in questions[i]] for i in ids]).to(model.device)
        flips = (rng.random(len(ids)) < 0.5).tolist()
        window = draw_window(recipe, len(ids), layers, rng) if recipe.windowed else Window.uniform(len(ids), layers)
        rank = random_ranks(pack.visual)
        hidden = run_decoder(model, pack, features.take(ids, flips).to(model.device), window.to(model.device), rank)
        at = pack.labels != IGNORED
        logits, target = model.lm_head(hidden[at]), pack.labels[at]
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        is_answer = target != packer.end
        hits.append((logits.argmax(-1) == target)[is_answer].float().mean().item())
        if step % 20 == 0 or step == steps:
            mean_loss, accuracy = sum(losses) / len(losses), sum(hits) / len(hits)
            log(phase=recipe.name, step=step, loss=mean_loss, accuracy=accuracy, lr=schedule.get_last_lr()[0])
            progress.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{accuracy:.3f}")
            losses, hits = [], []
