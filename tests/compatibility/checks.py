"""Checks of one family on the installed release. Each gives a `Finding`, and what fails with a plan is tried without.

Run by `python -m tests.compatibility.checks RESULTS.json` inside the environment of a release.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from calibrate.inputs.bundled import reference_path
from planner import load_plan
from planner.cost import cost
from planner.errors import PlannerError
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.schedule import Count, Schedule, Select, Stage, dense
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import cache_bytes, workload_of
from tests.reference import run
from tests.schedules import HYBRID, LAYERS, SCHEDULES
from tests.tiny.configs import LAST_TEXT, VOCAB
from tests.tiny.extra import EXTRA

#: (schedule, kernel, batch): every kind of stage and selection, batches with images of different sizes.
EQUALITY = (
    ("visipruner", "sdpa", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("threshold", "eager", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("prellm-visipruner", "sdpa", {"images": 2}),
    ("context-fastv", "eager", {"batch": 2, "left_pad": 3}),
    ("var-fastv", "sdpa", {}),
    ("probe", "eager", {}),
)
#: The same for families of which most layers keep a state.
HYBRID_EQUALITY = (
    ("hybrid-visipruner", "sdpa", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("hybrid-threshold", "eager", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("hybrid-entry", "sdpa", {"images": 2}),
    ("hybrid-context", "eager", {"batch": 2, "left_pad": 3}),
    ("hybrid-fastv", "sdpa", {}),
    ("hybrid-probe", "eager", {}),
)
#: The same for families of which the last layers read the keys of others.
SHARING_EQUALITY = (
    ("hybrid-visipruner", "sdpa", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("hybrid-threshold", "eager", {"batch": 2, "left_pad": 2, "ragged": True}),
    ("merge-nearest", "sdpa", {"images": 2}),
    ("context-fastv", "eager", {"batch": 2, "left_pad": 3}),
    ("var-fastv", "sdpa", {}),
    ("hybrid-probe", "eager", {}),
)
#: Families with layers of other kinds, beside those that every matrix covers.
MORE = ("gemma3n-sharing", "gemma4", "lfm2_vl", "qwen3_5", "qwen3_5_moe")
HYBRIDS = ("lfm2_vl", "qwen3_5", "qwen3_5_moe")
SHARING = ("gemma3n-sharing",)
#: What decoding sees is what the prefill saw, so a cache changes nothing.
ENCODER = Schedule(
    stages=(Stage(first=0, last=LAYERS),), entry=Select(rank_by="encoder_attention", keep=Count(count=5))
)
TOLERANCE, STEPS = 1e-10, 5
ALL = {**SCHEDULES, **HYBRID}


def like(name: str, family: str) -> Schedule:
    """The schedule of this name, or what comes nearest to it on layers of other kinds."""
    return ALL[f"hybrid-{name}" if family in (*HYBRIDS, *SHARING) else name]


@dataclass(frozen=True)
class Finding:
    """How a check came out.

    Attributes:
        status: ``ok``, ``refused`` (by us, saying why), ``theirs`` (fails without a plan just the same), ``differs``
            (a stated difference that is no fault) or ``wrong``.
        note: the reason, one line.
    """

    status: str
    note: str = ""


def equality(family: str) -> Finding:
    """Prefill and decode logits against the slow reference."""
    worst = 0.0
    matrix = HYBRID_EQUALITY if family in HYBRIDS else SHARING_EQUALITY if family in SHARING else EQUALITY
    for name, attn, batch in matrix:
        model, inputs = tiny.model(family, attn=attn, layers=LAYERS), tiny.inputs(family, **batch)
        generated = continuation(len(inputs["input_ids"]), steps=3)
        with attach(model, ALL[name]):
            found = logits(model, inputs, generated)
        outcome = run(model, inputs, ALL[name], generated)
        pairs = zip(found, [outcome.prefill, *outcome.steps], strict=True)
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    status = "ok" if worst < TOLERANCE else "wrong" if _sound(family) else "theirs"
    return Finding(status, f"largest difference {worst:.0e}" + ", also without a plan" * (status == "theirs"))


def _sound(family: str) -> bool:
    """Whether the model without a plan decodes as a forward over the whole sequence does."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    generated = continuation(len(inputs["input_ids"]), steps=3)
    outcome = run(model, inputs, SCHEDULES["dense"], generated)
    pairs = zip(logits(model, inputs, generated), [outcome.prefill, *outcome.steps], strict=True)
    return all(float((a - b).abs().max()) < TOLERANCE for a, b in pairs)


def generation(family: str) -> Finding:
    """Assisted decoding, no cache, beams of a batch and a second turn give what plain greedy search gives."""
    model = tiny.model(family, layers=LAYERS)
    single, batch = tiny.inputs(family), tiny.inputs(family, batch=2, left_pad=2)
    failed, theirs = [], []
    for name, way, schedule in (
        ("assisted decoding", _assisted, like("visipruner", family)),
        ("use_cache=False", _without_cache, like("fastv", family)),
        ("beam search", _beams, like("visipruner", family)),
        ("a second turn", _second_turn, like("visipruner", family)),
    ):
        inputs = batch if way is _beams else single
        with attach(model, schedule):
            good = _tried(way, family, model, inputs)
        if not good:
            (failed if _tried(way, family, model, inputs) else theirs).append(name)
    if failed and _sound(family):
        return Finding("wrong", ", ".join(failed))
    theirs += failed
    return Finding("theirs", f"{', '.join(theirs)}: also without a plan") if theirs else Finding("ok")


def _tried(way: Callable[..., bool], *arguments: Any) -> bool:
    try:
        with torch.no_grad(), float64_throughout():
            return way(*arguments)
    except PlannerError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError):
        return False


