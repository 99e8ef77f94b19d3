"""The interactive page: its figures are the cost model's, in a browser; it asks nothing of anybody."""

from __future__ import annotations

import html
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.cost import cost
from planner.cost.hardware import hardware, shipped_rows
from planner.policies import parse
from planner.report import costs_page
from planner.report.costs import report
from planner.report.explorer import explorer
from planner.report.sweeps import sweep_front
from planner.report.targets import Target, asked_workload, read_target
from planner.spec import ModelSpec, shipped
from planner.workload import Workload
from tests.browser import CHROMIUM, run_page, text_within

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
ENGINES = ("hf", "vllm", "ideal")
#: Names of the page's figures and of a report's.
TIMES = {
    "visionMs": "vision_ms", "firstMs": "time_to_first_token_ms", "tokenMs": "per_token_ms", "totalMs": "total_ms",
}  # fmt: skip
#: The most that the page lets one ask of the largest model: beyond what 64-bit floats hold.
MOST = {
    "model": "qwen2.5-vl-72b", "picture": "3840x2160", "pictures": 12, "text": 131072, "output": 131072, "batch": 4096,
    "hardware": "l4", "engine": "vllm", "weight_bits": 16, "kv_bits": 16, "convention": "exact",
}  # fmt: skip
LARGEST = (
    {"policy": "dense", "keys": {}},
    {"policy": "cdpruner", "keys": {"keep": 1}},
    {"policy": "visipruner", "keys": {"filter": 70, "keep": 300, "exit": 80}},
)
#: Runs the page's own functions on many settings, and leaves the figures as text.
CHECK = """
<pre id="checked"></pre>
<script>
const settings = JSON.parse(document.getElementById("settings").textContent);
byId("checked").textContent = JSON.stringify(settings.map((one) => {
  const model = named(facts.models, "name", one.model), workload = workloadOf(model, one);
  const keys = settledKeys(model, one.side), schedule = policiesOf(model)[one.side.policy].schedule(model, keys);
  return { spelled: spelled(one.side.policy, keys), workload, ...figures(model, workload, schedule, one) };
}).map(({ spelled, workload, counted, time }) => ({
  spelled, workload, ...time,
  prefill_flops: String(counted.prefillFlops), kv_cache_bytes: String(counted.kvCacheBytes),
  decode_flops_per_token: String(counted.decodeFlops), visual_tokens_per_layer: counted.visualTokens,
  per_layer: counted.perLayer,
  prefill_by_component: Object.fromEntries(Object.entries(counted.prefill).map(([name, one]) => [name, String(one)])),
})));
</script>
"""


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    """Shipped models, one whose projector reads the prompt's text, and one that cuts a picture that is alone."""
    text = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}
    config = {"model_type": "instructblip", "text_config": text, "vision_config": {}, "qformer_config": {}}
    reading = Target("instructblip", ModelSpec.from_config(config), {"visual_tokens": 32})
    vision = {"image_size": 384, "patch_size": 14}
    config = {"model_type": "llava_onevision", "text_config": text | {"model_type": "qwen2"}, "vision_config": vision}
    cutting = Target("llava_onevision", ModelSpec.from_config(config), {"visual_tokens": 729})
    others = {one.name: one for one in (reading, cutting)}
    return {**{name: read_target(name) for name in shipped()}, **others}


def page_of(targets: dict[str, Target], **options: Any) -> str:
    return explorer(targets, {name: hardware(name) for name in shipped_rows()}, **options)


