"""Schedules over six layers that between them use every field, written out by hand rather than by policies.

Tiny prompts hold 8 to 60 visual tokens: counts of 4 to 6 drop some everywhere, and fractions differ between samples.
"""

from __future__ import annotations

from planner.schedule import Count, Fraction, Keep, RankBy, Redistribute, Schedule, Select, Stage, Threshold, dense

LAYERS = 6
NOTHING = Select(rank_by="none", keep=Count(count=0))
#: Tiny models have no massive activations: a low bar makes sinks of ordinary tokens.
EDIT = Redistribute(sink_dims=(3, 17), tau=1.2, rho=0.2, p=0.6, min_visual=0.1)


def static(schedule: Schedule) -> bool:
    """Every sample keeps the same number of tokens, so that shapes, and with them costs, are known in advance."""
    return not any(isinstance(select.keep, Threshold) for select in schedule.selects)


def select(rank_by: RankBy, keep: Keep | int | float, **options: object) -> Select:
    """A whole number is a count, a part of one a fraction."""
    if isinstance(keep, int):
        keep = Count(count=keep)
    elif isinstance(keep, float):
        keep = Fraction(fraction=keep)
    return Select.model_validate({"rank_by": rank_by, "keep": keep, **options})


def after_layer(layer: int, *selects: Select, **options: object) -> Schedule:
    """Select once after a layer, all else as the model has it."""
    first = Stage.model_validate({"first": 0, "last": layer + 1, "selects": selects, **options})
    return Schedule(stages=(first, Stage(first=layer + 1, last=LAYERS)))


def _visipruner(*shallow: Stage, keep: Keep | int = 5, rank_by: RankBy = "influence_l2") -> Schedule:
    """Shallow stages up to layer 3, filter after it, exit after layer 4."""
    return Schedule(
        stages=(
            *shallow,
            Stage(first=3, last=4, cache_visual="kept", selects=(select(rank_by, keep),)),
            Stage(first=4, last=5, selects=(NOTHING,)),
            Stage(first=5, last=6),
        )
    )


_ALONE = Stage(first=1, last=3, visual_attention="self", text_to_visual="none", cache_visual="none")
_MERGE = Stage(first=0, last=1, visual_attention="self", text_to_visual="merge", cache_visual="kept")

