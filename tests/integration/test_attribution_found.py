"""What head attribution finds on models whose truth is planted, and its parts beside the papers' formulas done
literally.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from calibrate.inputs.batches import Batch
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.attribution import attribute, mean_image
from calibrate.probes.attribution.attention import image_attention, text_weights, weighted_token_attention
from calibrate.probes.attribution.forward import TextRows
from calibrate.probes.attribution.lens import _written
from calibrate.probes.attribution.parts import find_attribution_parts
from calibrate.probes.attribution.prefix import capture
from calibrate.probes.attribution.probe import AttributionProbe
from calibrate.probes.attribution.response import ImageIndependentError, Response
from calibrate.probes.attribution.tokens import text_tokens
from planner.errors import CalibrationError, InputError
from tests import tiny
from tests.float64 import float64_throughout

LAYERS, HEADS = 4, 4
OTHERS = [tiny.inputs("llava", seed=seed) for seed in range(1, 6)]


def only(*copying):
    """A model in which these (layer, head) alone write what they attend to; all others' outputs are cut off."""
    model = tiny.model("llava", fresh=True)
    for number, layer in enumerate(model.get_decoder().layers):
        weight = layer.self_attn.o_proj.weight
        size = weight.shape[1] // HEADS
        for head in range(HEADS):
            if (number, head) not in copying:
                weight.data[:, head * size : (head + 1) * size] = 0
    return model


def find(model, **settings):
    inputs = tiny.inputs("llava")
    settings = {"masks": 400, "image_masks": 200, "early_stop": False, **settings}
    with float64_throughout():
        return attribute(model, inputs, None, mean_image(model, OTHERS), **settings)


class TestPlantedHead:
    found = property(lambda self: self._found())

    @staticmethod
    def _found(cache={}):  # noqa: B006 - one attribution serves all tests of the class
        if not cache:
            cache["found"] = find(only((2, 1)))
        return cache["found"]

    def test_it_has_all_the_coefficient_and_the_others_none(self):
        # The response is x of that head exactly; the elastic net shrinks 1 by about alpha / var(x) = 5e-4 / 0.19.
        coefficients = self.found.coefficients
        assert np.unravel_index(coefficients.argmax(), coefficients.shape) == (2, 1)
        assert coefficients[2, 1] == pytest.approx(1 - 5e-4 / 0.1875, abs=1e-3)
        assert np.abs(np.delete(coefficients.ravel(), 2 * HEADS + 1)).max() < 1e-3
        assert self.found.fit.r2 > 0.999 and self.found.fit.pearson > 0.999

    def test_one_head_suffices_and_ablating_it_alone_takes_everything(self):
        curves = self.found.curves
        assert (curves["attribution"].faithful_heads, curves["attribution"].complete_heads) == (1, 1)
        assert (curves["causal"].faithful_heads, curves["causal"].complete_heads) == (1, 1)
        assert curves["random"].faithful_heads > 1
        assert self.found.single_head[2, 1] == pytest.approx(1)
        assert self.found.needed.sum() == 1 and self.found.needed[2, 1]

    def test_the_image_reaches_the_last_row_which_alone_suffices(self):
        # The planted head is the only one that moves anything between rows, so only what the last row reads counts.
        effects = self.found.text.effects
        assert effects[-1] == pytest.approx(1)
        assert np.abs(effects[:-1]).max() < 1e-9
        assert self.found.text.receives.tolist() == [False] * (len(effects) - 1) + [True]
        assert self.found.text.sufficient == pytest.approx(1)

    def test_the_logit_lens_reads_the_planted_head_first(self):
        assert (self.found.words[0].layer, self.found.words[0].head) == (2, 1)
        assert len(self.found.words) == 5 and len(self.found.words[0].tokens) == 10

    def test_what_else_it_says(self):
        assert self.found.predicted and self.found.mean_grid == "equal"
        heads, rows = LAYERS * HEADS, len(self.found.text.effects)
        # masks, image masks; all and none intact; single heads; 3 + 5 orders, both curves; rows blocked, none, all
        # but the last.
        assert self.found.forwards == 400 + 200 + 2 + heads + 8 * 2 * (heads + 1) + rows + 2


