"""Context pruning measured: beside the runtime, beside the papers' formulas done literally, and as a probe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from calibrate.inputs.batches import Batch
from calibrate.inputs.identity import identify
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.context.attention import attended
from calibrate.probes.context.flow import FLOWS
from calibrate.probes.context.probe import VARIANTS, ContextProbe
from calibrate.probes.context.schedule import pruning
from calibrate.probes.context.sizes import by_size
from calibrate.probes.context.survivors import kept_by_kind, kept_by_place, kind_of
from calibrate.running.execute import first_logits
from planner.errors import InputError
from planner.runtime.model.attention import attention_hook
from planner.runtime.tensors.layout import read_layout
from planner.schedule import Fraction, Schedule, Select, Stage
from tests import tiny
from tests.float64 import float64_throughout

FAMILY, PROTECT, LAYERS = "llava", 3, 4


def schedule(keep=0.6):
    """A share of the context goes after each of the first two layers."""
    select = Select(rank_by="attention_received", keep=Fraction(fraction=keep), of="context", protect=PROTECT)
    stages = [Stage(first=layer, last=layer + 1, selects=(select,)) for layer in range(2)]
    return Schedule(stages=(*stages, Stage(first=2, last=LAYERS)))


def setting(text=14):
    model = tiny.model(FAMILY)
    return model, identify(model, "").parts, tiny.inputs(FAMILY, text=text)


def literal(model, parts, inputs, keep=None, pooling=max, dropped_at=None):
    """Full n x n attention, pair by pair: weights per layer, gradients of the loss by them, and what was dropped.

    Scores: mean weight over the text rows that are left and can see the token, united over heads by `pooling`.
    """
    layout = read_layout(inputs["input_ids"], parts.visual_ids, None)
    length, after = layout.length, layout.after[0].tolist()
    protected = [row for row in range(length) if after[row]][-PROTECT:]
    tables, dropped = [], set()

    def attend(call):
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = call.key.repeat_interleave(groups, 1), call.value.repeat_interleave(groups, 1)
        scores = call.query @ key.transpose(2, 3) * call.scaling
        for row in range(length):
            for column in range(length):
                if column > row or (column in dropped and column != row):
                    scores[0, :, row, column] = -math.inf
        weights = torch.softmax(scores, -1)
        weights = weights if weights.requires_grad else weights.requires_grad_()
        tables.append(weights)
        if keep is not None and call.layer < 2:
            ranked = [row for row in range(length) if after[row] and row not in protected and row not in dropped]
            score = {}
            for token in ranked:
                askers = [row for row in range(token, length) if after[row] and row not in dropped]
                per_head = [
                    sum(float(weights[0, h, row, token].detach()) for row in askers) / len(askers) for h in range(4)
                ]
                score[token] = pooling(per_head)
            stays = sorted(ranked, key=lambda token: -score[token])[: max(1, int(keep * len(ranked) + 0.5))]
            dropped.update(set(ranked) - set(stays))
        return (weights @ value).transpose(1, 2), None

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.enable_grad(), attention_hook(parts.attentions, attend):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        loss = -logits.log_softmax(-1)[7]
        gradients = torch.autograd.grad(loss, tables)
    return logits.detach(), [table.detach()[0] for table in tables], [one[0] for one in gradients], dropped, layout


def mean_of(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_hiding_equals_the_runtimes_dropping(keep):
    model, parts, inputs = setting()
    with float64_throughout(), torch.inference_mode():
        hidden = attended(model, parts, inputs, PROTECT, schedule(keep))
        executed = first_logits(model, inputs, schedule(keep))[0]
        dense = attended(model, parts, inputs, PROTECT)
        assert torch.equal(dense.logits, model(**inputs, use_cache=False).logits[0, -1]) or torch.allclose(
            dense.logits, model(**inputs, use_cache=False).logits[0, -1], atol=1e-12
        )
    assert torch.allclose(hidden.logits.log_softmax(-1), executed.to(hidden.logits), atol=1e-10)
    assert (hidden.logits - dense.logits).abs().max() > 1e-3


@pytest.mark.parametrize(("pooling", "literally"), [("max", max), ("mean", mean_of)])
def test_everything_equals_the_formulas_done_literally(pooling, literally):
    model, parts, inputs = setting()
    with float64_throughout():
        logits, tables, gradients, dropped, layout = literal(model, parts, inputs, 0.6, literally)
        found = attended(model, parts, inputs, PROTECT, schedule(0.6), pooling=pooling, answer=7)
    length = layout.length
    visual, after = (set(flags[0].nonzero().flatten().tolist()) for flags in (layout.visual, layout.after))
    target = length - 1
    preserved = after - dropped - {target}
    assert torch.allclose(found.logits, logits, atol=1e-10)
    assert set(found.pruned.nonzero().flatten().tolist()) == dropped and dropped
    assert set(found.preserved.nonzero().flatten().tolist()) == preserved
    left = [set((~kept).nonzero().flatten().tolist()) for kept in found.kept]
    assert left[0] < left[1] == left[2] == left[3] == dropped
    for layer, (table, gradient) in enumerate(zip(tables, gradients, strict=True)):
        rows = range(length - PROTECT, length)
        entropy = [
            -sum(float(w) * math.log(float(w)) for w in table[h, row] if w > 0) for h in range(4) for row in rows
        ]
        assert found.entropy[layer] == pytest.approx(mean_of(entropy), abs=1e-6)
        assert found.visual[layer] == pytest.approx(
            mean_of([sum(float(table[h, target, j]) for j in visual) for h in range(4)]), abs=1e-6
        )
        # Eq. 8 over the keys a row sees: itself, and what comes before it and was not dropped by an earlier layer.
        spreads = []
        for h in range(4):
            for row in rows:
                seen = [float(table[h, row, j]) for j in range(row + 1) if float(table[h, row, j]) > 0]
                spreads.append(sum((weight - 1 / len(seen)) ** 2 for weight in seen) / len(seen))
        assert found.variance[layer] == pytest.approx(mean_of(spreads), abs=1e-6)
        flow = (table * gradient).abs().sum(0)
        pairs = {(j, i): float(flow[i, j]) for i in range(length) for j in range(i)}  # from j to i
        sums = {
            "vr": [v for (j, i), v in pairs.items() if j in visual and i in preserved],
            "vc": [v for (j, i), v in pairs.items() if j in visual and i in dropped],
            "rt": [v for (j, i), v in pairs.items() if j in preserved and i == target],
            "ct": [v for (j, i), v in pairs.items() if j in dropped and i == target],
            "vt": [v for (j, i), v in pairs.items() if j in visual and i == target],
        }
        rest = sum(pairs.values()) - sum(sum(values) for values in sums.values())
        expected = {
            "vr": sum(sums["vr"]) / len(preserved),
            "vc": sum(sums["vc"]) / len(dropped),
            "rt": sum(sums["rt"]) / len(preserved),
            "ct": sum(sums["ct"]) / len(dropped),
            "vt": sum(sums["vt"]),
            "ww": rest / (len(pairs) - sum(len(values) for values in sums.values())),
        }
        assert found.flow[layer] == pytest.approx([expected[name] for name in FLOWS], rel=1e-4, abs=1e-9)


def test_entropy_falls_and_the_image_gains_in_the_layer_after_the_first_cut():
    # Proposition 1 where it is exact: the first layer after a cut, on rows whose scores are still nearly the dense
    # ones.
    model, parts, inputs = setting(text=24)
    with float64_throughout(), torch.inference_mode():
        pruned = attended(model, parts, inputs, PROTECT, schedule(0.3))
        dense = attended(model, parts, inputs, PROTECT, split=pruned)
    assert pruned.entropy[0] == dense.entropy[0]
    assert (pruned.entropy[1:] < dense.entropy[1:]).all()
    assert (pruned.visual[1:] > dense.visual[1:]).all()
    assert torch.equal(dense.pruned, pruned.pruned) and dense.flow is None


def test_the_model_is_unchanged_afterwards():
    model = tiny.model(FAMILY, fresh=True)
    inputs = tiny.inputs(FAMILY, text=14)
    before = model(**inputs).logits
    attended(model, identify(model, "").parts, inputs, PROTECT, schedule(), answer=7)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.get_decoder().config._attn_implementation == "sdpa"
    assert torch.equal(model(**inputs).logits, before)


def test_depth_is_scaled_from_32_layers_and_random_keeps_the_same_counts():
    spec = identify(tiny.model(FAMILY, layers=8), "").spec
    chosen = pruning(spec, 0.3, 2, of_layers=10)
    assert [stage.last for stage in chosen.stages] == [1, 2, 8]  # 10 of 32 are 2.5 of 8
    shares = [stage.selects[0].keep.fraction for stage in chosen.stages if stage.selects]
    assert math.prod(shares) == pytest.approx(0.7)
    random = pruning(spec, 0.3, 2, rank_by="random")
    assert [s.rank_by for s in random.selects] == ["random", "random"]
    assert [s.keep for s in random.selects] == [s.keep for s in chosen.selects]


def test_pruning_elsewhere_is_the_same_pruning_some_layers_later():
    spec = identify(tiny.model(FAMILY, layers=8), "").spec
    first = pruning(spec, 0.3, 2)
    for depth, start in ((0.5, 2), (1.0, 5)):  # two of eight layers prune, and one must follow
        found = pruning(spec, 0.3, 2, depth=depth)
        assert [stage.last for stage in found.stages] == [start, start + 1, start + 2, 8]
        assert found.selects == first.selects


def test_what_stays_by_place_and_by_kind():
    kept = np.array([[1] * 20, [1, 0] * 10, [0] * 18 + [1, 1]], bool)
    assert kept_by_place(kept).tolist() == [[1.0] * 10, [0.5] * 10, [0.0] * 9 + [1.0]]
    assert np.isnan(kept_by_place(kept[:, :4])).sum() == 3 * 6, "four tokens are in four intervals"
    words = {1: "cat", 2: " dog", 3: "7", 4: ".", 5: "don't", 6: " "}
    assert [kind_of(words[token]) for token in range(1, 7)] == [
        "letters", "letters", "digits", "punctuation", "other", "other",
    ]  # fmt: skip
    some = np.array([[1, 0, 1, 0]], bool)
    found = kept_by_kind(some, [1, 2, 3, 1], lambda ids: words[ids[0]])
    assert found[0, 0] == pytest.approx(1 / 3) and found[0, 1] == 1 and np.isnan(found[0, 2:]).all()


def test_thirds_by_object_size():
    sizes = np.array([4.0, 0.0, 9.0, 1.0, 2.0, 8.0, 5.0])
    right = np.array([[1, 0], [1, 1], [1, 1], [0, 0], [0, 1], [1, np.nan], [1, 0]], float)
    found = by_size(sizes, right, np.arange(14.0).reshape(7, 2))
    assert {name: (one["samples"], one["largest"]) for name, one in found.items()} == {
        "small": (2, 2.0), "medium": (2, 5.0), "large": (2, 9.0),
    }  # fmt: skip
    assert [entry["value"] for entry in found["small"]["right"]] == [0.0, 0.5]
    assert [entry["n"] for entry in found["large"]["right"]] == [2, 1]
    assert found["medium"]["visual_dependency"]["value"] == [6.0, 7.0]  # samples 0 and 6
    assert by_size(np.array([0.0, 3.0, 3.0, 4.0]), right[:4], right[:4]) is None


class Encoder:
    """Stands in for a processor: words are token ids, a prompt is an image, the words, and two role tokens."""

    class Tokenizer:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [int(word) for word in text.replace(".", " ").split() if word.isdigit()]}

        def decode(self, ids):
            return " ".join(str(number) for number in ids)

    tokenizer = Tokenizer()

    def __call__(self, samples):
        words = self.tokenizer(samples[0].prompt, add_special_tokens=False)["input_ids"]
        inputs = tiny.inputs(FAMILY, seed=words[-1])
        visual = (inputs["input_ids"][0] == 120).nonzero().flatten()
        prompt = inputs["input_ids"][0, : int(visual[-1]) + 1].tolist() + words + [11, 12]
        return {
            **inputs,
            "input_ids": torch.tensor([prompt]),
            "attention_mask": torch.ones(1, len(prompt), dtype=torch.long),
        }


def sample_set(answered=True, count=4):
    samples = []
    for number in range(count):
        picture = Image.new("RGB", (2, 2), (number, 0, 0))
        words = " ".join(str(20 + (7 * number + step) % 80) for step in range(5))
        samples.append(Sample((picture,), words, (str(100 + number),) if answered else (), where=f"made:{number}"))
    return SampleSet(tuple(samples), "made")


def measured(ids, samples, **settings):
    probe = ContextProbe(**{"samples": 2, "lengths": (6, 12, 18), "rates": (0.0, 0.3, 0.6), **settings})
    for number in ids:
        probe.run(Batch((number,), (samples[number],), {}, tiny.model(FAMILY), Encoder(), samples))
    return probe


def test_probe_measures_the_grid_and_merges_in_any_order():
    samples = sample_set()
    with float64_throughout(), torch.inference_mode():
        whole = measured([0, 1], samples)
        parts = [measured([1], samples), measured([0], samples)]
    parts[0].merge(parts[1])
    assert parts[0].result() == whole.result()
    values = whole.result().values
    assert values["lengths"] == [6, 12, 18] and values["judged_by"] == "first_token_accuracy"
    # Without pruning every sample agrees with itself, at every length.
    assert [row[0]["value"] for row in values["agreement"]] == [1.0, 1.0, 1.0]
    assert set(values["variants"]) == set(VARIANTS)
    # The variant ranked by the maximum is the grid's own cell at 0.3.
    assert values["variants"]["max"]["kl"]["value"] == pytest.approx([row[1] for row in values["kl"]["value"]])
    assert set(values["fit"]) == {"coefficients", "shortest", "longest", "highest", "r2"}
    assert np.asarray(values["flow"]["dense"]["S_vt"]).shape == (3, LAYERS)
    assert np.shape(values["variance"]["pruned"]["value"]) == (3, LAYERS) and values["object_sizes"] is None
    # Of 18 tokens 30 % go, one at a time; every token of this stand-in is a number.
    assert values["kept"]["kind"]["digits"]["value"][-1] == pytest.approx(round(18 * 0.7) / 18, abs=1 / 18)
    assert values["kept"]["kind"]["letters"]["value"] == [None] * LAYERS
    again = ContextProbe(samples=2, lengths=(6, 12, 18), rates=(0.0, 0.3, 0.6))
    again.table = type(whole.table).from_arrays(whole.table.arrays())
    assert again.result() == whole.result()


def test_without_answers_agreement_decides_and_two_lengths_give_no_fit():
    with float64_throughout(), torch.inference_mode():
        values = measured([0], sample_set(answered=False), lengths=(6, 12), flow=False).result().values
    assert values["judged_by"] == "agreement"
    assert values["first_token_accuracy"][0][0]["n"] == 0
    assert "2 context lengths are too few" in values["fit"]["none"]
    assert values["flow"] is None


def test_a_context_without_room_is_refused_with_the_room_there_is():
    with torch.inference_mode(), pytest.raises(InputError, match=r"Use lengths up to \d+"):
        measured([0], sample_set(), lengths=(600,))
