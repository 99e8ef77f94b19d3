"""The HTML page: whole, self-contained, safe, and the same for the same numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from click.testing import CliRunner

from planner.cli.show import command as show
from planner.errors import PlanMismatchError, PlannerError
from planner.profile import Profile
from planner.report import charts, drawing
from planner.report.inline import inline
from planner.report.page import page, profile_page
from tests.unit import report_documents as made
from tests.unit.test_plan import make_plan

HOSTILE = "<script>alert(1)</script>"


class Read(HTMLParser):
    """Tags with their attributes, and that every tag is closed."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img", "image", "use", "path", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


@pytest.fixture(scope="module")
def html() -> str:
    probes = made.written() | {"mine": {HOSTILE: HOSTILE}}
    return profile_page(made.profile(probes, model_id=HOSTILE))


def test_the_page_is_well_formed_and_complete(html):
    read = Read(html)
    sections = [attrs["id"] for tag, attrs in read.tags if tag == "section" and "id" in attrs]
    assert sections == [
        "masking",
        "token_masking",
        "flip",
        "instructions",
        "lens",
        "sink_masking",
        "encoder_sinks",
        "attribution",
        "context",
        "mine",
    ]
    assert [href for href in read.all("href") if not re.match(r"#p\d+-", href)] == [f"#{name}" for name in sections]
    pictures = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert len(pictures) == html.count("<figcaption>") > 10
    assert all(picture["aria-label"] and picture["role"] == "img" for picture in pictures)
    assert "3 of 10" not in html and "4 of 10" in html, "the tile of layers that read the image"


def test_ids_are_unique_and_every_reference_has_its_target(html):
    read = Read(html)
    ids = read.all("id")
    assert len(ids) == len(set(ids))
    referenced = {href[1:] for name in ("href", "xlink:href") for href in read.all(name) if href.startswith("#")}
    referenced |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert referenced <= set(ids)


def test_the_page_is_self_contained(html):
    assert "<script" not in html
    links = [link for name in ("src", "href", "xlink:href") for link in Read(html).all(name)]
    # What a data link holds is base64, in which // may stand.
    assert not [link for link in links if "//" in link and not link.startswith("data:")]
    assert "@import" not in html and "url(http" not in html


def test_what_documents_say_is_escaped(html):
    assert HOSTILE not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>blue" not in html and "red, &lt;b&gt;blue&lt;/b&gt;" in html


def test_colours_are_the_page_s_own(html):
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--series-1)" in drawn and "var(--ink)" in drawn
    assert drawing.PLAN not in drawn and drawing.INK not in drawn
    for variable in set(re.findall(r"var\(--([\w-]+)\)", drawn)):
        assert html.count(f"--{variable}: ") == 2, f"--{variable} needs a light and a dark value"


def test_the_same_numbers_give_the_same_page():
    profile = made.profile({"flip": made.written()["flip"]})
    assert profile_page(profile) == profile_page(profile)


def test_a_plan_s_page_has_its_profile_s_sections_and_marks():
    profile = made.profile({"masking": made.masking()})
    text = page(make_plan(), profile)
    assert [attrs["id"] for tag, attrs in Read(text).tags if tag == "section" and "id" in attrs] == [
        "verdict", "plan", "masking", "use",
    ]  # fmt: skip
    assert "plan selects 3" in text and "plan exit 7" in text and "limit 98" in text
    assert 'id="masking"' not in page(make_plan())


def test_inline_gives_pictures_names_of_their_own():
    svg = '<svg ><defs><path id="mab1"/></defs><g id="patch_1" style="fill: #0072B2"/><use xlink:href="#mab1"/></svg>'
    found = inline(svg, 3, 'say "it"')
    assert found == (
        '<svg role="img" aria-label="say &quot;it&quot;" ><defs><path id="p3-mab1"/></defs>'
        '<g style="fill: var(--series-1)"/><use xlink:href="#p3-mab1"/></svg>'
    )