def test_heads_that_relay_make_early_text_rows_receive():
    # Layer 1 writes the image into every row and layer 3 carries it on, so blocking other rows than the last matters
    # too.
    model = only(*((layer, head) for layer in (1, 3) for head in range(HEADS)))
    parts, inputs = find_attribution_parts(model), tiny.inputs("llava")
    with float64_throughout():
        mean = mean_image(model, OTHERS)
        rows = TextRows(parts, capture(model, parts, inputs), mean, (mean.grid,))
        effect = rows.logits(rows.uniform(True)) - rows.logits(rows.uniform(False))
        respond = Response(rows, int(effect.argmax()))
        relayed = text_tokens(respond, np.ones(LAYERS * HEADS, bool), rows=7)
        direct = text_tokens(respond, np.arange(LAYERS * HEADS) >= 3 * HEADS, rows=7)
    assert np.abs(relayed.effects[:-1]).max() > 1e-2
    assert np.abs(direct.effects[:-1]).max() < 1e-9


def test_image_tokens_that_are_seen_alone_carry_it():
    # Only two visual tokens differ from the mean image: the regression over tokens must name them.
    model = only((2, 1))
    inputs = tiny.inputs("llava")
    parts = find_attribution_parts(model)
    with float64_throughout():
        mean = mean_image(model, [inputs], parts)
        seen = capture(model, parts, inputs)
        keys, values = [key.clone() for key in mean.keys], [value.clone() for value in mean.values]
        weights = text_weights(seen.layers[2])[1, -1, seen.visual]
        carrying = weights.topk(2).indices.tolist()
        generator = torch.Generator().manual_seed(0)
        for value in values:
            value[:, carrying] += 2 * torch.randn(value[:, carrying].shape, generator=generator, dtype=value.dtype)
        planted = type(mean)(tuple(keys), tuple(values), 1, mean.grid)
        found = attribute(model, inputs, None, planted, masks=200, image_masks=400, early_stop=False)
    coefficients = found.image.fit.coefficients
    assert sorted(np.argsort(-np.abs(coefficients))[:2].tolist()) == sorted(carrying)
    assert np.abs(np.delete(coefficients, carrying)).max() < 0.1 * np.abs(coefficients).max()
    assert found.image.fit.r2 > 0.9


def test_attention_weights_are_those_of_eager_attention():
    # float64 eager attention of the model itself is the literal source of eq. 10 and eq. 13.
    model = tiny.model("llava", attn="eager")
    inputs = tiny.inputs("llava")
    parts = find_attribution_parts(model)
    with float64_throughout(), torch.no_grad():
        seen = capture(model, parts, inputs)
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    visual = seen.visual.tolist()
    generator = np.random.default_rng(0)
    heads, rows = generator.random((LAYERS, HEADS)), generator.random(seen.text_rows)
    expected, total = np.zeros((LAYERS, HEADS)), np.zeros(len(visual))
    for layer, table in enumerate(attentions):
        for head in range(HEADS):
            for row in range(seen.text_rows):
                for number, column in enumerate(visual):
                    weight = float(table[0, head, seen.start + row, column])
                    expected[layer, head] += weight / seen.text_rows
                    total[number] += heads[layer, head] * rows[row] * weight
    assert image_attention(seen) == pytest.approx(expected, abs=1e-12)
    assert weighted_token_attention(seen, heads, rows) == pytest.approx(total, abs=1e-12)


def test_the_heads_writings_add_up_to_the_attention_output():
    model = tiny.model("llava")
    inputs = tiny.inputs("llava")
    parts = find_attribution_parts(model)
    outputs = []
    hook = parts.attentions[1].register_forward_hook(lambda _m, _a, output: outputs.append(output[0][0, -1]))
    with float64_throughout(), torch.no_grad():
        seen = capture(model, parts, inputs)
        hook.remove()
        written = sum(_written(parts, seen, 1, head) for head in range(HEADS))
    assert torch.allclose(written, outputs[0], atol=1e-12)


