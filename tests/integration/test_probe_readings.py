"""Logit lens, instructions, curves and places of attention, against literal computations on a tiny model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from calibrate.inputs.batches import Batch
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.base import Capture
from calibrate.probes.instructions import InstructionsProbe, other_instruction
from calibrate.probes.lens import LensProbe, settling_layers
from calibrate.probes.sparsity import CELLS, CURVE, SparsityProbe, coarse
from planner.errors import InputError
from planner.runtime import observe
from tests import tiny
from tests.float64 import float64_throughout

LAYERS, BATCH, SYSTEM, TEXT, SIDE = 5, 3, 3, 7, 4


@pytest.fixture(autouse=True)
def _precise():
    with float64_throughout(), torch.inference_mode():
        yield


def model():
    return tiny.model("llava", layers=LAYERS)


def inputs(**changes):
    return tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT, left_pad=2, **changes)


class Decoder:
    class tokenizer:
        @staticmethod
        def decode(ids):
            return f"<{ids[0]}>"


def attention_of(built, given):
    """Head-mean attention of the last row on the visual tokens ``[L, nv]``, of one sample without padding."""
    before = built.config._attn_implementation
    built.set_attn_implementation("eager")
    found = built(**given, output_attentions=True)
    built.set_attn_implementation(before)
    visual = given["input_ids"][0] == built.config.image_token_id
    return torch.stack([weights[0, :, -1].mean(0) for weights in found.attentions])[:, visual].numpy()


def test_the_lens_reads_each_layer_through_norm_and_output_embedding():
    built = model()
    samples = tuple(Sample((), f"question {b}") for b in range(BATCH))
    probe = LensProbe(samples=BATCH, words=4)
    probe.run(Batch(tuple(range(BATCH)), samples, inputs(), built, Decoder(), SampleSet(samples, "test")))
    tower = built.get_decoder()
    for b in range(BATCH):
        alone = tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT, left_pad=2, only=b)
        kept = []
        hooks = [layer.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out)) for layer in tower.layers]
        answer = int(built(**alone).logits[0, -1].argmax())
        for hook in hooks:
            hook.remove()
        row = {name: probe.table.rows(name)[b] for name in ("probability", "first", "spelled")}
        spelled = json.loads(row["spelled"].tobytes())
        assert spelled["answer"] == f"<{answer}>" and spelled["prompt"] == f"question {b}"
        for layer, hidden in enumerate(kept):
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            read = built.lm_head(tower.norm(hidden[0, -1])).softmax(-1)
            assert row["probability"][layer] == pytest.approx(read[answer].item(), rel=1e-4)
            assert row["first"][layer] == (int(read.argmax()) == answer)
            ranked = sorted(range(len(read)), key=lambda token, read=read: -read[token].item())[:4]
            assert spelled["layers"][layer] == [f"<{token}>" for token in ranked]
        assert row["first"][-1]
    values = probe.result().values
    assert np.shape(values["answer_probability"]["value"]) == (LAYERS,) and len(values["words"]) == LAYERS
    assert len(values["examples"]) == 2


def test_the_answer_settles_where_it_stays():
    first = np.array([[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
    assert settling_layers(first).tolist() == [2, 3, 0, 4]


def picture(shade):
    return Image.new("RGB", (2, 2), (shade, 0, 0))


def test_the_other_instruction_is_one_of_the_same_picture_if_there_is_one():
    red, blue = picture(200), picture(10)
    made = SampleSet(
        (Sample((red,), "a"), Sample((blue,), "b"), Sample((red,), "a "), Sample((red,), "c"), Sample((blue,), "a")),
        "t",
    )
    assert [other_instruction(made, number).prompt for number in range(5)] == ["c", "a", "c", "a", "b"]
    with pytest.raises(InputError, match="the same instruction"):
        other_instruction(SampleSet((Sample((red,), "a"), Sample((blue,), "a")), "t"), 0)


class Encoder(Decoder):
    """A sample's picture and prompt choose the seeds of the pixels and of the words."""

    def __call__(self, samples):
        given = [self.one(sample) for sample in samples]
        return {name: torch.cat([one[name] for one in given]) for name in given[0]}

    @staticmethod
    def one(sample):
        shade = sample.images[0].getpixel((0, 0))[0]
        pixels = tiny.inputs("llava", batch=1, system=SYSTEM, text=TEXT, seed=shade)
        words = tiny.inputs("llava", batch=1, system=SYSTEM, text=TEXT, seed=100 + int(sample.prompt))
        return {**words, "pixel_values": pixels["pixel_values"]}