SCHEDULES: dict[str, Schedule] = {
    "dense": dense(LAYERS),
    "random": after_layer(1, select("random", 5, seed=3)),
    "fastv": after_layer(1, select("last_attention", 5)),
    "fastv-cache-kept": after_layer(1, select("last_attention", 0.5), cache_visual="kept"),
    # Every layer runs on all tokens, and every layer's cache forgets the same ones.
    "evict": Schedule(
        stages=(Stage(first=0, last=LAYERS, cache_visual="kept", selects=(select("last_attention", 5),)),)
    ),
    "fastv-cache-none": after_layer(1, select("last_attention", 5), cache_visual="none"),
    "pyramiddrop": Schedule(
        stages=(
            Stage(first=0, last=2, selects=(select("last_attention", 0.5),)),
            Stage(first=2, last=4, selects=(select("last_attention", 0.5),)),
            Stage(first=4, last=5, selects=(select("last_attention", 0.5),)),
            Stage(first=5, last=6),
        )
    ),
    "sparsevlm": Schedule(
        stages=(
            Stage(first=0, last=2, selects=(select("text_raters", 7),)),
            Stage(first=2, last=4, selects=(select("text_raters", 4),)),
            Stage(first=4, last=6),
        )
    ),
    "fitprune": Schedule(
        stages=(
            Stage(first=0, last=2, selects=(select("cross_self_attention", 7),)),
            Stage(first=2, last=3, selects=(select("cross_self_attention", 4),)),
            Stage(first=3, last=6),
        )
    ),
    "detrended": after_layer(1, select("last_attention_detrended", 5)),
    "detrended-probe": after_layer(2, select("last_attention_detrended", 0.4, probe=True)),
    "text-attention": after_layer(1, select("text_attention", 5)),
    "visual-attention": after_layer(2, select("visual_attention", 0.4)),
    "influence-cos": after_layer(2, select("influence_cos", 4)),
    "visipruner": _visipruner(_MERGE, _ALONE),
    "visipruner-hidden": _visipruner(
        Stage(first=0, last=3, visual_attention="self", text_to_visual="none", cache_visual="none")
    ),
    "visipruner-self": _visipruner(Stage(first=0, last=3, visual_attention="self")),
    "visipruner-merge": _visipruner(
        Stage(first=0, last=3, visual_attention="self", text_to_visual="merge", cache_visual="none")
    ),
    "prefix": _visipruner(
        Stage(first=0, last=3, visual_attention="prefix", text_to_visual="none", cache_visual="none")
    ),
    "prefix-read": _visipruner(Stage(first=0, last=3, visual_attention="prefix")),
    "prefix-mixed": _visipruner(
        _MERGE,
        Stage(first=1, last=2, visual_attention="prefix", cache_visual="none", selects=(select("last_attention", 7),)),
        Stage(first=2, last=3, visual_attention="prefix", text_to_visual="none", cache_visual="none"),
    ),
    "prefix-late": Schedule(
        stages=(
            Stage(first=0, last=1),
            Stage(first=1, last=4, visual_attention="prefix", selects=(select("text_raters", 0.5),)),
            Stage(
                first=4, last=6, visual_attention="self", cache_visual="kept", selects=(select("random", 3, seed=2),)
            ),
        )
    ),
    "prefix-probe": Schedule(
        stages=(
            Stage(
                first=0,
                last=3,
                visual_attention="prefix",
                text_to_visual="none",
                cache_visual="none",
                selects=(select("influence_l2", 5, probe=True),),
            ),
            Stage(first=3, last=6),
        )
    ),
    "context-prefix": Schedule(
        stages=(
            Stage(
                first=0,
                last=2,
                visual_attention="prefix",
                selects=(select("attention_received", 0.7, of="context", protect=3),),
            ),
            Stage(first=2, last=4, visual_attention="prefix", redistribute=EDIT),
            Stage(first=4, last=6),
        )
    ),
    "visipruner-mixed": _visipruner(
        Stage(first=0, last=1, text_to_visual="none", cache_visual="none"),
        Stage(first=1, last=3, visual_attention="self", cache_visual="kept"),
    ),
    "probe": Schedule(
        stages=(
            Stage(
                first=0,
                last=3,
                visual_attention="self",
                text_to_visual="none",
                cache_visual="none",
                selects=(select("influence_l2", 5, probe=True),),
            ),
            Stage(first=3, last=5, selects=(NOTHING,)),
            Stage(first=5, last=6),
        )
    ),
    "probe-dense": after_layer(2, select("last_attention", 0.4, probe=True)),
    "threshold": _visipruner(_MERGE, _ALONE, keep=Threshold(threshold=0.1, at_least=2, at_most=9)),
    "threshold-relative": after_layer(
        1, select("influence_l2", Threshold(threshold=0.05, relative=True, at_most=12)), cache_visual="kept"
    ),
    "threshold-cos": after_layer(2, select("influence_cos", Threshold(threshold=0.002, at_most=12))),
    "skip": Schedule(
        stages=(
            Stage(first=0, last=2),
            Stage(first=2, last=4, visual_attention="skip"),
            Stage(first=4, last=5),
            Stage(first=5, last=6, visual_attention="skip", text_to_visual="none", cache_visual="none"),
        )
    ),
    "skip-select": Schedule(
        stages=(
            Stage(first=0, last=1, visual_attention="self"),
            Stage(
                first=1, last=3, visual_attention="skip", selects=(select("last_attention", 5),), cache_visual="kept"
            ),
            Stage(first=3, last=6),
        )
    ),
    "exit": after_layer(3, NOTHING),
    "exit-at-once": after_layer(0, NOTHING, cache_visual="none"),
    "prellm": Schedule(stages=(Stage(first=0, last=6),), entry=select("encoder_norm", 0.5)),
    "prellm-random": Schedule(stages=(Stage(first=0, last=6),), entry=select("random", 6, seed=1)),
    "dart": Schedule(stages=(Stage(first=0, last=6),), entry=select("pivot_distance", 6, pivots=3)),
    "diverse": Schedule(stages=(Stage(first=0, last=6),), entry=select("max_min_distance", 0.3)),
    "cdpruner": Schedule(stages=(Stage(first=0, last=6),), entry=select("determinantal", 5)),
    "cdpruner-visipruner": _visipruner(_MERGE, _ALONE).model_copy(update={"entry": select("determinantal", 0.4)}),
    "pool": Schedule(stages=(Stage(first=0, last=6),), entry=select("grid", 0.25, merge="cell")),
    "pool-odd": Schedule(stages=(Stage(first=0, last=6),), entry=select("grid", 7, merge="cell")),
    "stride": Schedule(stages=(Stage(first=0, last=6),), entry=select("grid", 5)),
    "merge-mean": Schedule(stages=(Stage(first=0, last=6),), entry=select("pivot_distance", 6, merge="mean")),
    "merge-nearest": Schedule(stages=(Stage(first=0, last=6),), entry=select("encoder_norm", 0.4, merge="nearest")),
    "merge-visipruner": _visipruner(_MERGE, _ALONE).model_copy(
        update={"entry": select("max_min_distance", 0.6, merge="nearest")}
    ),
    "per-picture": Schedule(stages=(Stage(first=0, last=6),), entry=select("max_min_distance", 4, per="picture")),
    "per-tile": Schedule(
        stages=(Stage(first=0, last=6),), entry=select("determinantal", 0.4, per="tile", merge="nearest")
    ),
    "per-picture-pool": Schedule(
        stages=(Stage(first=0, last=6),), entry=select("grid", 0.3, per="picture", merge="cell")
    ),
    "per-tile-random": _visipruner(_MERGE, _ALONE).model_copy(update={"entry": select("random", 3, per="tile")}),
    "blind": Schedule(stages=(Stage(first=0, last=6),), entry=NOTHING),
    "prellm-visipruner": _visipruner(_MERGE, _ALONE).model_copy(update={"entry": select("encoder_norm", 0.7)}),
    "context": Schedule(
        stages=(
            Stage(first=0, last=1, selects=(select("attention_received", 0.7, of="context", protect=3),)),
            Stage(first=1, last=3, selects=(select("attention_received", 1, of="context", protect=3),)),
            Stage(first=3, last=6),
        )
    ),
    "context-fastv": after_layer(
        1, select("last_attention", 5), select("attention_received", 0.5, of="context", protect=2), cache_visual="kept"
    ),
    "var": Schedule(stages=(Stage(first=0, last=2), Stage(first=2, last=6, redistribute=EDIT))),
    "var-fastv": Schedule(
        stages=(
            Stage(first=0, last=2, selects=(select("last_attention", 0.6),)),
            Stage(first=2, last=6, redistribute=EDIT),
        )
    ),
}

