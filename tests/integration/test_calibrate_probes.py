"""Each probe against a literal, slow computation on a tiny model, and against truths planted in it."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.base import Capture
from calibrate.probes.encoder_sinks import EncoderSinksProbe
from calibrate.probes.influence import NEVER, InfluenceProbe, suggest
from calibrate.probes.masking import CURVES, MaskingProbe, contradictions
from calibrate.probes.prompt_shape import PromptLengthsProbe
from calibrate.probes.sink_masking import SinkMaskingProbe
from calibrate.probes.sinks import SinksProbe
from calibrate.probes.sparsity import SparsityProbe
from calibrate.probes.stats import proportion
from calibrate.probes.value_norms import ValueNormsProbe
from planner.errors import UnsupportedModelError
from planner.profile import ProbeResult
from planner.runtime import observe
from tests import tiny
from tests.float64 import float64_throughout

LAYERS, BATCH, SYSTEM, TEXT = 6, 3, 3, 7


@pytest.fixture(autouse=True)
def _precise():
    with float64_throughout(), torch.inference_mode():
        yield


def model(fresh=False):
    return tiny.model("llava", layers=LAYERS, fresh=fresh)


def inputs(**changes):
    return tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT, left_pad=2, **changes)


def measure(probes, built, given=None, ids=range(BATCH)):
    given = inputs() if given is None else given
    with observe(built, lambda view: [p.update(Capture(view, LAYERS, ids)) for p in probes]):
        built(**given)
    return probes


def literal(built, sample):
    """One sample alone, no padding: last-row attention ``[L, H, n]``, values ``[L, Hkv, n, dh]``, which are visual."""
    alone = tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT, left_pad=2, only=sample)
    values = []
    layers = built.get_decoder().layers
    with ExitStack() as stack:
        for layer in layers:
            hook = layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out[0]))
            stack.callback(hook.remove)
        before = built.config._attn_implementation
        built.set_attn_implementation("eager")
        stack.callback(built.set_attn_implementation, before)
        found = built(**alone, output_attentions=True)
    attention = torch.stack([weights[0, :, -1] for weights in found.attentions])
    head = layers[0].self_attn.head_dim
    value = torch.stack([v.view(v.shape[0], -1, head).transpose(0, 1) for v in values])
    return attention, value, (alone["input_ids"][0] == built.config.image_token_id).numpy()


def zeroed(attention, value, token):
    """VisiPruner eq. 6-8 by hand in one layer: L2 change and cosine without one token's weights; norm of the output."""
    heads = attention.shape[0]
    repeated = value.repeat_interleave(heads // value.shape[0], dim=0)
    full = torch.cat([attention[h] @ repeated[h] for h in range(heads)])
    without = attention.clone()
    without[:, token] = 0
    changed = torch.cat([without[h] @ repeated[h] for h in range(heads)])
    return (full - changed).norm().item(), (full @ changed / full.norm() / changed.norm()).item(), full.norm().item()


@pytest.mark.parametrize("exit_cos", [0.995, 0.999])
def test_influence_is_the_papers_procedure_token_by_token(exit_cos):
    thresholds, keep_l2, shares = (0.995, 0.98, 0.9), 0.3, (0.02, 0.2)
    (probe,) = measure([InfluenceProbe(thresholds, exit_cos, keep_l2, shares)], model())
    for sample in range(BATCH):
        attention, value, visual = literal(model(), sample)
        tokens = np.flatnonzero(visual)
        table = np.array([[zeroed(attention[k], value[k], t) for t in tokens] for k in range(LAYERS)])
        l2, cos, norm = table[..., 0], table[..., 1], table[:, 0, 2]
        row = {
            name: probe.table.rows(name)[sample]
            for name in ("min_cos", "over_l2", "output_norm", "filter", "kept", "exit")
        }
        np.testing.assert_allclose(row["min_cos"], cos.min(axis=1), atol=1e-10)
        np.testing.assert_allclose(row["output_norm"], norm, atol=1e-10)
        assert row["over_l2"].tolist() == [(layer >= keep_l2).sum() for layer in l2]
        for t, threshold in enumerate(thresholds):
            start = next((k for k in range(LAYERS) if any(c < threshold for c in cos[k])), NEVER)
            assert row["filter"][t] == start
            if start == NEVER:
                continue
            for r, keeps in enumerate([l2[start] >= keep_l2, *(l2[start] / norm[start] >= s for s in shares)]):
                kept = [j for j in range(len(tokens)) if keeps[j]]
                left, quiet = NEVER, 0
                for k in range(start + 1, LAYERS):
                    quiet = 0 if any(cos[k][j] < exit_cos for j in kept) else quiet + 1
                    if quiet == 2 and kept:
                        left = k
                        break
                assert (row["kept"][t, r], row["exit"][t, r]) == (len(kept), left)


def test_thresholds_are_those_of_the_samples_that_propose():
    """Of one sample: the quantile itself, which keeps what is above it; of two: the mean of theirs."""
    seen = []
    for sample in range(2):
        attention, value, visual = literal(model(), sample)
        tokens = np.flatnonzero(visual)
        table = np.array([[zeroed(attention[k], value[k], t) for t in tokens] for k in range(LAYERS)])
        seen.append(np.quantile(table[..., 0] / table[..., 2], 0.75, axis=1))
    one, two, none = (measure([InfluenceProbe(proposing=n)], model())[0].summary()["adaptive"] for n in (1, 2, 0))
    np.testing.assert_allclose(one["0.25"]["threshold"], seen[0], rtol=1e-6)
    np.testing.assert_allclose(one["0.25"]["kept"], 0.25, atol=1e-6)
    np.testing.assert_allclose(two["0.25"]["threshold"], np.mean(seen, axis=0), rtol=1e-6)
    assert all(most >= kept for most, kept in zip(two["0.05"]["most"], two["0.05"]["kept"], strict=True))
    assert list(one) == ["0.01", "0.05", "0.25"] and none == {}


@contextmanager
def image_read_only_in(built, first, last):
    """Values of visual tokens are nothing outside layers [first, last)."""
    visual = (inputs()["input_ids"] == built.config.image_token_id)[..., None]
    with ExitStack() as stack:
        for index, layer in enumerate(built.get_decoder().layers):
            if not first <= index < last:
                hook = layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: out.masked_fill(visual, 0))
                stack.callback(hook.remove)
        yield