def test_overlap_between_instructions_and_between_pictures():
    built, share = model(), 0.25
    samples = SampleSet((Sample((picture(1),), "1"), Sample((picture(2),), "2"), Sample((picture(1),), "3")), "test")
    probe = InstructionsProbe(samples=3, top_share=share)
    given = Encoder()(samples.samples)
    probe.run(Batch((0, 1, 2), samples.samples, given, built, Encoder(), samples))

    def tops(shade, prompt):
        scores = attention_of(built, Encoder.one(Sample((picture(shade),), prompt)))
        return [set(sorted(range(16), key=lambda j, row=row: -row[j])[:4]) for row in scores]

    # Sample, the same picture under the other instruction, and the other picture under its own.
    for number, own, told, shown in (
        (0, (1, "1"), (1, "3"), (2, "2")),
        (1, (2, "2"), (2, "3"), (1, "3")),
        (2, (1, "3"), (1, "1"), (2, "2")),
    ):
        for column, other in (("instruction", told), ("picture", shown)):
            expected = [len(a & b) / 4 for a, b in zip(tops(*own), tops(*other), strict=True)]
            assert probe.table.rows(column)[number].tolist() == expected
    values = probe.result().values
    assert values["instructions_of_the_picture"]["value"] == pytest.approx(2 / 3) and values["chance"] == 0.25
    assert len(set(values["other_instruction"]["value"])) > 1


def test_the_curve_of_attention_against_k_and_the_places():
    built = model()
    probe = SparsityProbe()
    with observe(built, lambda view: probe.update(Capture(view, LAYERS, range(BATCH)))):
        built(**inputs())
    for b in range(BATCH):
        alone = tiny.inputs("llava", batch=BATCH, system=SYSTEM, text=TEXT, left_pad=2, only=b)
        scores = attention_of(built, alone)
        curve, places = probe.table.rows("curve")[b], probe.table.rows("places")[b].reshape(LAYERS, CELLS, CELLS)
        for layer in range(LAYERS):
            ranked = sorted(scores[layer], reverse=True)
            expected = [sum(ranked[: math.ceil(share * 16 - 1e-9)]) / sum(ranked) for share in CURVE]
            np.testing.assert_allclose(curve[layer], expected, atol=1e-6)
            top = sorted(range(16), key=lambda j, layer=layer: -scores[layer, j])[:4]
            # 4 x 4 tokens in 8 x 8 cells: each token fills four.
            assert all(places[layer, y, x] == ((y // 2 * SIDE + x // 2) in top) for y in range(8) for x in range(8))
    values = probe.result().values
    assert values["curve"]["value"][0][-1] == pytest.approx(1) and np.shape(values["places"]) == (LAYERS, 8, 8)


def test_cells_take_tokens_by_the_part_that_lies_in_them():
    marked = np.zeros((1, 12 * 12))
    marked[0, 1] = 1  # the second token of the first row: columns 1 to 2 of 12, of which cell 0 ends at 1.5
    cells = coarse(marked).reshape(8, 8)
    # A cell is 1.5 by 1.5 tokens. Half the token lies in cell 0, half in cell 1, and its whole height in row 0.
    assert cells[0, 0] == pytest.approx(0.5 / 2.25) and cells[0, 1] == pytest.approx(0.5 / 2.25)
    assert cells.sum() == pytest.approx(1 / 2.25)
    assert np.isnan(coarse(np.zeros((2, 10)))).all()
    assert coarse(np.ones((1, 20 * 20))) == pytest.approx(np.ones((1, 64)))