_BLIND = {"visual_attention": "self", "text_to_visual": "none", "cache_visual": "none"}
#: For families whose layers 2 and 5 attend and whose other layers are recurrent: ranked by the attention of the former,
#: visual rows alone where text does not read them.
HYBRID: dict[str, Schedule] = {
    "hybrid-fastv": after_layer(2, select("last_attention", 5), cache_visual="kept"),
    "hybrid-cache-none": after_layer(2, select("text_raters", 0.5), cache_visual="none"),
    "hybrid-visipruner": Schedule(
        stages=(
            Stage.model_validate({"first": 0, "last": 2, **_BLIND}),
            Stage(first=2, last=3, cache_visual="kept", selects=(select("influence_l2", 5),)),
            Stage(first=3, last=4, selects=(NOTHING,)),
            Stage(first=4, last=6),
        )
    ),
    "hybrid-late": Schedule(
        stages=(
            Stage(first=0, last=1, selects=(select("random", 0.8, seed=4),)),
            Stage.model_validate({"first": 1, "last": 4, **_BLIND}),
            Stage(first=4, last=6),
        )
    ),
    "hybrid-probe": Schedule(
        stages=(
            Stage.model_validate(
                {"first": 0, "last": 2, **_BLIND, "selects": (select("influence_l2", 4, probe=True),)}
            ),
            Stage(first=2, last=6),
        )
    ),
    "hybrid-skip": Schedule(
        stages=(
            Stage(first=0, last=1),
            Stage(first=1, last=4, visual_attention="skip", text_to_visual="none", cache_visual="none"),
            Stage(first=4, last=6),
        )
    ),
    "hybrid-threshold": after_layer(
        2, select("influence_l2", Threshold(threshold=0.05, relative=True, at_most=12)), cache_visual="kept"
    ),
    "hybrid-context": after_layer(
        2, select("attention_received", 0.6, of="context", protect=2), select("last_attention", 0.4)
    ),
    "hybrid-entry": Schedule(
        stages=(Stage.model_validate({"first": 0, "last": 3, **_BLIND}), Stage(first=3, last=6)),
        entry=select("max_min_distance", 0.6, merge="nearest"),
    ),
}


def _ordinary(schedule: Schedule) -> bool:
    """All rows in one stream, and ranked, where attention is needed, after layer 2."""
    return all(
        stage.visual_attention == stage.text_to_visual == "full"
        and all(s.rank_by in ("none", "random") or (stage.last == 3 and not s.probe) for s in stage.selects)
        for stage in schedule.stages
    )


#: All that such families can run.
ON_HYBRIDS = {**{name: schedule for name, schedule in SCHEDULES.items() if _ordinary(schedule)}, **HYBRID}

#: Positions counted anew, for families with one position axis.
PACKED: dict[str, Schedule] = {
    "packed": Schedule(stages=(Stage(first=0, last=6),), entry=select("max_min_distance", 0.4), positions="packed"),
    "packed-visipruner": _visipruner(_MERGE, _ALONE).model_copy(
        update={"entry": select("random", 0.6), "positions": "packed"}
    ),
    "packed-blind": Schedule(stages=(Stage(first=0, last=6),), entry=NOTHING, positions="packed"),
}