def test_powers_on_a_logarithmic_axis_are_numbers():
    svg = charts.lines(range(5), {"a": charts.exact([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])}, xlabel="", ylabel="", log=True)
    assert "mathdefault" not in svg and ">1e-05<" in svg and ">0.01<" in svg


def test_an_interval_and_a_unit_stay_in_their_line():
    evidence = make_plan().evidence
    assert evidence is not None
    assert "98.0\u00a0% (96.0-\u206099.0)" in page(make_plan())


def test_marks_of_neighbouring_layers_stand_in_two_rows():
    def drawn(marks):
        svg = charts.lines(range(32), {"a": charts.exact([0.5] * 32)}, xlabel="", ylabel="", marks=marks)
        return [float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', svg)[1]) for name in marks]

    near = drawn({"filter": 8, "exit": 9})
    far = drawn({"filter": 2, "exit": 28})
    assert near[0] != near[1] and far[0] == far[1]


@pytest.fixture
def profile_path(tmp_path):
    made.profile({"flip": made.written()["flip"]}).save(tmp_path / "profile.json")
    return tmp_path / "profile.json"


def test_show_takes_a_profile(profile_path):
    def run(*arguments):
        result = CliRunner().invoke(show, [str(profile_path), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert "layers 0-2" in run() and "| layer" in run("--format", "md")
    assert json.loads(run("--format", "json")) == made.profile({"flip": made.written()["flip"]}).content()
    target = profile_path.with_name("page.html")
    assert run("--format", "html", "-o", str(target)) == ""
    assert target.read_text() == run("--format", "html")
    assert 'id="flip"' in target.read_text()


def test_show_makes_a_page_of_a_plan(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    result = CliRunner().invoke(show, [str(tmp_path / "plan.json"), "--format", "html"], catch_exceptions=False)
    assert result.stdout == page(make_plan(), path=str(tmp_path / "plan.json"))


def test_show_refuses_what_is_neither(tmp_path, profile_path):
    profile_path.write_text(profile_path.read_text().replace('"n": 8', '"n": 9', 1))
    (tmp_path / "list.json").write_text("[1]")
    for path, says in ((profile_path, "changed after it was written"), (tmp_path / "list.json", "is not a plan")):
        result = CliRunner().invoke(show, [str(path)])
        assert isinstance(result.exception, PlannerError) and says in str(result.exception)


def test_text_needs_neither_torch_nor_matplotlib(profile_path):
    code = (
        "import sys; from click.testing import CliRunner; from planner.cli.show import command;"
        f"result = CliRunner().invoke(command, [{str(profile_path)!r}]); assert result.exit_code == 0, result.output;"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'calibrate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_show_puts_a_plan_and_its_profile_on_one_page(tmp_path, profile_path):
    evidence = make_plan().evidence
    assert evidence is not None
    source = Profile.load(profile_path)
    plan = make_plan().model_copy(
        update={"evidence": evidence.model_copy(update={"profile_sha256": source.profile_sha256})}
    )
    plan.sealed().save(tmp_path / "plan.json")

    def run(*arguments):
        return CliRunner().invoke(show, [str(tmp_path / "plan.json"), "--profile", str(profile_path), *arguments])

    assert run("--format", "html").stdout == page(plan.sealed(), source, path=str(tmp_path / "plan.json"))
    assert "layers 0-2" in run().stdout and "visipruner:filter=3" in run().stdout
    assert run("--format", "json").exit_code == 2
    make_plan().save(tmp_path / "plan.json")
    assert isinstance(run().exception, PlanMismatchError)


def test_tiles_round_as_the_table_does():
    evidence = make_plan().evidence
    assert evidence is not None
    share = evidence.rows[0].agreement.model_copy(update={"value": 0.9925})
    row = evidence.rows[0].model_copy(update={"role": "plan", "accuracy": share, "agreement": share})
    plan = make_plan().model_copy(update={"evidence": evidence.model_copy(update={"rows": (*evidence.rows, row)})})
    text = page(plan).replace("\u00a0", " ")
    assert "<b>99.2 %</b>" in text and text.count("99.2 % (") == 3 and "99.3 %" not in text
