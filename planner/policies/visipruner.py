"""VisiPruner ("Decoding Discontinuous Cross-Modal Dynamics for Efficient Multimodal LLMs")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from planner.errors import InputError
from planner.policies.base import Policy, check_layer, keep_of
from planner.policies.proposals import budgets, deepest, proposing
from planner.policies.window import ShallowRule
from planner.schedule import Count, Keep, RankBy, Schedule, Select, Stage, Threshold

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload

_SCORES: dict[str, RankBy] = {
    "l2": "influence_l2",
    "cos": "influence_cos",
    "attention": "last_attention",
    "detrended": "last_attention_detrended",
    "text": "text_attention",
    "visual": "visual_attention",
    "random": "random",
}
Layer = Annotated[float, Field(ge=0)]
#: For the layers before the filter. Those first under which pretrained models keep their answers; then the paper's, and
#: what is left of it, from cheapest to dearest per layer.
SHALLOW_RULES = (
    ShallowRule("prefix_before", (("visual_attention", "prefix"),)),
    ShallowRule("prefix_open_before", (("visual_attention", "prefix"), ("text_to_visual", "full"))),
    ShallowRule("alone_before", (("visual_attention", "self"),)),
    ShallowRule("merged_before", (("merge_first", True),)),
    ShallowRule("self_before", (("visual_attention", "self"), ("text_to_visual", "full"))),
    ShallowRule("masked_before", (("visual_attention", "full"),)),
)
#: Layers before the filter run as the model has them: the shallow stage is empty.
UNTOUCHED = ShallowRule("", (("visual_attention", "full"), ("text_to_visual", "full")))


class VisiPruner(Policy):
    """Shallow layers without image reading, one filtering layer, middle layers on the kept tokens, deep layers
    without any.

    * ``[0, filter)``: visual tokens see the text before them and themselves, text does not see them, decoding finds
      none of them in the cache;
    * layer `filter`: all tokens, as the model has it; those with the most influence on the last token are kept, in
      and decoding finds all of them in its cache;
    * ``[filter + 1, exit)``: the kept ones; ``[exit, L)``: none. Without `exit` they stay to the end.

    Layers count from 0 (the paper counts from 1). Fractional bounds and budgets are a paper's means over samples:
    they can be costed, never executed, and as in the paper's accounting they have no dense filtering layer.

    Attributes:
        filter, exit: first and last bound of the middle layers.
        keep: visual tokens kept: below 1 a share, else a number.
        visual_attention, text_to_visual: the rule in the shallow layers. In the paper's text visual tokens see only
            themselves (``self``); its released code lets them see the text before them as well (``prefix``), without
            which a pretrained model loses most answers. ``prefix`` unless something is merged, which takes ``self``.
        merge_first: layer 0 puts all of the text's attention to the image on one visual token, instead of none.
        filter_cache: what decoding finds in the filtering layer: all that the prompt's text saw, or, as in the paper,
            the kept tokens alone. That is another model for answers than for prompts: it is told where it was not
            measured.
        probe: score layer `filter` before it runs, so that it runs on the kept tokens only, and its cache holds those.
        rank_by: influence as an L2 change, as 1 - cosine, or at random; attention of the last token, the same less its
            trend over positions, of the text after the image, or of the visual tokens (table 4).
        threshold: keep tokens that reach this score, at most `at_most`, in place of a fixed `keep`.
        relative: the threshold is relative to the norm of the last token's attention output.
        expected: mean number kept on calibration samples, which stands for a threshold in cost tables.
    """

    name: ClassVar[str] = "visipruner"
    summary: ClassVar[str] = "shallow layers blind, a filtering layer, few tokens in the middle, none in deep layers"

    filter: Layer
    keep: Annotated[float, Field(ge=0)] = 10
    exit: Layer | None = None
    visual_attention: Literal["prefix", "self", "full"] | None = None
    text_to_visual: Literal["none", "merge", "full"] = "none"
    merge_first: bool = False
    filter_cache: Literal["kept", "all"] = "all"
    probe: bool = False
    rank_by: Literal["l2", "cos", "attention", "detrended", "text", "visual", "random"] = "l2"
    threshold: float | None = None
    at_most: Annotated[int, Field(ge=1)] | None = None
    relative: bool = False
    expected: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> VisiPruner:
        if (self.threshold is None) != (self.at_most is None):
            raise ValueError("threshold and at_most go together")
        if self.threshold is None and (self.relative or self.expected is not None):
            raise ValueError("relative and expected belong to a threshold")
        if self.threshold is not None and self.rank_by == "random":
            raise ValueError("a random choice has no score to compare with a threshold")
        if self.merge_first and (self.shallow_attention, self.text_to_visual) != ("self", "none"):
            raise ValueError("merge_first changes layer 0 of visual_attention=self,text_to_visual=none")
        if self.text_to_visual == "merge" and self.shallow_attention != "self":
            raise ValueError("text_to_visual=merge needs visual_attention=self")
        if self.probe and self.filter_cache == "all" and "filter_cache" in self.model_fields_set:
            raise ValueError("a probed filtering layer runs on the kept tokens: filter_cache must be kept")
        if self.probe and self.rank_by in ("text", "visual"):
            raise ValueError("a probe computes one query row: rank_by must be l2, cos, attention or detrended")
        if self.probe and self.filter == 0:
            raise ValueError("probe needs a layer before the filtering layer: filter must be at least 1")
        return self

    @property
    def shallow_attention(self) -> Literal["prefix", "self", "full"]:
        """`visual_attention`, its default settled."""
        if self.visual_attention is not None:
            return self.visual_attention
        return "self" if self.merge_first or self.text_to_visual == "merge" else "prefix"

    def resolve(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> VisiPruner:
        if self.filter == 0:
            return self
        return self.model_copy(update={"visual_attention": self.shallow_attention})

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        check_layer(self.name, "filter", self.filter, spec.layers)
        first, last = _whole(self.filter), _whole(min(self.exit, spec.layers) if self.exit is not None else spec.layers)
        probing = self.probe or isinstance(first, float)
        select = self._select(probing)
        shallow = self._shallow(first, (select,) if probing else ())
        middle = first if probing else first + 1
        filtering: tuple[Stage, ...] = ()
        if not probing:
            filtering = (Stage(first=first, last=first + 1, cache_visual=self.filter_cache, selects=(select,)),)
        if last <= middle and last < spec.layers:
            raise InputError(
                f"policy 'visipruner': exit={last} leaves no layer to the kept tokens after filter={first}",
                f"Choose exit of at least {middle + 1}",
            )
        nothing = Select(rank_by="none", keep=Count(count=0))
        kept = (
            (Stage(first=middle, last=last, selects=(nothing,) if last < spec.layers else ()),) if middle < last else ()
        )
        deep = (Stage(first=last, last=spec.layers),) if last < spec.layers else ()
        return Schedule(stages=(*shallow, *filtering, *kept, *deep))

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[VisiPruner]:
        """Windows to the last layer: `VTW`, laid over them, ends them earlier. After shallow layers that are untouched,
        and after each rule as deep as its curve lets it reach, or half as deep. Of each window fixed budgets, and where
        the influence probe proposes them thresholds: each sample then keeps its own number."""
        starts = [(layer, UNTOUCHED) for layer in {0, *(spec.layers * share // 8 for share in (1, 2, 4))}]
        for rule in SHALLOW_RULES:
            points = proposing(profile, rule.curve)
            depth = min(deepest(points), spec.layers - 2) if points is not None else 0
            starts += [(layer, rule) for layer in sorted({depth, (depth + 1) // 2}) if layer]
        starts = _attending(starts, spec)
        for layer, rule in starts:
            for rank_by in ("l2", "attention"):
                settings = {"filter": layer, "rank_by": rank_by, **(dict(rule.settings) if layer else {})}
                yield from (cls.make({**settings, "keep": keep}) for keep in budgets(profile))
                if rank_by == "l2":
                    yield from (cls.make({**settings, **adaptive}) for adaptive in _thresholds(profile, layer))

    def family(self) -> str:
        if self.threshold is None:
            return super().family()
        return self.model_copy(update=dict.fromkeys(("threshold", "at_most", "expected"))).family()

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        from planner.cost.sweep_layout import Scoring, SweepLayout, budget, column, segment, whole_layers

        visual, probes = workload.visual_tokens, column(given, "probe", False).astype(bool)
        probe = bool(probes[0])
        filters = whole_layers(given["filter"], 1 if probe else 0, spec.layers - 1) if "filter" in given else None
        exits = whole_layers(column(given, "exit", spec.layers), 1, spec.layers)
        kept = budget(column(given, "keep", 10), visual)
        if given.keys() - {"filter", "keep", "exit", "probe"} or filters is None or exits is None or kept is None:
            return None
        # Only shallow layers whose visual tokens are isolated leave an image stream behind.
        least = max(1, spec.decoder.deepstack) if workload.image_stream_cached else 0
        middle = filters if probe else filters + 1
        if (
            (probes != probe).any()
            or (filters < least).any()
            or ((exits <= middle) & (exits < spec.layers)).any()
            or (kept == 0).any()
        ):
            return None
        first, middle, last, left = (values.astype(kind) for values in (filters, middle, exits, kept))
        select = Select(rank_by="influence_l2", keep=Count(count=1), probe=probe)
        scoring = (Scoring(select, visual, workload.text_tokens, first),)
        shallow = segment(
            workload, 0, first, visual, cached_visual=0, alone=True, prefix=True, reads=False,
            streamed=workload.image_stream_cached, scorings=scoring if probe else (),
        )  # fmt: skip
        filtering = segment(
            workload, first, middle, visual, scorings=() if probe else scoring, gone=0 if probe else visual - left
        )
        rest = segment(workload, middle, last, left), segment(workload, last, spec.layers, 0)
        return SweepLayout((shallow, filtering, *rest), streams=True)

    def _select(self, probing: bool) -> Select:
        if self.threshold is not None and self.at_most is not None:
            keep: Keep = Threshold(
                threshold=self.threshold, relative=self.relative, at_most=self.at_most, expected=self.expected
            )
        else:
            keep = keep_of(self.keep)
        if self.keep == 0 and self.threshold is None:
            return Select(rank_by="none", keep=keep)
        score = _SCORES[self.rank_by]
        return Select(rank_by=score, keep=keep, probe=probing and score != "random")

    def _shallow(self, filter_layer: float, selects: tuple[Select, ...]) -> tuple[Stage, ...]:
        if filter_layer == 0:
            return ()
        rule: dict[str, Any] = {
            "visual_attention": self.shallow_attention,
            "text_to_visual": self.text_to_visual,
            "cache_visual": _CACHE[self.text_to_visual],
        }
        if not self.merge_first:
            return (Stage(first=0, last=filter_layer, selects=selects, **rule),)
        merging: dict[str, Any] = {"visual_attention": "self", "text_to_visual": "merge", "cache_visual": "none"}
        if filter_layer <= 1:
            return (Stage(first=0, last=filter_layer, selects=selects, **merging),)
        return (Stage(first=0, last=1, **merging), Stage(first=1, last=filter_layer, selects=selects, **rule))


def _attending(starts: list[tuple[int, ShallowRule]], spec: ModelSpec) -> list[tuple[int, ShallowRule]]:
    """Filtering layers that attend: of a rule the deepest that its curve allows, without one the next."""
    recurrent, found = spec.decoder.recurrent, []
    for layer, rule in starts:
        near = range(layer, spec.layers) if rule is UNTOUCHED else range(layer, 0, -1)
        found += [(other, rule) for other in near if other not in recurrent][:1]
    return list(dict.fromkeys(found))


def _thresholds(profile: Profile, layer: int) -> Iterator[dict[str, Any]]:
    """Adaptive forms of the filter, as the influence probe proposes them for a layer."""
    probe, visual = profile.probes.get("influence"), profile.prompt.visual_tokens
    for found in probe.values.get("adaptive", {}).values() if probe is not None else ():
        threshold, kept, most = (found[name][layer] for name in ("threshold", "kept", "most"))
        if threshold > 0:
            yield {
                "threshold": float(f"{threshold:.4g}"),
                "relative": True,
                "at_most": max(1, math.ceil(most * visual)),
                "expected": round(max(1.0, kept * visual), 2),
            }


#: What decoding may read in shallow layers, by what the prompt's text could.
_CACHE = {"none": "none", "merge": "none", "full": "all"}


def _whole(layer: float) -> float:
    """Whole bounds as integers, so that costs stay integers."""
    return int(layer) if float(layer).is_integer() else layer