def run(page: str, settings: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The page's figures for settings, and its console."""
    given = f'<script type="application/json" id="settings">{json.dumps(settings)}</script>'
    path = folder / "page.html"
    path.write_text(page.replace("</body>", given + CHECK + "</body>"), encoding="utf-8")
    dom, console = run_page(path)
    return json.loads(text_within(dom, "checked")), console


def drawn(rng: random.Random, targets: dict[str, Target]) -> dict[str, Any]:
    """A setting within the page's ranges."""
    model = rng.choice(list(targets))
    layers = targets[model].spec.layers
    filters = rng.randrange(0, layers - 2)
    budgets: dict[str, dict[str, float]] = {
        "dense": {},
        "visipruner": {"filter": filters, "keep": rng.randint(1, 300), "exit": rng.randint(filters + 2, layers)},
        "fastv": {"k": rng.randint(1, layers - 1), "ratio": rng.randint(0, 20) / 20},
        "random": {"k": rng.randint(1, layers - 1), "ratio": rng.randint(0, 20) / 20},
        "pyramiddrop": {"keep": rng.randint(1, 20) / 20},
        "vtw": {"k": rng.randint(1, layers - 1)},
    }
    for name in ("prellm", "diverse", "cdpruner", "dart", "vispruner", "pool"):
        budgets[name] = {"keep": rng.randint(1, 50) / 50}
    policy = rng.choice(list(budgets))
    return {
        "model": model,
        "picture": rng.choice(("640x480", "336x336", "1024x1024", "1920x1080", "1080x1920", "3840x2160")),
        "pictures": rng.choice((0, 1, 1, 2, 5)),
        "text": rng.choice((1, 64, 500, 3000, 20000)),
        "output": rng.choice((1, 2, 64, 1000)),
        "batch": rng.choice((1, 2, 3, 32, 512)),
        "hardware": rng.choice(shipped_rows()),
        "engine": rng.choice(ENGINES),
        "weight_bits": rng.choice((16, 8, 4)),
        "kv_bits": rng.choice((16, 8, 4)),
        "convention": rng.choice(("exact", "causal")),
        "side": {"policy": policy, "keys": budgets[policy]},
    }


def expected(setting: dict[str, Any], target: Target, spelled: str) -> tuple[dict[str, Any], Any]:
    """The report's row for a setting, and its workload."""
    width, height = map(int, setting["picture"].split("x"))
    given = {
        "text_tokens": setting["text"], "output_tokens": setting["output"], "batch": setting["batch"],
        "weight_bits": setting["weight_bits"], "kv_bits": setting["kv_bits"],
    } | ({} if setting["pictures"] else {"visual_tokens": 0})  # fmt: skip
    workload = asked_workload(target, ((width, height),) * setting["pictures"], given)
    schedule = parse(spelled).schedule(target.spec, workload)
    row = hardware(setting["hardware"]).model_copy(update={"engine": setting["engine"]})
    return report(target, workload, [(spelled, schedule)], setting["convention"], row)["rows"][-1], workload


def test_the_page_counts_as_python_does_on_200_random_settings(targets: dict[str, Target], tmp_path: Path) -> None:
    rng = random.Random(16)
    settings = [drawn(rng, targets) for _ in range(200)] + [MOST | {"side": side} for side in LARGEST]
    found, console = run(page_of(targets), settings, tmp_path)
    assert console == [] and len(found) == 200 + len(LARGEST)
    for setting, figures in zip(settings, found, strict=True):
        row, workload = expected(setting, targets[setting["model"]], figures["spelled"])
        for name in ("visual_tokens", "system_tokens", "text_tokens", "between_tokens", "mark_tokens"):
            assert figures["workload"][name] == getattr(workload, name), (setting, name)
        assert int(figures["prefill_flops"]) == row["prefill_flops"], setting
        components = {name: int(value) for name, value in figures["prefill_by_component"].items()}
        assert components == row["prefill_by_component"], setting
        assert int(figures["decode_flops_per_token"]) == row["decode_flops_per_token"], setting
        assert int(figures["kv_cache_bytes"]) == row["kv_cache_bytes"], setting
        assert figures["visual_tokens_per_layer"] == row["visual_tokens_per_layer"], setting
        time = row["latency_estimate"]
        for name, other in TIMES.items():
            assert figures[name] == pytest.approx(time[other], rel=1e-9), (setting, name)
        assert (figures["firstBound"], figures["tokenBound"]) == (time["prefill_bound"], time["decode_bound"]), setting
        memory = figures["memory"]
        assert memory["total"] == pytest.approx(time["memory_bytes"], rel=1e-9)
        assert (memory["fits"], memory["largestBatch"]) == (time["fits"], time["largest_batch"]), setting


def test_flops_of_each_layer_are_those_of_the_cost_model(targets: dict[str, Target], tmp_path: Path) -> None:
    rng = random.Random(7)
    settings = [{**drawn(rng, targets), "convention": "causal"} for _ in range(20)]
    found, _ = run(page_of(targets), settings, tmp_path)
    for setting, figures in zip(settings, found, strict=True):
        spec = targets[setting["model"]].spec
        _, workload = expected(setting, targets[setting["model"]], figures["spelled"])
        layers = cost(spec, workload, parse(figures["spelled"]).schedule(spec, workload), "causal").per_layer
        parts = (layers[name] for name in ("attention_projections", "attention_scores", "ffn"))
        # Numbers here, not integers of any size.
        assert figures["per_layer"] == pytest.approx([sum(layer) for layer in zip(*parts, strict=True)], rel=1e-12)


def test_a_plans_schedule_can_be_chosen(tmp_path: Path) -> None:
    target = read_target("qwen3-vl-8b")
    spelled = (
        "prellm:keep=0.5,merge=nearest+visipruner:filter=4,keep=12,exit=20,rank_by=cos,visual_attention=self,probe=true"
    )
    rows = (spelled, "shortv:layers=3/4/9", "sparsevlm", "visipruner:filter=6,merge_first=true,text_to_visual=none")
    plans = tuple((text, parse(text).schedule(target.spec)) for text in rows)
    page = page_of({"qwen3-vl-8b": replace(target, plans=plans)})
    rng = random.Random(3)
    drawings = [drawn(rng, {"qwen3-vl-8b": target}) | {"side": {"policy": text, "keys": {}}} for text in rows]
    found, _ = run(page, drawings, tmp_path)
    for setting, figures in zip(drawings, found, strict=True):
        row, _ = expected(setting, target, setting["side"]["policy"])
        assert int(figures["prefill_flops"]) == row["prefill_flops"], setting
        assert int(figures["kv_cache_bytes"]) == row["kv_cache_bytes"], setting
        assert figures["firstMs"] == pytest.approx(row["latency_estimate"]["time_to_first_token_ms"], rel=1e-9)


def test_the_command_it_shows_prints_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    command = [
        "report",
        "--format",
        "html",
        "--interactive",
        "--image",
        "1234x777",
        "--hardware",
        "l4",
        "-o",
        str(path),
    ]
    assert CliRunner().invoke(cli, [*command, "smolvlm2-500m"]).exit_code == 0
    dom, console = run_page(path)
    assert console == []
    shown = text_within(dom, "command").split()
    assert shown[:3] == ["plan", "report", "smolvlm2-500m"] and "1234x777" in shown and "l4" in shown
    printed = CliRunner().invoke(cli, [*shown[1:], "--format", "json"])
    rows = json.loads(printed.stdout)["rows"]
    cells = re.findall(r"<td>([^<]*)", html.unescape(dom[dom.index('id="body"') :]))
    assert cells[:4] == ["prefill", *(figure(row["prefill_flops"]) for row in rows)]
    kv = cells.index("KV cache after the prompt")
    assert cells[kv + 1 : kv + 4] == [figure(row["kv_cache_bytes"], "B") for row in rows]


def figure(value: float, unit: str = "FLOP") -> str:
    """Three digits and a unit, as the page writes them."""
    size, letter = next((size, letter) for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= size)
    return f"{float(f'{value / size:.3g}'):g}\u00a0{letter}{unit}"


def test_it_asks_nothing_of_anybody_and_a_name_is_text(tmp_path: Path) -> None:
    target = replace(read_target("llava-1.5-7b"), name="</script><b>x")
    page = page_of({"llava-1.5-7b": target})
    assert not re.search(
        r"""(src|href)\s*=|url\(|@import|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)""", bare(page)
    )
    assert page.count("</script>") == 7 and "<b>x" not in page
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    dom, console = run_page(path)
    assert console == [] and text_within(dom, "asked").startswith("</script><b>x: 10 + 576 visual + 64 text tokens")


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_nothing_is_cut_off(width: int, targets: dict[str, Target], tmp_path: Path) -> None:
    """Nothing reaches beyond the window or beyond its picture; only static tables may scroll, each in its own frame."""
    texts = ("visipruner:filter=8,keep=10,exit=24", "prellm:keep=0.5+visipruner:filter=3,keep=20,exit=27")
    target, workload = targets["llava-1.5-7b"], Workload(visual_tokens=576)
    policies = [(text, parse(text).schedule(target.spec, workload)) for text in texts]
    found = report(target, workload, policies, hardware=hardware("h100-sxm"))
    front = sweep_front(target, workload, "fastv:k=1..9,ratio=0.1..0.9..0.1", "exact", hardware("h100-sxm"))
    for number, page in enumerate((page_of(targets), costs_page.page([found]), costs_page.sweep_page([front]))):
        path = tmp_path / f"{number}.html"
        path.write_text(page.replace("</body>", CUT_OFF + "</body>"), encoding="utf-8")
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(path.name, width), encoding="utf-8")
        dom, console = run_page(frame)
        assert console == [] and json.loads(text_within(dom, "cut-off")) == [width, width, []], number


