"""Sections of a profile: there when the probe is, sentences that follow the numbers, tables as text."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from planner.errors import PlanDigestError, PlanError
from planner.profile import ProbeResult
from planner.report.probes import SECTIONS, sections
from planner.report.probes.masking import done_from, reads_from, window
from planner.report.profile_view import describe_profile
from planner.report.section import Section, layer_names, percent, shown
from tests.unit import report_documents as made


def one(name: str, values: dict) -> Section:
    (found,) = sections(made.profile({name: values}))
    assert found.name == name
    return found


def said(name: str, values: dict) -> str:
    return " ".join(one(name, values).findings)


@pytest.mark.parametrize("names", [["flip"], ["context", "masking"], ["attribution", "flip", "sink_masking"], []])
def test_a_section_for_each_probe_that_is_there(names):
    probes = {name: made.written()[name] for name in names}
    found = [section.name for section in sections(made.profile(probes))]
    assert found == [name for name in SECTIONS if name in names]


def test_the_committed_profile_shows_its_probes():
    profile = made.committed()
    found = sections(profile)
    assert [section.name for section in found] == [name for name in SECTIONS if name in profile.probes]
    assert all(section.findings and section.about for section in found)
    # Where nothing was found there is nothing to draw.
    assert {section.name for section in found if not section.pictures} <= {"sink_masking", "encoder_sinks"}


def test_findings_do_not_depend_on_the_order_of_keys():
    """A profile in memory and the same one read from its file, where keys are sorted."""
    loaded = made.committed()

    def backwards(value):
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    probes = {
        name: ProbeResult(n=probe.n, settings=probe.settings, values=backwards(probe.values))
        for name, probe in {**loaded.probes, **made.profile(made.written()).probes}.items()
    }
    straight = loaded.model_copy(update={"probes": {**loaded.probes, **made.profile(made.written()).probes}})
    other = loaded.model_copy(update={"probes": probes})
    for a, b in zip(sections(straight), sections(other), strict=True):
        assert (a.findings, a.tables) == (b.findings, b.tables)


def test_influence_counts_samples_that_never_trigger():
    profile = made.committed()
    text = " ".join(sections(profile)[0].findings)
    assert "73 % of 256 samples" in text and "in 70 none does" in text and "layer 4 (46 %)" in text
    values = copy.deepcopy(dict(profile.probes["influence"].values))
    values["stages"]["0.995"]["absolute"]["never_filtered"] = 256
    silent = ProbeResult(n=256, settings=profile.probes["influence"].settings, values=values)
    changed = profile.model_copy(update={"probes": {"influence": silent}})
    assert "no filtering layer" in " ".join(sections(changed)[0].findings)


def test_masking_window_by_hand():
    values = made.masking()
    assert (reads_from(values, 0.98), done_from(values, 0.98)) == (2, 6)
    assert (reads_from(values, 0.69), done_from(values, 0.69)) == (3, 4)
    assert window(values, 0.69) == (3, 4)
    assert reads_from({}, 0.98) is None and done_from({}, 0.98) is None and window({}) is None
    # Agreement that falls and rises again: layers before the fall count, not after.
    falls = [1.0, 0.5, 1.0]
    dip = {"alone_before": made.curve([1, 2, 3], falls), "masked_from": made.curve([0, 1, 2], falls)}
    assert (reads_from(dip, 0.98), done_from(dip, 0.98)) == (1, 2)
    never = {"alone_before": made.curve([1], [0.1]), "masked_from": made.curve([0, 1], [0.1, 0.2])}
    assert (reads_from(never, 0.98), done_from(never, 0.98)) == (0, 2)


def test_masking_sentences():
    text = said("masking", made.masking())
    assert "before layer 2: hidden there, 100 % of the answers stay the same; hidden before layer 3, 70 %" in text
    assert "Dropped from layer 6 on, 100 % stay the same; dropped from layer 5 on, 90 %" in text
    assert "4 of 10 layers read the image: [2, 6)" in text
    values = made.masking()
    values["alone_before"] = made.curve([*range(1, 11)], [0.5] * 10)
    values["masked_from"] = made.curve([*range(10)], [0.5] * 10)
    text = said("masking", values)
    assert "read from layer 0 on" in text and "needed to the end" in text and "10 of 10 layers" in text


def test_masking_contradicts_a_suggested_layer():
    suggested = {"0.5": {"filter": 4, "keep": 2, "exit": 6}, "0.9": {"filter": 0, "keep": 5, "exit": 5}}
    profile = made.committed()
    influence = copy.deepcopy(dict(profile.probes["influence"].values)) | {"suggested": suggested}
    probes = {
        "influence": ProbeResult(n=8, settings=profile.probes["influence"].settings, values=influence),
        "masking": made.profile({"masking": made.masking()}).probes["masking"],
    }
    found = sections(profile.model_copy(update={"probes": probes}))[1].tables[0]
    # 0.5 (0.45-0.55) before layer 4, 1.0 from 6 on, 0.9 (0.85-0.95) from 5 on; 0 hides nothing.
    assert [(row[0], row[2], row[3]) for row in found.rows] == [
        ("filter 4", "0.500 (0.450-0.550)", "contradicted"),
        ("exit 6", "1.000 (0.950-1.050)", "confirmed"),
        ("exit 5", "0.900 (0.850-0.950)", "contradicted"),
    ]


def test_flip_follows_position_then_content():
    assert "position more than content in layers 0-2, and content more than position in layers 3-9" in said(
        "flip", made.flip([0.8] * 3 + [0.3] * 7, [0.3] * 3 + [0.6] * 7)
    )
    assert "position more than content in no layer" in said("flip", made.flip([0.1] * 10, [0.6] * 10))
    assert "1 of 8 samples" in said("flip", made.flip([0.1] * 10, [0.6] * 10))


def test_the_lens_says_when_the_answer_settles():
    found = one("lens", made.lens())
    text = " ".join(found.findings)
    assert "settles after layer 6.25" in text and "layer 6 for half of the samples, 7 for 95 %" in text
    assert "The largest step is layer 6, which makes it the first word in 75 % more samples." in text
    assert found.tables[0].rows[6] == ["6", "red, <b>blue</b>"]
    assert found.tables[1].title == "Most probable words: 'What colour?', answered 'red'"


def test_encoder_sinks_are_told_from_the_decoders():
    text = said("encoder_sinks", made.encoder_sinks())
    assert "2 visual tokens are encoder sinks on average (2 %), 1.5 are sinks of the decoder, and none both" in text
    assert "50 % of the first answer tokens stay" in text and "hidden 90 %" in text and "they carry meaning" in text
    assert "in dimensions 7, 9, the decoder's visual sinks in 507" in text and "3 of 8 samples" in text
    none = one("encoder_sinks", made.encoder_sinks(None))
    assert "the longest is 1.5" in none.findings[0] and not none.tables


def test_instructions_name_the_layers_that_do_not_care():
    text = said("instructions", made.instructions())
    assert "another instruction in layers 0-2: most in layer 0 (90 %), least in layer 9 (20 %; chance 10 %)" in text
    assert "leaves half of them the same in layer 0, where position decides" in text
    assert "one of the same picture in 75 % of 8 samples" in text


def test_sparsity_shows_curve_and_places_where_the_profile_has_them():
    values = copy.deepcopy(dict(made.committed().probes["sparsity"].values))
    settings = made.committed().probes["sparsity"].settings

    def shown(values):
        probe = ProbeResult(n=8, settings=settings, values=values)
        return sections(made.committed().model_copy(update={"probes": {"sparsity": probe}}))[0]

    older = shown({name: values[name] for name in ("top_quarter_share", "image_attention")})
    rows = [[0.1, 0.6, 1.0]] * 9 + [[0.55, 0.8, 1.0]]
    places = [[[0.25] * 8] * 8] * 10
    newer = shown({**values, "curve": {"shares": [0.05, 0.5, 1.0], **made.entry(rows)}, "places": places})
    assert len(newer.pictures) == len(older.pictures) + 2
    assert all(picture.draw().startswith("<svg") for picture in newer.pictures)
    assert "Half of the image attention is on 5 % of the image tokens or less in layer 9, and on 50 % in layer 0" in (
        " ".join(newer.findings)
    )


@pytest.mark.parametrize(
    ("sinks", "random", "says"),
    [
        (1.0, 0.5, "less than other tokens"),
        (0.5, 1.0, "more than other tokens"),
        (1.0, 1.0, "no difference"),
        (None, None, "nothing could be hidden"),
    ],
)
def test_sink_masking_compares_with_random(sinks, random, says):
    found = one("sink_masking", made.sink_masking(sinks, random))
    assert says in found.findings[0]
    assert bool(found.pictures) == bool(found.tables) == (sinks is not None)


def test_sinks_with_and_without_massive_dimensions():
    profile = made.committed()
    by_name = {section.name: section for section in sections(profile)}
    assert "no sink tokens" in by_name["sinks"].findings[0]
    values = copy.deepcopy(dict(profile.probes["sinks"].values))
    values["sink_dims"] = [5, 77]
    values["sink_tokens"] = {kind: made.entry([0.0, 0.0] + [2.0] * 8, 0) for kind in ("first token", "text", "visual")}
    values["sink_heads"] = {
        "heads": [{"layer": 4, "head": 1, "samples": made.entry(0.75), "sink_share": {"0.5": 0.6}}],
        "split_half_overlap": 0.5,
        "by_layer": [0.1] * 10,
    }
    probe = ProbeResult(n=8, settings=profile.probes["sinks"].settings, values=values)
    (found,) = sections(profile.model_copy(update={"probes": {"sinks": probe}}))
    text = " ".join(found.findings)
    assert "dimensions 5, 77 are massive" in text and "at most 2 on average (layer 2)" in text
    assert "1 head is a sink head" in text.lower() and "agree on 50 %" in text
    assert found.tables[-1].rows == [["layer 4, head 1", "0.750 (0.700-0.800)", "0.6"]]


def test_attribution_sentences_and_words():
    found = one("attribution", made.attribution())
    text = " ".join(found.findings)
    assert "2 of 80 heads suffice" in text and "random order it takes 30" in text
    assert "the strongest is head 3 of layer 4 (0.90)" in text
    assert "81 % of the held-out variance" in text and "no proxy" in text
    assert "fall into 1 that 100 % of the samples use on average, and 2 used by 33 %" in text
    assert ["layer 4, head 3", "3", "red, <b>blue</b>"] in found.tables[3].rows
    assert found.tables[4].rows == [["colour", "0.750", "3"]]
    assert all("over image tokens" not in row[0] for row in found.tables[0].rows), "null is left out"
    strong = made.attribution() | {"attention_correlation": made.entry(-0.8)}
    assert "a good proxy" in said("attribution", strong)
    none = {"attributed": 0, "answered_wrongly": 7, "image_independent": 1}
    assert one("attribution", none).findings == [
        "None of 8 samples were attributed; 7 answered wrongly, 1 answered without needing the image."
    ]


def test_context_says_what_stays_where_it_is_pruned_and_how_sizes_fare():
    text = said("context", made.context())
    assert "Between 60 % (tenth 1) and 90 % (tenth 10) of the context stay" in text
    assert "by kind 80 % of letters, 50 % of digits." in text
    assert "variance of the weights in 75 %" in text
    assert (
        "95 % of the dense first tokens stay in the middle and 100 % in the deepest, against 90 % in the first" in text
    )
    assert "small 50 % and 40 %; medium 75 % and 65 %; large 100 % and 90 %." in text
    table = one("context", made.context()).tables[-1]
    assert table.rows[0][:2] == ["small, up to 10 (4 samples)", "0.500 (0.450-0.550)"]
    newer = ("kept", "variance", "variance_rises", "object_sizes")
    older = {name: value for name, value in made.context().items() if name not in newer}
    assert "tenth" not in said("context", older)


def test_context_sentences_and_fit():
    found = one("context", made.context())
    text = " ".join(found.findings)
    assert "30 % beside 100 tokens of context and 60 % beside 300" in text
    assert "better than dropping at random here: 90 % against 70 %" in text
    assert "50 % of its attention on the image beside 100 tokens of context and 20 % beside 300; pruned, 30 %" in text
    assert [row[1:] for row in found.tables[0].rows] == [["0.3", "0.3"], ["0.3", "0.3"], ["0.6", "0.6"]]
    values = made.context() | {"fit": {"none": "2 context lengths are too few"}, "flow": None}
    values["variants"]["random"] = values["variants"]["max"]
    found = one("context", values)
    assert "no better than dropping at random" in " ".join(found.findings)
    assert found.tables[0].rows[0] == ["100", "0.3", ""]
    assert len(found.pictures) == len(one("context", made.context()).pictures) - 1


def test_text_and_markdown_hold_the_tables():
    profile = made.profile({"masking": made.masking(), "mine": {"weight": 1.5, "inner": {"name": "x"}}})
    plain, markdown = describe_profile(profile), describe_profile(profile, "md")
    for text in (plain, markdown):
        assert text.startswith("Profile of some/model (llava, 10 layers, hidden size 128)")
        assert "2 + 100 visual + 9 text tokens" in text and "0.700 (0.650-0.750)" in text
    assert "Where the text needs the image\n=====" in plain
    assert "## Where the text needs the image" in markdown
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    assert ["k = 3", "0.700 (0.650-0.750)", "0.600 (0.550-0.650)"] in rows
    assert ["weight", "1.5"] in rows and ["inner, name", "x"] in rows


def test_a_probe_without_samples_says_so():
    empty = made.committed().model_copy(update={"probes": {"flip": ProbeResult(n=0, settings={}, values={})}})
    (found,) = sections(empty)
    assert found.findings == ["Measured on 0 samples: nothing to show."] and not found.tables


def test_findings_of_another_release_are_refused_by_name():
    values = made.context()
    del values["best_rates"]
    with pytest.raises(PlanError, match="context lacks 'best_rates'") as caught:
        sections(made.profile({"context": values}))
    assert "plan calibrate" in caught.value.remedy


def test_tables_beside_the_profile_add_pictures(tmp_path):
    probes = {"sinks": made.committed().probes["sinks"], "influence": made.committed().probes["influence"]}
    profile = made.committed().model_copy(update={"probes": probes, "arrays_sha256": None})
    without = [len(section.pictures) for section in sections(profile)]
    mass = np.full((3 * 10, 8), 0.5, np.float32)
    stages = {
        "influence/filter.data": np.asarray([3, 3, -1]), "influence/filter.lengths": np.asarray([1, 1, 1]),
        "influence/exit.data": np.asarray([[6], [-1], [-1]]), "influence/exit.lengths": np.asarray([1, 1, 1]),
    }  # fmt: skip
    tables = {"sinks/visual_mass.data": mass, "sinks/visual_mass.lengths": np.asarray([10] * 3), **stages}
    whole = profile.with_arrays(tables).sealed()
    assert [len(section.pictures) for section in sections(whole)] == [count + 1 for count in without]
    whole.save(tmp_path / "profile.json")
    (tmp_path / "profile.safetensors").rename(tmp_path / "elsewhere")
    back = type(whole).load(tmp_path / "profile.json")
    assert [len(section.pictures) for section in sections(back)] == without, "missing tables cost pictures only"
    (tmp_path / "profile.safetensors").write_bytes(b"another's")
    with pytest.raises(PlanDigestError):
        sections(type(whole).load(tmp_path / "profile.json"))


def test_words_for_numbers():
    found = [percent(share) for share in (0, 0.005, 0.5, 0.996, 1, None)]
    assert found == ["0 %", "0.5 %", "50 %", "99.6 %", "100 %", ""]
    assert layer_names([]) == "no layer" and layer_names([3]) == "layer 3"
    assert layer_names([5, 0, 1, 2, 7, 8]) == "layers 0-2, 5 and 7-8"
    assert shown({"value": 2, "low": 1.5, "high": None, "n": 3}) == "2 (1.5-)"
    assert shown({"value": None, "low": None, "high": None, "n": 0}) == ""
    assert shown(made.entry(0.5), True) == "0.500 (0.450-0.550)"


def test_a_probe_that_nothing_knows_shows_its_values_lists_too():
    values = {
        "highest": 0.1234567,
        "named": {"deep": {"count": 1200, "kind": "cosine", "ok": True, "none": None}},
        "by_layer": {"value": [0.5, 0.25], "low": [0.1, None], "count": [3]},
        "matrix": [[1, 2], [3, 4]],
        "heads": [{"layer": 3, "head": 1}],
    }
    found = one("toy_probe", values)
    assert found.title == "Toy probe" and found.about
    tables = [(table.title, list(table.headers), [list(row) for row in table.rows]) for table in found.tables]
    assert tables == [
        (
            "Values",
            ["value", ""],
            [
                ["highest", "0.123"],
                ["named, deep, count", "1,200"],
                ["named, deep, kind", "cosine"],
                ["named, deep, ok", "true"],
                ["named, deep, none", ""],
                ["heads, 0, layer", "3"],
                ["heads, 0, head", "1"],
            ],
        ),
        ("By layer", ["", "value", "low"], [["0", "0.5", "0.1"], ["1", "0.25", ""]]),
        ("By layer", ["", "count"], [["0", "3"]]),
        ("Matrix", ["", "0", "1"], [["0", "1", "2"], ["1", "3", "4"]]),
    ]


def test_sink_heads_beside_the_heads_that_carry_the_image():
    sinks = copy.deepcopy(dict(made.committed().probes["sinks"].values))

    def heads(*places):
        entries = [{"layer": layer, "head": head, "samples": made.entry(1.0)} for layer, head in places]
        return {"heads": entries, "split_half_overlap": None, "by_layer": [0.0] * 10}

    sinks |= {
        "sink_heads": heads((4, 3), (1, 1)),
        "image_centric_heads": {"rho 0.5": heads(), "rho 0.8": heads((0, 0), (4, 3)), "rho 0.9": heads((4, 3))},
    }
    settings = made.committed().probes["sinks"].settings

    def told(attribution):
        both = {
            "sinks": ProbeResult(n=8, settings=settings, values=sinks),
            "attribution": ProbeResult(n=8, settings={}, values=attribution),
        }
        return sections(made.committed().model_copy(update={"probes": both}))[0].findings[-1]

    assert told(made.attribution()) == (
        "Of the 2 heads that attribution finds to carry the image most, 1 is a sink head (layer 4 head 3) and 2 are "
        "image-centric (layer 4 head 3, layer 0 head 0)."
    )
    nothing = {"attributed": 0, "answered_wrongly": 8, "image_independent": 0}
    assert "attribution finds" not in told(nothing)


def test_sinks_say_what_they_take_and_give_where_they_are_and_what_the_threshold_is_worth():
    values = copy.deepcopy(dict(made.committed().probes["sinks"].values))
    share = [[0.0] * 4 for _ in range(4)]
    share[0][1] = 1.0
    values |= {
        "sink_dims": [5],
        "notes": ["The threshold means nothing."],
        "visual_sinks": {
            "of_tokens": made.entry([0.01] * 9 + [0.02]),
            "of_attention": made.entry([0.1] * 9 + [0.6]),
            "of_contribution": made.entry([0.1] * 9 + [0.05]),
            "place": {"map": share, "on_border": 1.0, "border": 0.75},
        },
    }
    probe = ProbeResult(n=8, settings=made.committed().probes["sinks"].settings, values=values)
    (found,) = sections(made.committed().model_copy(update={"probes": {"sinks": probe}}))
    assert found.findings[0] == "The threshold means nothing."
    text = " ".join(found.findings)
    assert "are 2 % of the visual tokens in layer 9" in text and "60 % of the image's attention, and 5 %" in text
    assert "less than their share of the attention" in text
    assert "100 % of them are on the outermost ring of the picture, more than the 75 %" in text
    assert any("Where visual sinks are" in one.caption and one.draw().startswith("<svg") for one in found.pictures)
    assert found.tables[-1].rows[9][0] == "9"