def test_planted_window_is_found_by_influence():
    with image_read_only_in(model(), 2, 4):
        (probe,) = measure([InfluenceProbe(keep_l2=1e-3)], model())
    values = probe.result().values
    stage = values["stages"]["0.995"]["absolute"]
    assert stage["filter"]["quantiles"] == {"0.5": 2, "0.75": 2, "0.9": 2, "0.95": 2}
    # Layers 4 and 5 are the first two without influence: the second of them is the exit.
    assert stage["exit"]["quantiles"]["0.5"] == 5
    assert (stage["never_filtered"], stage["kept_none"], stage["never_exited"]) == (0, 0, 0)
    assert values["min_cos"]["value"][0] == pytest.approx(1) and values["min_cos"]["value"][2] < 0.99


def test_samples_that_never_trigger_keep_none_or_never_exit_are_counted():
    with image_read_only_in(model(), 9, 9):
        (silent,) = measure([InfluenceProbe()], model())
    assert silent.result().values["stages"]["0.995"]["absolute"]["never_filtered"] == BATCH
    (greedy,) = measure([InfluenceProbe(keep_l2=1e9)], model())
    assert greedy.result().values["stages"]["0.995"]["absolute"]["kept_none"] == BATCH
    (stays,) = measure([InfluenceProbe(exit_cos=0.999999, keep_l2=1e-6)], model())
    assert stays.result().values["stages"]["0.995"]["absolute"]["never_exited"] == BATCH


def test_suggestions_lean_to_the_safe_side():
    filters, kept = np.array([4, 6, 8, NEVER]), np.array([3, 5, 9, 0])
    exits = np.array([9, 10, NEVER, NEVER])
    # Never filtered asks for 0, never exited for all 12 layers; quantiles of (0,4,6,8), (0,3,5,9), (9,10,12,12).
    assert suggest(filters, kept, exits, 12)["0.5"] == {"filter": 5, "keep": 4, "exit": 11}
    assert suggest(filters, kept, exits, 12)["0.75"] == {"filter": 3, "keep": 6, "exit": 12}