def test_an_answer_that_ignores_the_image_is_refused():
    with pytest.raises(ImageIndependentError, match="sample deaf does not rest on its image"):
        find(only(), sample="deaf")


def test_a_token_outside_the_vocabulary_is_refused():
    model = tiny.model("llava")
    with float64_throughout(), pytest.raises(InputError, match="outside the vocabulary"):
        attribute(model, tiny.inputs("llava"), 10_000, mean_image(model, OTHERS))


class Tokenizer:
    """Token ids, written as numbers."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [int(text)] if text.strip().isdigit() else []}

    def decode(self, ids):
        return " ".join(map(str, ids))


class Encoder:
    """Stands in for a processor: a sample's prompt is the seed of its inputs; answers are token ids."""

    tokenizer = Tokenizer()

    def __call__(self, samples):
        return tiny.inputs("llava", seed=int(samples[0].prompt))


def sample_set(count, wrong=()):
    model = tiny.model("llava")
    samples = []
    for number in range(count):
        answer = int(model(**tiny.inputs("llava", seed=number)).logits[0, -1].argmax())
        answer += 1 if number in wrong else 0
        picture = Image.new("RGB", (2, 2), (number, 0, 0))
        samples.append(Sample((picture,), str(number), (str(answer),), where=f"made:{number}"))
    return SampleSet(tuple(samples), "made")


def probe_of(ids, samples, **settings):
    probe = AttributionProbe(samples=3, masks=40, image_masks=40, mean_images=2, **settings)
    probe.run(Batch(tuple(ids), tuple(samples[i] for i in ids), {}, tiny.model("llava"), Encoder(), samples))
    return probe


def test_probe_in_any_order_and_any_parts_gives_one_result():
    samples = sample_set(6, wrong=(1,))
    with float64_throughout(), torch.inference_mode():
        whole = probe_of([0, 1, 2], samples)
        parts = [probe_of([number], samples) for number in (2, 0, 1)]
        for other in parts[1:]:
            parts[0].merge(other)
    assert parts[0].result() == whole.result()
    found = whole.result()
    assert found.n == 3
    assert found.values["attributed"] == 2 and found.values["answered_wrongly"] == 1
    assert np.asarray(found.values["coefficients"]["value"]).shape == (LAYERS, HEADS)
    for order in ("attribution", "attention", "causal", "random"):
        curve = found.values["curves"][order]
        assert np.asarray(curve["faithfulness"]["value"])[[0, -1]] == pytest.approx([0, 1], abs=1e-9)
        assert np.asarray(curve["completeness"]["value"])[[0, -1]] == pytest.approx([1, 0], abs=1e-9)
    assert set(found.values["heads_needed"]["faithfulness > 0.8"]) == {"attribution", "attention", "causal", "random"}
    assert all(word.isdigit() for one in found.values["words"] for word in one["words"])
    prompts = {str(one) for number in (0, 2) for one in tiny.inputs("llava", seed=number)["input_ids"][0].tolist()}
    assert {one["token"] for one in found.values["text_tokens"]} <= prompts
    assert sum(one["occurrences"] for one in found.values["text_tokens"]) >= 2


def test_probe_rows_survive_the_state():
    samples = sample_set(5)
    with float64_throughout(), torch.inference_mode():
        probe = probe_of([0, 1], samples)
    again = AttributionProbe(samples=3, masks=40, image_masks=40, mean_images=2)
    again.table = type(probe.table).from_arrays(probe.table.arrays())
    assert again.result() == probe.result()


def test_probe_without_other_samples_for_the_mean_is_refused():
    samples = sample_set(3)
    with (
        float64_throughout(),
        torch.inference_mode(),
        pytest.raises(CalibrationError, match="none is left for the mean image"),
    ):
        probe_of([0], samples)
