"""The words of a page, explained on it: a short form of what ``docs/glossary.md`` says of the same terms."""

from __future__ import annotations

WORDS = {
    "agreement": "share of samples whose whole answer, its end included, is the dense model's",
    "attention sink": "a token that receives much attention and contributes little",
    "certify samples": "calibration samples that are opened once, to prove the ladder",
    "convention": "a way of counting FLOPs; 'exact' is what a counter measures on the running model",
    "decode": "making an answer token by token, over the KV cache",
    "dense": "the unmodified model, which computes every token in every layer",
    "evaluation samples": "samples that took no part in the decision",
    "family": "candidates that differ in their budget alone",
    "floor": "the dense model against itself in other batches and the number format that is named ('dense again')",
    "front": "candidates of which none costs less and loses less",
    "ladder": "the few candidates that were frozen for the proof, the safest first; each is a rung",
    "limit": "the largest expected loss that a plan may have",
    "logit lens": "reading a hidden state as words, through the model's output layer",
    "loss": "what a sample loses under a plan, from 0 to 1: its whole answer, or the share of its tokens",
    "masking curve": "agreement when text does not see the image before, from or in a layer",
    "plan": "a JSON document: the model it fits, what is dropped where, and what was measured",
    "policy": "a named rule that says which tokens are dropped where, such as fastv:k=2,ratio=0.75",
    "prefill": "the forward pass over the whole prompt that gives the first token of the answer",
    "probe": "one measurement of calibration, a section below",
    "roofline": "an estimate of time: each layer's FLOPs and bytes, at the rates that the device reaches",
    "runaway": "an answer that does not end before the token limit ('no end')",
    "stage": "a range of layers under one rule, and what is dropped after it",
    "vision exit layer": "the layer from which on no visual token is computed",
    "visual token": "a place of the prompt that holds a piece of the picture in place of a word",
}
#: Terms of each kind of page.
PLAN = tuple(term for term in WORDS if term not in ("convention", "roofline"))
PROFILE = (
    *("agreement", "attention sink", "decode", "dense", "limit", "logit lens", "loss", "masking curve", "policy"),
    *("prefill", "probe", "vision exit layer", "visual token"),
)
COSTS = ("convention", "decode", "dense", "front", "policy", "prefill", "roofline", "visual token")


def explained(terms: tuple[str, ...]) -> list[tuple[str, str]]:
    """Terms and their meanings, in order of the alphabet."""
    return [(term, WORDS[term]) for term in sorted(terms)]
