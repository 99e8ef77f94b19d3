"""MobileNetV5, the convolutional vision encoder of Gemma 3n (timm's `mobilenetv5`, built of MobileNetV4's blocks, Qin
et al., ECCV 2024). It runs on one size of picture.

A token of the tower is a position behind its first convolution. Of each of its blocks, what runs at one resolution is
a `Block` here.

What a family's file says, under ``architectures`` by their name: width of the first convolution (``stem``), stages that
halve each side, and a last block on the features of the last two stages (``fusion``, how many times it widens them).
A stage is a list of blocks, some of them repeated:

    edge        a convolution (``kernel``) that widens, and a matrix back
    inverted    a matrix that widens and one back, and convolutions channel by channel before (``start``) and between
                (``middle``) them, where there are any
    attention   all ``heads`` (of size ``dim``) share one key and value of every square of positions (``stride`` on each
                side, united channel by channel)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from planner.errors import UnsupportedModelError
from planner.spec.config import Config
from planner.spec.facts import Block, Tower

#: Side of a convolution that unites squares of positions for keys and values, and of the first one.
_SMALL = 3


def mobilenet_v5(config: Config, model_type: str) -> Tower:
    """The tower of a configuration.

    Raises:
        UnsupportedModelError: it names another architecture, or changes this one.
    """
    name = str(config.get("architecture"))
    known: Mapping[str, Any] = config.traits["architectures"]
    if name not in known or config.get("model_args"):
        changed = f" with model_args {config.get('model_args')}" if name in known else ""
        raise UnsupportedModelError(
            f"the vision encoder '{name}'{changed} is not known, and its cost is not guessed",
            f"Known: {', '.join(known)}. plan report --decoder-only costs the text decoder alone",
        )
    made = known[name]
    blocks, width, patches = list[Block](), made["stem"], 1
    for stage in made["stages"]:
        # Its first block takes a square of positions to one.
        stride = 4
        for row in stage["blocks"]:
            for block in row["of"]:
                parts = _MAKERS[block["kind"]](block, width, stage["width"], patches, stride)
                blocks += [Block(row.get("repeat", 1), *macs, patches=at) for at, macs in _joined(parts).items()]
                width, patches, stride = stage["width"], patches * stride, 1
    hidden, together = config.size("hidden_size"), sum(stage["width"] for stage in made["stages"][-2:])
    # The features of the last stage are spread over the positions of the one before.
    blocks.append(Block(1, made["fusion"] * together * (together + hidden), 0, patches=patches // 4))
    return Tower(model_type, hidden, 3 * _SMALL**2 * made["stem"], tuple(blocks))


#: Patches that stand for a position; multiply-adds per position, and per pair of positions.
Part = tuple[int, int, int]


def _joined(parts: Iterable[Part]) -> dict[int, tuple[int, int]]:
    """What runs at one resolution together."""
    found: dict[int, tuple[int, int]] = {}
    for patches, macs, pair_macs in parts:
        before = found.get(patches, (0, 0))
        found[patches] = before[0] + macs, before[1] + pair_macs
    return found


def _edge(block: Mapping[str, Any], width: int, out: int, patches: int, stride: int) -> Iterator[Part]:
    inner = block["widen"] * width
    yield patches * stride, block["kernel"] ** 2 * width * inner + inner * out, 0


def _inverted(block: Mapping[str, Any], width: int, out: int, patches: int, stride: int) -> Iterator[Part]:
    """The convolution between has the stride; all blocks that have one are of this kind or the first."""
    inner = block["widen"] * width
    yield patches, block.get("start", 0) ** 2 * width + width * inner, 0
    yield patches * stride, block.get("middle", 0) ** 2 * inner + inner * out, 0


def _attention(block: Mapping[str, Any], width: int, out: int, patches: int, stride: int) -> Iterator[Part]:
    inner, united = block["heads"] * block["dim"], block.get("stride", 1) ** 2
    # Queries and the way back; then, of fewer keys, as many pairs fewer.
    yield patches, 2 * width * inner, 2 * inner // united
    convolved = _SMALL**2 * width if united > 1 else 0
    yield patches * united, 2 * (convolved + width * block["dim"]), 0


_MAKERS = {"edge": _edge, "inverted": _inverted, "attention": _attention}
