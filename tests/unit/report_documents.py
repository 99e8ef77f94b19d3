"""Small profiles with findings written by hand, for tests of reports."""

from __future__ import annotations

import copy
import json
from importlib import resources
from typing import Any

from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity
from planner.spec import ModelSpec

LAYERS, HEADS = 10, 8


def entry(value: Any, spread: float = 0.05, n: Any = 8) -> dict[str, Any]:
    """A value with an interval around it, for nested lists too; None stays None."""

    def moved(one: Any, by: float) -> Any:
        if isinstance(one, list):
            return [moved(inner, by) for inner in one]
        return None if one is None else one + by

    return {"value": value, "low": moved(value, -spread), "high": moved(value, spread), "n": n}


def shares(values: list[float], spread: float = 0.05, n: int = 8) -> list[dict[str, Any]]:
    return [entry(value, spread, n) for value in values]


def curve(ks: list[int], agreement: list[float], answered: bool = True) -> dict[str, Any]:
    right = shares(agreement) if answered else [{"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}] * len(ks)
    return {"k": ks, "agreement": shares(agreement), "first_token_accuracy": right, "kl": entry([0.5] * len(ks))}


def masking() -> dict[str, Any]:
    """Layers [2, 6) read the image."""
    before = [1.0, 1.0, 0.7, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    after = [0.3, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0, 1.0, 1.0, 1.0]
    return {
        "dense_first_token_accuracy": entry(0.9),
        "alone_before": curve([*range(1, 11)], before),
        "masked_from": curve([*range(10)], after),
        "uncached": {"ranges": [[0, 10], [5, 10]], "agreement": shares([0.0, 1.0])},
    }


def flip(same: list[float], mirrored: list[float]) -> dict[str, Any]:
    return {"same_position": entry(same), "mirrored": entry(mirrored), "not_square": 1, "chance": 0.25}


def sink_masking(sinks: float | None, random: float | None) -> dict[str, Any]:
    return {
        "visual_sinks": entry(3.0),
        "samples_without": 2,
        "sinks": {"agreement": entry(sinks), "kl": entry(None if sinks is None else 1 - sinks)},
        "random": {"agreement": entry(random), "kl": entry(None if random is None else 1 - random)},
    }


def attribution() -> dict[str, Any]:
    """Head 3 of layer 4 does nearly everything."""
    table = [[0.01] * HEADS for _ in range(LAYERS)]
    table[4][3] = 0.9
    orders = ("attribution", "attention", "causal", "random")
    falling = {"faithfulness": entry([0.0, 0.9, 1.0]), "completeness": entry([1.0, 0.1, 0.0])}
    return {
        "attributed": 3,
        "answered_wrongly": 1,
        "image_independent": 0,
        "r2": entry(0.81),
        "pearson": entry(0.9),
        "masks_used": entry(4000.0),
        "coefficients": entry(table),
        "needed_share": [[0.0] * HEADS for _ in range(LAYERS)],
        "top_heads": [[4, 3], [0, 0]],
        # As JSON sorts them: the sentence must pick by name.
        "heads_needed": {
            "completeness < 0.2": {order: entry(40.0) for order in orders},
            "faithfulness > 0.8": {order: entry(2.0 if order == "attribution" else 30.0) for order in orders},
        },
        "curves": {"heads": [0, 40, 80], **dict.fromkeys(orders, falling)},
        "clusters": {
            "heads": [[4, 3], [5, 1], [6, 2]],
            "vectors": [[0.9, 0.8, 0.9], [0.0, 0.3, 0.0], [0.2, 0.0, 0.0]],
            "clusters": [
                {"heads": [[4, 3]], "used_by": 1.0, "mean": 0.87},
                {"heads": [[5, 1], [6, 2]], "used_by": 0.33, "mean": 0.08},
            ],
        },
        "attention_correlation": entry(0.05),
        "receiving_text_tokens": entry(1.5),
        "text_tokens_suffice": entry(0.98),
        "image_r2": entry(None),
        "image_attention_correlation": entry(0.4),
        "interpolated_mean": entry(0.0),
        "cosine": {"all": 0.4, "same_prompt": None, "same_image": 0.8},
        "words": [{"layer": 4, "head": 3, "samples": 3, "words": ["red", "<b>blue</b>"]}],
        "text_tokens": [{"token": "colour", "effect": 0.75, "occurrences": 3}],
    }


def context() -> dict[str, Any]:
    """Three lengths, three rates; ranking keeps more than chance."""
    lengths, rates = [100.0, 200.0, 300.0], [0.0, 0.3, 0.6]
    grid = [shares([1.0, 0.9, 0.5]), shares([1.0, 0.9, 0.6]), shares([1.0, 0.9, 0.7])]

    def variant(agreement: float) -> dict[str, Any]:
        unanswered = [{"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}] * 3
        return {"agreement": shares([agreement] * 3), "first_token_accuracy": unanswered, "kl": entry([0.1] * 3)}

    per_layer = [[2.0] * LAYERS] * 3
    flows = {f"S_{pair}": [[0.1] * LAYERS] * 3 for pair in ("vr", "vc", "rt", "ct", "vt", "ww")}
    return {
        "lengths": lengths,
        "rates": rates,
        "layers": {"10 of 32": 3},
        "judged_by": "agreement",
        "agreement": grid,
        "first_token_accuracy": [[{"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}] * 3] * 3,
        "kl": entry([[0.0, 0.1, 0.2]] * 3),
        "best_rates": [0.3, 0.3, 0.6],
        # 0.3, 0.3 and 0.6 at 100, 200 and 300 tokens, exactly.
        "fit": {"coefficients": [1.5e-5, -4.5e-3, 0.6], "shortest": 100.0, "longest": 300.0, "highest": 0.6, "r2": 1.0},
        "variants": {
            "max": variant(0.9),
            "mean": variant(0.9),
            "random": variant(0.7),
            "middle layers": variant(0.95),
            "deep layers": variant(1.0),
        },
        "entropy": {"dense": entry(per_layer), "pruned": entry(per_layer)},
        "entropy_rises": entry(0.25),
        "variance": {"dense": entry(per_layer), "pruned": entry(per_layer)},
        "variance_rises": entry(0.75),
        "kept": {
            "place": {"intervals": 10, **entry([0.6] * 9 + [0.9])},
            "kind": {
                "letters": entry([1.0] * 9 + [0.8]),
                "digits": entry([1.0] * 9 + [0.5]),
                "other": entry([None] * 10),
            },
        },
        "object_sizes": {
            name: {
                "samples": 4,
                "largest": largest,
                "right": shares([right, 0.9, right - 0.1]),
                "visual_dependency": entry([0.1] * 3),
            }
            for name, largest, right in (("small", 10.0, 0.5), ("medium", 20.0, 0.75), ("large", 40.0, 1.0))
        },
        "visual_dependency": {"dense": entry([0.5, 0.4, 0.2]), "pruned": entry([0.5, 0.45, 0.3])},
        "visual_dependency_per_layer": {"dense": entry(per_layer), "pruned": entry(per_layer)},
        "flow": {"dense": flows, "pruned": flows},
    }


def lens() -> dict[str, Any]:
    """The answer is first from layer 6 on in most samples."""
    layers = [["cat", "dog"]] * 6 + [["red", "<b>blue</b>"]] * 4
    return {
        "answer_probability": entry([0.01] * 6 + [0.8] * 4),
        "answer_first": entry([0.0] * 6 + [0.75] + [1.0] * 3),
        "settling_layer": {**entry(6.25), "quantiles": {"0.25": 6.0, "0.5": 6.0, "0.75": 6.25, "0.95": 7.0}},
        "words": layers,
        "examples": [{"prompt": "What colour?", "answer": "red", "layers": layers}],
    }


def token_masking() -> dict[str, Any]:
    """The middle layers read the image, whichever tokens are hidden in the others."""
    ranges = {"first": [0, 2], "shallow": [0, 2], "middle": [2, 5], "deep": [8, 10]}
    names = {
        "first": ("top_by_last", "top_by_text", "nearest", "others", "first_half", "second_half"),
        "middle": ("top", "bottom", "all_but_top", "merged"),
        "all": ("shallow", "middle", "deep"),
        "merge": ("hidden", "first", "quarter", "half", "last"),
    }
    hidden = {f"{group}.{name}": 1.0 for group, several in names.items() for name in several} | {"all.middle": 0.5}
    return {
        "ranges": ranges,
        "conditions": {
            name: {"agreement": entry(value), "first_token_accuracy": entry(value), "kl": entry(1 - value)}
            for name, value in hidden.items()
        },
    }


def instructions() -> dict[str, Any]:
    """Static attention in the first three layers, by position in the first."""
    return {
        "other_instruction": entry([0.9] * 3 + [0.3] * 6 + [0.2]),
        "other_picture": entry([0.8] + [0.1] * 9),
        "instructions_of_the_picture": entry(0.75),
        "chance": 0.1,
    }


def encoder_sinks(long: float | None = 0.5) -> dict[str, Any]:
    """Two long features per picture that matter, none of them a sink of the decoder; None: no long ones."""

    def hidden(agreement: float | None) -> dict[str, Any]:
        return {"agreement": entry(agreement), "kl": entry(None if agreement is None else 1 - agreement)}

    return {
        "encoder_sinks": entry(0.0 if long is None else 2.0),
        "decoder_sinks": entry(1.5),
        "both": entry(0.0),
        "share_of_tokens": entry(0.02),
        "longest": entry(1.5 if long is None else 3.0),
        "samples_without": 3,
        "encoder_dims": [] if long is None else [7, 9],
        "decoder_dims": [507],
        "long": hidden(long),
        "random": hidden(None if long is None else 0.9),
    }


def written() -> dict[str, dict[str, Any]]:
    """Findings of the probes that no committed profile holds."""
    return {
        "masking": masking(),
        "flip": flip([0.8] * 3 + [0.3] * 7, [0.3] * 3 + [0.6] * 7),
        "sink_masking": sink_masking(1.0, 0.5),
        "attribution": attribution(),
        "context": context(),
        "encoder_sinks": encoder_sinks(),
        "lens": lens(),
        "instructions": instructions(),
        "token_masking": token_masking(),
    }


_SETTINGS = {
    "masking": {"answer_tokens": 8},
    "attribution": {"samples": 4},
    "lens": {"words": 7},
    "instructions": {"top_share": 0.1},
    "encoder_sinks": {"norm_multiple": 2.0},
    "token_masking": {"top": 0.1, "kept": 0.05},
}


def committed() -> Profile:
    """The bundled profile, without its tables: what calibration really writes for every probe."""
    path = resources.files("planner.profiles") / "reference" / "windowed" / "profile.json"
    return Profile.parse(json.loads(path.read_text(encoding="utf-8")))


def profile(probes: dict[str, dict[str, Any]], model_id: str = "some/model") -> Profile:
    """A profile of a model of 10 layers and 8 heads with these findings, 8 samples each."""
    config = copy.deepcopy(dict(committed().model.config))
    spec = ModelSpec.from_config(config)
    assert (spec.layers, spec.decoder.layers[0].attention.heads) == (LAYERS, HEADS)
    return Profile(
        model=ModelIdentity(
            id=model_id, family=spec.family, config=config, config_digest=spec.digest, layers=spec.layers,
            hidden_size=spec.hidden_size, image_token_id=spec.image_token_id,
        ),
        samples=SampleIdentity(digest="s" * 64, n=8, source="samples.jsonl"),
        prompt=PromptShape(visual_tokens=100, text_tokens=9, system_tokens=2),
        processor={"class": "LlavaProcessor"},
        probes={
            name: ProbeResult(n=8, settings=_SETTINGS.get(name, {}), values=values) for name, values in probes.items()
        },
        environment={"device": "cpu", "dtype": "float32"},
        created_with="vlm-planner 0.1.0",
    ).sealed()  # fmt: skip
