"""What "FLOPs" means: named conventions, each with its source, its formula and what it leaves out.

The literature quotes the same model on the same prompt as 8.5, 3.8 and 0.099 TFLOPs. All three are right, each in its
own convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class Convention:
    """How work is counted.

    Attributes:
        name, source, formula, omits: as `plan ls conventions` shows them.
        flops_per_mac: FLOPs a multiply-add counts as.
        rows: which tokens count: ``all``; ``visual``; ``prefixed``: FastV's 36 system tokens and the visual ones.
        pairs: attention pairs: the ``rectangular`` product a dense kernel runs, or the ``causal`` ones only.
        ffn_matrices: matrices of the feed-forward block; 0 means what the model has.
        real: projections, feed-forward, vision, head and selector as the model has them; otherwise ``4 n d^2`` and
            nothing else.
        per_layer: the figure is an average per layer, not the sum.
        mean_token: attention only, with the mean token count over layers put into the quadratic.
    """

    name: str
    source: str
    formula: str
    omits: str
    flops_per_mac: int
    rows: Literal["all", "visual", "prefixed"] = "all"
    pairs: Literal["rectangular", "causal"] = "rectangular"
    ffn_matrices: int = 0
    real: bool = False
    per_layer: bool = False
    mean_token: bool = False


#: System tokens in FastV's accounting: 612 = 36 + 576, whatever prompt is used.
FASTV_SYSTEM_TOKENS = 36

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            name="exact",
            source="what torch's FlopCounterMode counts, repaired, on the running model",
            formula="2 per multiply-add of every matrix product executed; attention n^2, as dense kernels execute it",
            omits="elementwise work: norms, softmax, activations, rotary embedding",
            flops_per_mac=2,
            real=True,
        ),
        Convention(
            name="causal",
            source="what a causal kernel that skips masked blocks executes, and MFU figures usually mean",
            formula="as exact, with only the attention pairs that a causal mask (and a sliding window) allows",
            omits="as exact; bidirectional image blocks of some families are counted as causal",
            flops_per_mac=2,
            pairs="causal",
            real=True,
        ),
        Convention(
            name="pdrop",
            source="PyramidDrop (Xing et al., 2025), FitPrune (Ye et al., 2025), VisiPruner (appendix M)",
            formula="sum over layers of 4nd^2 + 2n^2d + 3ndm, n visual tokens; isolated ones have no 2n^2d",
            omits="text tokens, grouped key/value heads, vision tower, head, selector; counts a multiply-add as 1",
            flops_per_mac=1,
            rows="visual",
            ffn_matrices=3,
        ),
        Convention(
            name="cdpruner",
            source="CDPruner (Zhang et al., 2025), TOPS, and others that count the same work",
            formula="as pdrop, and 2 per multiply-add: 2 * sum over layers of 4nd^2 + 2n^2d + 3ndm, n visual tokens",
            omits="text tokens, grouped key/value heads, vision tower, head, selector",
            flops_per_mac=2,
            rows="visual",
            ffn_matrices=3,
        ),
        Convention(
            name="fastv",
            source="FastV (Chen et al., 2024), the figures of its table (its text's formula gives others)",
            formula="mean over layers of 4nd^2 + 2n^2d + 2ndm, n = 36 system tokens + visual tokens",
            omits="text after the image, a third of the feed-forward, vision, head, selector; a multiply-add is 1",
            flops_per_mac=1,
            rows="prefixed",
            ffn_matrices=2,
            per_layer=True,
        ),
        Convention(
            name="sparsevlm",
            source="SparseVLM (Zhang et al., 2025)",
            formula="sum over layers of 4nd^2 + 2n^2d + 3ndm, n all tokens",
            omits="grouped key/value heads, vision tower, head, selector; counts a multiply-add as 1",
            flops_per_mac=1,
            ffn_matrices=3,
        ),
        Convention(
            name="mean-token",
            source="VisiPruner (table 6 and appendix M): visual attention with the mean token count",
            formula="L * 2d * (v^2 + v t), v the mean of visual tokens over layers, t all text tokens",
            omits="all but attention to visual tokens; the mean biases it (FastV K=3 R=75 %: -87.3, by layer -83.0 %)",
            flops_per_mac=1,
            mean_token=True,
        ),
    )
}


def convention(name: str) -> Convention:
    """The convention of a name.

    Raises:
        InputError: there is none.
    """
    if name not in CONVENTIONS:
        hint = nearest(name, CONVENTIONS)
        raise InputError(f"there is no convention '{name}'", f"{hint}Conventions: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
