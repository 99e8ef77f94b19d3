"""Head attribution of one sample, from the ordinary pass to the words of the top heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.probes.attribution.attention import image_attention
from calibrate.probes.attribution.curves import Curve, compare_orders, single_head_effects
from calibrate.probes.attribution.forward import TextRows
from calibrate.probes.attribution.lens import HeadWords, head_words
from calibrate.probes.attribution.masks import FAMILY, family_masks
from calibrate.probes.attribution.mean import MeanImage, image_grids
from calibrate.probes.attribution.parts import find_attribution_parts
from calibrate.probes.attribution.prefix import capture
from calibrate.probes.attribution.regression import Fit, attribute_entries
from calibrate.probes.attribution.response import Response, Vector
from calibrate.probes.attribution.tokens import ImageTokens, TextTokens, correlation, image_tokens, text_tokens
from planner.errors import InputError

MASKS, ABLATED = 10_000, 0.75


@dataclass(frozen=True)
class Attribution:
    """What head attribution found on one sample; L layers of H heads, T text rows, V visual tokens.

    Attributes:
        answer_token: whose logit was attributed.
        predicted: True when it is the model's own first choice.
        intact, ablated: its logit minus the vocabulary mean, with all heads intact and with none.
        coefficients: ``[L, H]``, each head's contribution to the normalised logit.
        fit: the regression behind them.
        image_attention: mean weight of text rows on the image, ``[L, H]`` (head attribution eq. 10), and its
            correlation with the coefficients.
        single_head: loss when one head alone is ablated, ``[L, H]``; None without curves.
        curves: by order (``attribution``, ``attention``, ``causal``, ``random``); empty without curves.
        text, image: token-level findings with the heads needed for faithfulness; None without curves (image: without
            masks).
        words: logit lens of the top heads.
        mean_grid: ``equal`` or how the mean image was interpolated.
        forwards: ablated forwards run in all.
    """

    answer_token: int
    predicted: bool
    intact: float
    ablated: float
    coefficients: Vector
    fit: Fit
    image_attention: Vector
    attention_correlation: float
    single_head: Vector | None
    curves: Mapping[str, Curve]
    text: TextTokens | None
    image: ImageTokens | None
    words: tuple[HeadWords, ...]
    mean_grid: str
    forwards: int

    @property
    def needed(self) -> np.ndarray:
        """Heads that attribution needs for faithfulness above 0.8, ``[L, H]``; all without curves."""
        if not self.curves:
            return np.ones(self.coefficients.shape, bool)
        flat = np.zeros(self.coefficients.size, bool)
        order = np.argsort(-self.coefficients.ravel(), kind="stable")
        flat[order[: self.curves["attribution"].faithful_heads]] = True
        return flat.reshape(self.coefficients.shape)


@torch.no_grad()
def attribute(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    answer_token: int | None,
    mean: MeanImage,
    *,
    masks: int = MASKS,
    ablated: float = ABLATED,
    image_masks: int = MASKS,
    curves: bool = True,
    lens_heads: int = 5,
    early_stop: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    sample: str = "?",
) -> Attribution:
    """Attribute the answer's logit to the heads that read the image (head attribution, by the shared prefix).

    Beside the model, memory holds the prompt's keys and values of all layers three times (captured, and the prefix with
    the image and with its mean) in float32 or wider, and one batch of text rows; nothing grows with the number of masks
    but the masks themselves.

    Args:
        model: a Hugging Face vision-language model in evaluation mode; unchanged afterwards.
        inputs: keyword arguments of its forward, batch 1.
        answer_token: first token of the answer; None for the model's own choice.
        mean: the mean image, see `mean_image`.
        masks, ablated: random masks, and the share of heads ablated in each.
        image_masks: random masks over visual tokens; 0 leaves the image tokens out.
        curves: whether to compare orders of heads, which the token level needs too.
        lens_heads: how many top heads to read words from.
        early_stop: stop drawing masks when the held-out R^2 has settled.
        sample: the sample's name, for messages.

    Raises:
        InputError: not one sample with an image and text after it, too few masks, or a token outside the vocabulary.
        UnsupportedModelError: the model lacks a part, or the replay does not reproduce it.
        CalibrationError: NaN activations, or an answer that does not depend on the image.
    """
    parts = find_attribution_parts(model)
    seen = capture(model, parts, inputs, sample)
    choice = int(seen.logits.argmax())
    token = choice if answer_token is None else answer_token
    if not 0 <= token < seen.logits.numel():
        raise InputError(f"token {token} is outside the vocabulary of {seen.logits.numel()}", "Check the tokenizer")
    rows = TextRows(parts, seen, mean, image_grids(model, inputs, seen.visual.numel()), batch_size)
    rows.check(token)
    respond = Response(rows, token, sample)
    heads = parts.layers * parts.heads
    drawn = family_masks(masks, parts.layers, parts.heads, ablated, seed)
    fit = attribute_entries(drawn, respond, early_stop, family=FAMILY)
    attention = image_attention(seen)
    single: Vector | None = None
    compared: dict[str, Curve] = {}
    text: TextTokens | None = None
    image: ImageTokens | None = None
    order = np.argsort(-fit.coefficients, kind="stable")
    if curves:
        single = single_head_effects(respond, heads)
        compared = compare_orders(respond, fit.coefficients, attention.ravel(), single, seed)
        needed = np.zeros(heads, bool)
        needed[order[: compared["attribution"].faithful_heads]] = True
        text = text_tokens(respond, needed, seen.text_rows)
        if image_masks:
            image = image_tokens(
                respond, seen, needed, fit.coefficients, text,
                masks=image_masks, ablated=ablated, seed=seed + 1, early_stop=early_stop,
            )  # fmt: skip
    top = [divmod(int(number), parts.heads) for number in order[:lens_heads]]
    return Attribution(
        answer_token=token,
        predicted=token == choice,
        intact=respond.intact,
        ablated=respond.ablated,
        coefficients=fit.coefficients.reshape(parts.layers, parts.heads),
        fit=fit,
        image_attention=attention,
        attention_correlation=correlation(fit.coefficients, attention.ravel()),
        single_head=None if single is None else single.reshape(parts.layers, parts.heads),
        curves=compared,
        text=text,
        image=image,
        words=head_words(parts, seen, top),
        mean_grid=rows.mean_grid,
        forwards=respond.forwards,
    )