def _greedy(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    # A random model would also answer with image placeholders, which a forward over the whole text takes for an image.
    markers = list(range(LAST_TEXT, VOCAB))
    found = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, suppress_tokens=markers, **options)
    return found[:, inputs["input_ids"].shape[1] :]


def _assisted(_: str, model: Any, inputs: dict[str, Any]) -> bool:
    return torch.equal(_greedy(model, inputs, prompt_lookup_num_tokens=3), _greedy(model, inputs))


def _without_cache(_: str, model: Any, inputs: dict[str, Any]) -> bool:
    return torch.equal(_greedy(model, inputs, use_cache=False), _greedy(model, inputs))


def _beams(family: str, model: Any, inputs: dict[str, Any]) -> bool:
    together = _greedy(model, inputs, num_beams=3)
    alone = [_greedy(model, tiny.inputs(family, batch=2, left_pad=2, only=i), num_beams=3) for i in range(2)]
    return torch.equal(together, torch.cat(alone))


def _second_turn(_: str, model: Any, inputs: dict[str, Any]) -> bool:
    """Three tokens at once over the cache of a prompt, and one by one."""
    more, last = torch.tensor([[7, 8, 9]]), []
    for parts in ([more], more.split(1, dim=1)):
        cache = transformers.DynamicCache()
        model(**inputs, past_key_values=cache, use_cache=True)
        for part in parts:
            found = model(input_ids=part, past_key_values=cache).logits[:, -1]
        last.append(found)
    return bool((last[0] - last[1]).abs().max() < TOLERANCE)


def predicted(family: str) -> Finding:
    """FLOPs of the prefill and bytes of the cache, counted as integers, with a plan and dense."""
    model, inputs = tiny.model(family, layers=LAYERS, window=256), tiny.inputs(family, batch=2)
    processor = EXTRA[family].processor if family in EXTRA else None
    spec = ModelSpec.from_config(model.config.to_dict(), {"image_processor": processor or {}})
    workload = workload_of(family, spec, inputs)
    excess = {}
    for name, schedule in (("dense", dense(LAYERS)), ("visipruner", like("visipruner", family))):
        expected = cost(spec, workload, schedule)
        with attach(model, schedule), torch.no_grad(), FlopCounter() as counted:
            output = model(**inputs, use_cache=True, logits_to_keep=1)
        if cache_bytes(output.past_key_values) != expected.kv_cache_bytes:
            return Finding("wrong", f"KV bytes of {name}")
        excess[name] = counted.total - expected.prefill_flops
    if not any(excess.values()):
        return Finding("ok")
    if len(set(excess.values())) == 1:
        return Finding("differs", "what a plan saves is right; this release computes more, dense as well")
    if getattr(spec, "family", "").endswith("moe") and all(value > 0 for value in excess.values()):
        return Finding("differs", "this release computes every expert, also of tokens not routed to it")
    return Finding("wrong", f"FLOPs beyond the prediction: {excess}")


def encoder_ranking(family: str) -> Finding:
    """Pruning before the language model by encoder attention: a batch keeps what its samples keep alone."""
    model = tiny.model(family, layers=LAYERS)
    options: dict[str, Any] = {"batch": 2, "left_pad": 2, "ragged": True, "images": 2}
    with attach(model, ENCODER) as handle, torch.no_grad(), float64_throughout():
        model(**tiny.inputs(family, **options))
        together = handle.kept[0]
        for sample in range(2):
            model(**tiny.inputs(family, **options, only=sample))
            if handle.kept[0][0] != together[sample]:
                return Finding("wrong", "a sample alone keeps other tokens")
    return Finding("ok")


CHECKS: dict[str, Callable[[str], Finding]] = {
    "logits": equality,
    "generation": generation,
    "FLOPs and bytes": predicted,
    "encoder attention": encoder_ranking,
}


def findings(family: str) -> dict[str, Finding]:
    """Every check of a family; one finding for all where the release lacks it or a plan is refused."""
    if not tiny.transformers_has(family):
        return dict.fromkeys(CHECKS, Finding("absent"))
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(family)
        except PlannerError as error:
            found[name] = Finding("refused", str(error).splitlines()[0])
        except Exception as error:  # whatever it is, the report has to name it
            found[name] = Finding("wrong", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    return found


def commands() -> Finding:
    """`plan calibrate`, `plan run` and `plan bench` with the bundled model, as a user calls them."""
    samples = reference_path("easy_vqa")
    question = json.loads((samples / "evaluation.jsonl").read_text().splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder) / "plan.json")
        few = ("--num-samples", "32", "--eval-samples", "32", "--agreement", "0.85")
        asked = ("--image", str(samples / question["image"]), "--prompt", question["prompt"])
        for arguments in (
            ("calibrate", *few, "-o", folder),
            ("run", made, *asked),
            ("bench", made, "--rounds", "1", "--new-tokens", "2"),
        ):
            call = [sys.executable, "-c", "from planner.cli import main; main()", *arguments]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            if done.returncode:
                return Finding("wrong", f"plan {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")
        evidence = load_plan(made).evidence
    accuracy = None if evidence is None else evidence.rows[0].accuracy
    # A model whose weights were not all found answers by chance.
    trained = accuracy is not None and accuracy.value > 0.8
    return Finding("ok" if trained else "wrong", f"dense accuracy {accuracy.value:.3f}" if accuracy else "no accuracy")


def main(destination: str) -> None:
    """Check every family and write the findings."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"version": transformers.__version__, "families": {}}
    for family in (*tiny.VISION, *MORE):
        result["families"][family] = {name: asdict(found) for name, found in findings(family).items()}
        print(family, {name: found["status"] for name, found in result["families"][family].items()}, flush=True)
    result["commands"] = asdict(commands())
    print("commands", result["commands"], flush=True)
    Path(destination).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