def planted_sinks(built, places, size=60.0):
    """Make ``{(dimension, column)}`` massive at the input of every layer."""

    def hook(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        for dim, column in places:
            hidden[:, column, dim] = size
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    stack = ExitStack()
    for layer in built.get_decoder().layers:
        stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
    return stack


def test_planted_sink_dimensions_tokens_and_shares_are_found():
    built, given = model(), tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT)
    # Column 0 is the first token, 3 to 18 are visual.
    with planted_sinks(built, [(7, 0), (19, 5), (19, 9)]):
        (probe,) = measure([SinksProbe(tau=5.0, rho_sink=0.05)], built, given)
        weights = []
        with observe(built, lambda view: weights.append(view.weights()[:, :, 0])):
            built(**given)
    values = probe.result().values
    assert values["sink_dims"] == [7, 19]
    assert values["sink_tokens"]["first token"]["value"] == [0, 0, 1, 1, 1, 1], "the first two layers are left out"
    assert values["sink_tokens"]["visual"]["value"] == [0, 0, 2, 2, 2, 2]
    assert values["sink_tokens"]["text"]["value"] == [0] * LAYERS
    expected, centric = [], []
    for layer, head in itertools.product(range(LAYERS), range(4)):
        hits = images = 0
        for sample in range(BATCH):
            row = weights[layer][sample, head]
            mass = sum(row[j].item() for j in range(3, 19))
            share = (row[5] + row[9]).item() / mass if layer >= 2 else 0.0
            hits += mass >= 0.2 and share >= 0.05
            images += mass >= 0.2 and 1 - share >= 0.8
        expected += [(layer, head, hits)] if hits >= BATCH / 2 else []
        centric += [(layer, head, images)] if images >= BATCH / 2 else []
    heads = values["sink_heads"]["heads"]
    assert [(h["layer"], h["head"], round(h["samples"]["value"] * BATCH)) for h in heads] == expected
    heads = values["image_centric_heads"]["rho 0.8"]["heads"]
    assert [(h["layer"], h["head"], round(h["samples"]["value"] * BATCH)) for h in heads] == centric and centric


def test_a_dimension_that_is_large_everywhere_is_no_sink():
    built, given = model(), tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT)
    columns = range(given["input_ids"].shape[1])
    with planted_sinks(built, [(3, column) for column in columns]):
        (probe,) = measure([SinksProbe(tau=5.0)], built, given)
    assert probe.result().values["sink_dims"] == []


def test_without_massive_activations_there_are_no_sinks():
    (probe,) = measure([SinksProbe(tau=5.6)], model())
    values = probe.result().values
    assert values["sink_dims"] == [] and values["samples_with_visual_sinks"]["value"] == 0