#: A window of any width: Chromium's own has a least one.
FRAME = """<!doctype html><script>
addEventListener("message", ({{ data }}) => {{ document.getElementById("cut-off").textContent = data; }});
</script><pre id="cut-off"></pre><iframe src="{0}" style="width: {1}px; height: 900px; border: 0"></iframe>"""
#: Tells the window's and the page's width, and which labels leave their picture or which figures the page.
CUT_OFF = """
<script>
const beyond = [...document.querySelectorAll("svg text, .figures td, .figures th, label, output")].filter((one) => {
  const frame = (one.closest("svg") || document.body).getBoundingClientRect(), box = one.getBoundingClientRect();
  return box.right > frame.right + 1 || box.left < frame.left - 1 || box.bottom > frame.bottom + 1;
});
const widths = [innerWidth, document.documentElement.scrollWidth];
parent.postMessage(JSON.stringify([...widths, beyond.map((one) => one.textContent)]), "*");
</script>
"""


def test_controls_move_the_figures(targets: dict[str, Target], tmp_path: Path) -> None:
    """A filter beyond the exit takes the exit along; a model without that policy's depth keeps its range; an address is
    the state."""
    moves = """
    <pre id="moved"></pre><script>
    const set = (id, value, event) => { byId(id).value = value; byId(id).dispatchEvent(new Event(event)); };
    const seen = [];
    const see = () => seen.push([byId("asked").textContent, byId("command").textContent]);
    set("a-filter", 28, "input"); see();
    set("b-policy", "prellm", "change"); set("b-keep", 0.5, "input"); see();
    set("model", "smolvlm2-500m", "change"); see();
    set("model", "qwen3-vl-8b", "change"); set("pictures", 3, "input"); set("batch", 9999, "input"); see();
    byId("moved").textContent = JSON.stringify([...seen, decodeURIComponent(location.hash)]);
    </script>"""
    path = tmp_path / "page.html"
    page = page_of({name: targets[name] for name in ("llava-1.5-7b", "smolvlm2-500m", "qwen3-vl-8b")})
    path.write_text(page.replace("</body>", moves + "</body>"), encoding="utf-8")
    dom, console = run_page(path)
    first, second, third, last, address = json.loads(text_within(dom, "moved"))
    assert console == []
    assert "--policy visipruner:filter=28,keep=10,exit=30 --policy fastv:k=2,ratio=0.75" in first[1]
    assert second[1].endswith("exit=30 --policy prellm:keep=0.5")
    assert third[0].startswith("smolvlm2-500m: ") and "filter=28,keep=10,exit=30" in third[1]  # 32 layers too
    assert last[0].startswith("qwen3-vl-8b: 11 + 900 visual + ") and last[0].endswith("batch 4096.")
    assert json.loads(address[1:])["batch"] == 4096 and json.loads(address[1:])["a"]["keys"]["exit"] == 30


def bare(page: str) -> str:
    """A page without its facts, whose sources are addresses."""
    return re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (("--interactive",), "give --format html"),
        (("--interactive", "--format", "html", "--policy", "dense"), "--policy cannot go with --interactive"),
        (("--interactive", "--format", "html", "--batch", "2"), "--batch-size cannot go with --interactive"),
    ],
)
def test_what_the_page_asks_for_is_refused_beside_it(beside: tuple[str, ...], told: str) -> None:
    answer = CliRunner().invoke(cli, ["report", *beside])
    assert answer.exit_code == 2 and told in answer.output
