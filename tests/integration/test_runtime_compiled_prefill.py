"""A compiled prefill: the logits, caches and reports of an ordinary one, from one graph for every length bucket."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from planner.errors import InputError, RuntimeStateError
from planner.runtime import attach, fix
from tests import tiny
from tests.integration.test_runtime_invariants import assert_unchanged, snapshot
from tests.schedules import LAYERS, SCHEDULES

#: Compiled code cannot run inside `float64_throughout`, so norms and rotary tables stay float32.
TOLERANCE = 2e-5
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": list(range(118, 128))}
#: Families and schedules whose prefills are compiled.
COMPILED = [
    *(("llava", name) for name in ("fastv", "visipruner", "visipruner-merge", "probe", "prellm")),
    *(("llava", name) for name in ("prefix", "prefix-read", "prefix-mixed", "prefix-probe")),
    *(("llava", name) for name in ("cdpruner", "blind")),
    ("qwen2_5_vl", "visipruner"),
    ("qwen3_vl", "prefix-read"),
    ("gemma3", "prefix-read"),
    ("qwen3_vl", "fastv"),
    ("gemma3", "visipruner"),
    ("internvl", "fastv"),
    ("gemma3n", "visipruner"),
    ("gemma3n", "fastv"),
]


def counting() -> tuple[list[Any], Callable[..., Any]]:
    """Graphs seen so far, and a compiler that counts them and runs them as they are."""
    graphs: list[Any] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return graphs, compiler


@pytest.mark.parametrize(("family", "name"), COMPILED)
def test_prompts_of_a_bucket_share_one_graph_and_are_exact(family: str, name: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    prompts = [tiny.inputs(family, text=text, batch=2, left_pad=2, seed=text) for text in (5, 6, 7)]
    graphs, compiler = counting()
    with torch.no_grad():
        model(**prompts[0])  # transformers installs hooks of its own in the first run
        before = snapshot(model)
        with attach(model, SCHEDULES[name]) as handle:
            expected = [model(**prompt).logits[:, -1] for prompt in prompts]
            report, kept = handle.report, handle.kept
        with attach(model, SCHEDULES[name]) as handle:
            handle.compile_prefill(buckets=(48,), backend=compiler)
            for prompt, logits in zip(prompts, expected, strict=True):
                assert (model(**prompt).logits[:, -1] - logits).abs().max() < TOLERANCE
            assert (handle.report, handle.kept) == (report, kept)
            assert len(graphs) == 1
    assert_unchanged(model, before)


@pytest.mark.parametrize(("family", "name"), COMPILED)
def test_answers_of_a_bucket_share_one_graph_and_are_the_same(family: str, name: str) -> None:
    """`generate` brings positions, a bare forward need not."""
    model = tiny.model(family, layers=LAYERS)
    prompts = [tiny.inputs(family, text=text, batch=2, left_pad=2, seed=text) for text in (5, 7)]
    graphs, compiler = counting()
    with torch.no_grad():
        model(**prompts[0])  # transformers installs hooks of its own in the first run
    before = snapshot(model)
    with attach(model, SCHEDULES[name]) as handle:
        expected = [model.generate(**prompt, **OPTIONS) for prompt in prompts]
        handle.compile_prefill(buckets=(48,), backend=compiler)
        for prompt, answer in [*zip(prompts, expected, strict=True)] * 2:
            assert torch.equal(model.generate(**prompt, **OPTIONS), answer)
    assert len(graphs) == 1
    assert_unchanged(model, before)


def test_images_between_texts_and_longer_texts_before_them_are_exact() -> None:
    """A graph has room for texts of several lengths before the last image."""
    model = tiny.model("llava", layers=LAYERS)
    prompts = [tiny.inputs("llava", images=2, system=system, text=7) for system in (0, 3, 20)]
    graphs, compiler = counting()
    with torch.no_grad(), attach(model, SCHEDULES["prefix-read"]) as handle:
        expected = [model(**prompt).logits[:, -1] for prompt in prompts]
        handle.compile_prefill(buckets=(64,), backend=compiler)
        for prompt, logits in zip(prompts, expected, strict=True):
            assert (model(**prompt).logits[:, -1] - logits).abs().max() < TOLERANCE
    assert len(graphs) == 1


def test_a_prompt_that_fills_its_bucket_needs_no_mask() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2)
    graphs, compiler = counting()
    with torch.no_grad(), attach(model, SCHEDULES["fastv"]) as handle:
        expected = model(**inputs).logits
        handle.compile_prefill(buckets=(26,), backend=compiler)
        assert (model(**inputs).logits - expected).abs()[:, -1].max() < TOLERANCE
    assert len(graphs) == 1


def test_what_graphs_cannot_serve_runs_as_before() -> None:
    """Prompts beyond the last bucket, samples with other numbers of visual tokens, text alone."""
    model = tiny.model("llava", layers=LAYERS)
    others = [tiny.inputs("llava", text=40), tiny.inputs("llava", batch=2, ragged=True), tiny.inputs("llava", images=0)]
    graphs, compiler = counting()
    with torch.no_grad(), attach(model, SCHEDULES["fastv"]) as handle:
        expected = [model(**inputs).logits for inputs in others]
        handle.compile_prefill(buckets=(32,), backend=compiler)
        assert all(torch.equal(model(**x).logits, logits) for x, logits in zip(others, expected, strict=True))
    assert not graphs


def test_prefill_and_decoding_are_compiled_both() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=3)
    tokens = torch.randint(5, 100, (4, 2, 1), generator=torch.Generator().manual_seed(2))
    longest = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
    length = inputs["input_ids"].shape[1]

    def answer(cache: Any, step_of: Callable[..., Any], fixed: bool) -> list[torch.Tensor]:
        found = []
        for step, token in enumerate(tokens):
            mask = longest if fixed else longest[:, : length + step + 1]
            found.append(step_of(input_ids=token, past_key_values=cache, attention_mask=mask).logits)
        return found

    graphs, compiler = counting()
    with torch.inference_mode(), attach(model, SCHEDULES["visipruner"]) as handle:
        expected = answer(model(**inputs, use_cache=True).past_key_values, model, fixed=False)
        handle.compile_prefill(buckets=(32,), backend=compiler)
        cache = fix(model(**inputs, use_cache=True).past_key_values, 5)
        found = answer(cache, torch.compile(model, fullgraph=True, backend=compiler), fixed=True)
    assert len(graphs) == 2
    assert all((a - b).abs().max() < TOLERANCE for a, b in zip(found, expected, strict=True))


def test_graphs_that_reuse_their_memory_serve_threads() -> None:
    """As CUDA graphs do, this compiler writes every result where the last run's was."""
    model = tiny.model("llava", layers=LAYERS)
    prompts = [tiny.inputs("llava", text=text, seed=text) for text in (5, 6, 7, 8)]

    def reusing(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        held: list[torch.Tensor] = []

        def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
            found = graph(*inputs)
            if not held:
                held.extend(x.clone() for x in found)
            for place, x in zip(held, found, strict=True):
                place.copy_(x)
            return list(held)

        return run

    def ask(prompt: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model(**prompt).logits[:, -1]

    torch._dynamo.reset()
    with attach(model, SCHEDULES["visipruner"]) as handle:
        expected = [ask(prompt) for prompt in prompts]
        handle.compile_prefill(buckets=(48,), backend=reusing)
        ask(prompts[0])
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, prompts * 8))
    assert all((a - b).abs().max() < TOLERANCE for a, b in zip(found, expected * 8, strict=True))


def test_a_score_that_is_no_number_is_refused_after_the_graph() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    _, compiler = counting()
    with torch.no_grad(), attach(model, SCHEDULES["fastv"]) as handle:
        model.model.language_model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
        handle.compile_prefill(buckets=(32,), backend=compiler)
        with pytest.raises(RuntimeStateError, match="not finite"):
            model(**tiny.inputs("llava"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("threshold", "thresholds"),
        ("context-fastv", "prunes text"),
        ("random", "ranks by 'random'"),
        ("var-fastv", "redistributes"),
        ("dense", "changes nothing"),
    ],
)
def test_plans_without_fixed_shapes_are_refused(name: str, message: str) -> None:
    with attach(tiny.model("llava", layers=LAYERS), SCHEDULES[name]) as handle:
        with pytest.raises(InputError, match=message):
            handle.compile_prefill()
        with pytest.raises(InputError, match="changes nothing" if name == "dense" else "."):
            handle.compile_prefill(buckets=())