def test_sparsity_and_value_norms_against_loops():
    sparsity, norms, lengths = measure([SparsityProbe(), ValueNormsProbe(), PromptLengthsProbe()], model())
    for sample in range(BATCH):
        attention, value, visual = literal(model(), sample)
        mean_attention = attention.mean(dim=1).numpy()
        token_norm = value.norm(dim=-1).mean(dim=1).numpy()
        first = int(np.flatnonzero(visual)[0])
        segments = [
            range(first),
            [j for j in range(len(visual)) if visual[j]],
            [j for j in range(first, len(visual)) if not visual[j]],
        ]
        assert lengths.table.rows("tokens")[sample].tolist() == [len(s) for s in segments]
        for layer in range(LAYERS):
            ranked = sorted(segments[1], key=lambda j: -mean_attention[layer, j])
            top = ranked[: -(-len(ranked) // 4)]
            share = sum(mean_attention[layer, j] for j in top) / sum(mean_attention[layer, j] for j in segments[1])
            assert sparsity.table.rows("top_share")[sample][layer] == pytest.approx(share, abs=1e-10)
            for s, segment in enumerate(segments):
                best = sorted(segment, key=lambda j: -mean_attention[layer, j])[: -(-len(segment) // 4)]
                assert norms.table.rows("all")[sample][layer, s] == pytest.approx(
                    token_norm[layer, segment].mean(), abs=1e-10
                )
                assert norms.table.rows("top")[sample][layer, s] == pytest.approx(
                    token_norm[layer, best].mean(), abs=1e-10
                )


def test_merge_in_any_order_gives_the_same_result():
    parts = [
        measure(
            [InfluenceProbe(), SinksProbe(tau=2.5), SparsityProbe()], model(), inputs(seed=s), range(3 * s, 3 * s + 3)
        )
        for s in range(3)
    ]
    results = []
    for order in itertools.permutations(range(3)):
        merged = [type(probe)(**probe.settings) for probe in parts[0]]
        for k in order:
            for mine, other in zip(merged, parts[k], strict=True):
                mine.merge(other)
        results.append([probe.result().model_dump() for probe in merged])
    assert results[0][0]["n"] == 9
    assert all(result == results[0] for result in results)


class NoTokenizer:
    """Decodes tokens to their numbers; enough for probes that compare answers."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) % 100 for c in text]}


class Decoder:
    tokenizer = NoTokenizer()

    def decode(self, ids):
        return [" ".join(map(str, row.tolist())) for row in ids]


def batch_of(built, given):
    samples = tuple(Sample((), "x") for _ in range(BATCH))
    return Batch(tuple(range(BATCH)), samples, given, built, Decoder(), SampleSet(samples, "test"))


def test_masking_finds_the_layer_after_which_the_image_is_ignored():
    built = model(fresh=True)
    for layer in built.get_decoder().layers[4:]:
        layer.self_attn.o_proj.weight.zero_()  # attention of layers 4 and 5 reaches nobody
    probe = MaskingProbe(samples=BATCH, answer_tokens=3)
    probe.run(batch_of(built, inputs()))
    values = probe.result().values
    kl = dict(zip(values["masked_from"]["k"], values["masked_from"]["kl"]["value"], strict=True))
    assert all(kl[k] < 1e-12 for k in (4, 5)) and all(kl[k] > 1e-6 for k in range(4))
    assert [p["value"] for p in values["masked_from"]["agreement"]][4:] == [1, 1]
    skipped = values["skipped"]["kl"]["value"]
    assert all(skipped[k] > 1e-6 for k in range(4)) and max(skipped[4:]) < 1e-12
    assert values["masked_before"]["kl"]["value"][5] == pytest.approx(
        values["masked_from"]["kl"]["value"][0], abs=1e-10
    )
    assert set(values) == {*CURVES, "uncached", "dense_first_token_accuracy"}
    assert values["dense_first_token_accuracy"]["n"] == 0, "samples without answers have no accuracy"
    ranges = dict(zip(map(tuple, values["uncached"]["ranges"]), values["uncached"]["agreement"], strict=True))
    assert ranges[4, LAYERS]["value"] == 1


def test_masking_contradicts_influence_in_words():
    def point(hits, n=100):
        return proportion(hits, n)

    curves = {
        "alone_before": {"k": [1, 2, 3], "agreement": [point(100), point(80), point(60)]},
        "masked_from": {"k": [0, 1, 2], "agreement": [point(10), point(90), point(100)]},
    }
    masking = ProbeResult(n=100, settings={}, values=curves)
    suggested = {
        "0.5": {"filter": 3, "keep": 5, "exit": 1},
        "0.75": {"filter": 2, "keep": 8, "exit": 2},
        "0.9": {"filter": 2, "keep": 9, "exit": 2},
        "0.95": {"filter": 0, "keep": 9, "exit": 3},  # nothing is hidden before layer 0, nothing gone after the last
    }
    influence = ProbeResult(n=100, settings={}, values={"suggested": suggested})
    keeps = "keeps only {} of the dense model's answers".format
    assert contradictions(masking, influence, limit=0.98) == [
        f"influence suggests filter layer 3 for a share of 0.5 of the samples, but hiding the image before layer 3 "
        f"{keeps('0.600')}",
        f"influence suggests filter layer 2 for a share of 0.75 or 0.9 of the samples, but hiding the image before "
        f"layer 2 {keeps('0.800')}",
        f"influence suggests exit layer 1 for a share of 0.5 of the samples, but dropping it from layer 1 "
        f"{keeps('0.900')}",
    ]
    # 80 of 100 are compatible with 0.86 (Wilson's upper end is 0.867), 60 of 100 are not.
    assert [note.split(" for ")[0] for note in contradictions(masking, influence, limit=0.86)] == [
        "influence suggests filter layer 3"
    ]
    assert contradictions(masking, influence, limit=0.5) == []
    assert contradictions(ProbeResult(n=0, settings={}, values={}), influence, limit=0.98) == []


def test_hiding_sinks_and_hiding_as_many_others():
    built, given = model(), tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT)
    with planted_sinks(built, [(19, 5), (19, 9)]):
        probe = SinkMaskingProbe(samples=BATCH, tau=5.0)
        probe.run(batch_of(built, given))
        # Literally: columns 5 and 9 are closed for the text rows 19.. by a 4-D mask.
        length = given["input_ids"].shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[19:, [5, 9]] = False
        dense = built(**given).logits[:, -1].log_softmax(-1)
        closed = (
            built(**{**given, "attention_mask": mask[None, None].expand(BATCH, -1, -1, -1)})
            .logits[:, -1]
            .log_softmax(-1)
        )
    assert probe.table.column("sinks")[:, 0].tolist() == [2] * BATCH
    expected = (dense.exp() * (dense - closed)).sum(-1)
    np.testing.assert_allclose(probe.table.column("sinks_kl")[:, 0], expected, atol=1e-9)
    assert (probe.table.column("random_kl") != probe.table.column("sinks_kl")).all()
    plain = SinkMaskingProbe(samples=BATCH, tau=5.65)
    plain.run(batch_of(model(), given))
    assert plain.result().values["samples_without"] == BATCH


def test_encoder_sinks_are_long_features_and_are_hidden_like_any_tokens():
    built, given = model(), tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT)
    projector = built.model.multi_modal_projector
    lengths = []

    def lengthen(module, args):
        features = args[0].clone()
        features[:, [2, 9]] *= 5.0  # of 16 patches of each picture
        lengths.append(features.norm(dim=-1))
        return (features,)

    def without_sinks(*columns):
        length = given["input_ids"].shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[19:, list(columns)] = False
        closed = {**given, "attention_mask": mask[None, None].expand(BATCH, -1, -1, -1)}
        return built(**closed).logits[:, -1].log_softmax(-1)

    hook = projector.register_forward_pre_hook(lengthen)
    try:
        with planted_sinks(built, [(19, 5), (19, 7)], size=600.0):  # columns of patches 2 and 4
            probe = EncoderSinksProbe(samples=BATCH, norm_multiple=3.0)
            probe.run(batch_of(built, given))
            dense = built(**given).logits[:, -1].log_softmax(-1)
            closed = without_sinks(SYSTEM + 2, SYSTEM + 9)
    finally:
        hook.remove()
    # Of 16 tokens two are long, two are the decoder's sinks, and one is both.
    assert probe.table.column("tokens").tolist() == [[16, 2, 2, 1]] * BATCH
    expected = (dense.exp() * (dense - closed)).sum(-1)
    np.testing.assert_allclose(probe.table.column("long_kl")[:, 0], expected, atol=1e-9)
    assert (probe.table.column("random_kl") != probe.table.column("long_kl")).all()
    ratios = [(row.max() / row.sort().values[7]).item() for row in lengths[0]]  # the lower median of 16
    np.testing.assert_allclose(probe.table.column("longest")[:, 0], ratios)
    values = probe.result().values
    assert values["decoder_dims"] == [19] and values["encoder_dims"][0] == 19, "one of the long tokens is a sink too"
    plain = EncoderSinksProbe(samples=BATCH, norm_multiple=50.0)
    plain.run(batch_of(model(), given))
    assert plain.result().values["samples_without"] == BATCH
    assert plain.result().values["long"]["agreement"]["value"] is None


def test_an_encoder_whose_features_are_merged_is_refused_by_name():
    probe = EncoderSinksProbe(samples=1)
    with pytest.raises(UnsupportedModelError, match="no projector that takes"):
        probe.run(batch_of(tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl")))
