"""Stage one: teach every patch to say what it shows, in the language model's own words; no language model runs.

Decision: **dense** targets, as in the other reference models. The projected patch is compared, by cosine, with word
embeddings of the language model: the thing's name, the row and the column of its place, and whether its centre is
here (one such patch a thing is what counting needs). So the language model finds words it knows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .base import Base
from .build import Delta, short
from .compose import GRID, IGNORED, Pictures, normalized, paint, patch_labels
from .layout import Layout, draw_layout
from .loop import Figures
from .vocabulary import CLASSES, COLUMNS, ROWS, TRAINED_STYLES

SHARPNESS = 20.0  # what cosines are multiplied by to become logits
WAVE = 0.3  # amplitude of the initial position embeddings, about that of the patches
GROUND_WEIGHT = 0.1  # nine patches in ten are ground
CENTER_WEIGHT = 5.0  # one patch of a thing in some fifteen is its centre
#: The words of each set of targets, and the weight of its loss.
TARGETS: dict[str, tuple[tuple[str, ...], float]] = {
    "name": (("background", *(c.name for c in CLASSES)), 1.0),
    "row": (ROWS, 0.3),
    "column": (COLUMNS, 0.3),
    "center": (("part", "whole"), 0.3),
}


def embeddings(base: Base, words: tuple[str, ...]) -> Tensor:
    """Embeddings ``[n, d]`` of words as they stand behind a space.

    Raises:
        ValueError: a word is more than one token.
    """
    return base.weights["embed_tokens.weight"][[_token(base.tokenizer, word) for word in words]]


def _token(tokenizer: Tokenizer, word: str) -> int:
    ids: list[int] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens of the language model, not one")
    return ids[0]


def waves(side: int, width: int) -> Tensor:
    """Initial position embeddings ``[side * side, width]``: sines and cosines of row and column.

    Neighbours start alike, so that what is learnt in one place holds in the next; from noise, places take long.
    """
    frequencies = torch.pi / 2 ** torch.linspace(0, math.log2(side), width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    row, column = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return WAVE * torch.cat([row, column], dim=-1).flatten(0, 1)


class Eyes(nn.Module):
    """Vision tower and projector, as they stand in LLaVA."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        weights = {short(f"vision_tower.{name}"): p for name, p in self.vision_tower.named_parameters()}
        places = weights["vision_tower.embeddings.position_embedding.weight"]
        with torch.no_grad():
            places[1:] = waves(GRID, places.shape[1])

    def features(self, pixels: Tensor) -> Tensor:
        """The tower's last layer, no class token: ``[B, 400, 192]`` from pixels of 0 to 1."""
        hidden: Tensor = self.vision_tower(normalized(pixels), output_hidden_states=True).hidden_states[-1]
        return hidden[:, 1:]

    def forward(self, pixels: Tensor) -> Tensor:
        """Visual tokens as the language model gets them: ``[B, 400, d]``."""
        projected: Tensor = self.multi_modal_projector(self.features(pixels))
        return projected

    def delta(self) -> Delta:
        """The weights under their names in the shipped difference."""
        return {short(name): tensor for name, tensor in self.state_dict().items()}

    def load_delta(self, delta: Delta) -> None:
        """Take the weights out of a difference."""
        self.load_state_dict({name: delta[short(name)] for name in self.state_dict()})


def draw_batch(batch: int, rng: np.random.Generator) -> Layout:
    """The layouts of one step."""
    return draw_layout(rng, batch, len(TRAINED_STYLES))


class TowerLoss:
    """The loss of stage one.

    Args:
        eyes: what is trained.
        sprites: on the device that paints.
        base: whose word embeddings are the targets.
        dtype: that the tower computes in; weights stay float32.
    """

    def __init__(self, eyes: Eyes, sprites: Tensor, base: Base, dtype: torch.dtype) -> None:
        self.eyes, self.sprites, self.dtype = eyes, sprites, dtype
        known = {name: embeddings(base, words).to(sprites.device) for name, (words, _) in TARGETS.items()}
        self.length = torch.cat(list(known.values())).norm(dim=-1).mean()
        self.targets = {name: F.normalize(vectors, dim=-1) for name, vectors in known.items()}
        self.balance = {name: torch.ones(len(vectors), device=sprites.device) for name, vectors in known.items()}
        self.balance["name"][0] = GROUND_WEIGHT
        self.balance["center"][1] = CENTER_WEIGHT

    def scores(self, pictures: Pictures) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of every set of targets, and the length of every projected patch."""
        with torch.autocast(self.sprites.device.type, self.dtype, enabled=self.dtype != torch.float32):
            said = self.eyes(pictures.pixels)
        said = said.float()
        length = said.norm(dim=-1, keepdim=True)
        cosines = {name: (said / length) @ vectors.T for name, vectors in self.targets.items()}
        return {name: SHARPNESS * cosine for name, cosine in cosines.items()}, length

    def __call__(self, layout: Layout, step: int) -> tuple[Tensor, Figures]:
        """Loss of one batch; and the share of object patches that are named right."""
        pictures = paint(layout, self.sprites, torch.Generator().manual_seed(step))
        scores, length = self.scores(pictures)
        labels = patch_labels(layout, pictures.coverage)
        # Of a length that the language model is used to.
        loss = 0.1 * (length / self.length - 1).square().mean()
        figures: Figures = {}
        for name, (_, weight) in TARGETS.items():
            expected, given = getattr(labels, name).flatten(), scores[name].flatten(0, 1)
            loss = loss + weight * F.cross_entropy(given, expected, self.balance[name], ignore_index=IGNORED)
            counted = expected > 0 if name == "name" else expected != IGNORED
            figures[name] = (given.detach().argmax(-1) == expected)[counted].float().mean()
        return loss, figures


@torch.no_grad()
def things_named(loss: TowerLoss, style: int, pictures: int, seed: int = 1, batch: int = 32) -> float:
    """Share of things in fresh pictures of one style whose patches, taken together, say their name."""
    rng, right, total = np.random.default_rng(seed), 0, 0
    for done in range(0, pictures, batch):
        layout = draw_layout(rng, min(batch, pictures - done), (style,))
        painted = paint(layout, loss.sprites)
        scores, _ = loss.scores(painted)
        votes = painted.coverage @ scores["name"][..., 1:].softmax(-1)
        filled = torch.from_numpy(layout.classes >= 0)
        hits = votes.argmax(-1).cpu() == torch.from_numpy(layout.classes)
        right, total = right + int(hits[filled].sum()), total + int(filled.sum())
    return right / total
