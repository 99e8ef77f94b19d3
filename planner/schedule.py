"""The schedule: for each decoder layer, which tokens are computed, which attend to which, and what the KV cache keeps.

Policies produce it; cost, runtime, report and the tests' reference read it and nothing else. It is also, field for
field, the `decision` block of a plan file, so the classes here are frozen pydantic models.

Semantics, for a prompt made of text before the image, visual tokens, and text after the image:

* A schedule is a tuple of stages, half-open layer ranges that tile ``[0, layers)``.
* Tokens dropped by a `Select` are gone from every later layer: attention, FFN and KV cache.
* `Schedule.entry` selects before layer 0, by the vision encoder or its projected features (pruning before the language
  model); `Schedule.tower` merges inside the encoder.
* Tokens keep their original position ids, unless `Schedule.positions` packs what an entry leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from planner.errors import ScheduleError

RankBy = Literal[
    "none",  # no ranking: keep is 0 or everything
    "random",  # by lot: seeded by the question, before the decoder by the picture
    "last_attention",  # head-mean attention weight given by the last prompt token (FastV, PyramidDrop)
    "last_attention_detrended",  # the same, less its straight trend over positions: recent tokens get more anyway
    "text_attention",  # mean weight given by the text after the image (VisiPruner table 4)
    "visual_attention",  # mean weight given by the visual tokens (the same)
    "influence_l2",  # L2 change of the last row's attention output without the token (VisiPruner eq. 6)
    "influence_cos",  # 1 - cosine of the same change (VisiPruner eq. 7-8)
    "text_raters",  # mean attention from the text tokens most similar to the image (SparseVLM)
    "cross_self_attention",  # text-to-token times image-to-token attention, head maximum (FitPrune)
    "attention_received",  # mean over queries that see the token, head maximum (context pruning, as we read eq. 4)
    "encoder_attention",  # attention received in the vision encoder's scoring layer (VisionZip)
    "tile_attention",  # the same, within a budget for each tile by what an early layer's attention gives it (HiRED)
    "encoder_norm",  # L2 norm of the projected visual feature
    "pivot_distance",  # a few pivots, then what is least similar to any of them (DART)
    "max_min_distance",  # greedily what is farthest from all that is chosen (DivPrune)
    "determinantal",  # greedily what adds most volume, weighted by similarity to the question (CDPruner)
    "salient_then_distant",  # part by the encoder's attention, then what is farthest from all chosen (VisPruner)
    "frame_change",  # 1 - cosine with the token at the same place one video frame earlier (EVS)
    "frame_uniqueness",  # unlike the video and its frame, with larger budgets for unlike frames (VidCom2)
    "grid",  # the middle token of each of as many cells of the picture as the budget allows
]
#: What becomes of the tokens that an entry drops.
Merge = Literal[
    "none",  # nothing
    "mean",  # the kept token of the lowest rank becomes the mean of itself and all of them
    "nearest",  # each joins the kept token it is most like; that one becomes the mean of all that joined it
    "cell",  # the middle token of a cell becomes the cell's mean (average pooling)
    "pixels",  # images have fewer pixels, where the model takes any number of them: the encoder too sees only so many
]
#: Orders of picks over projected features: the first n tokens of an order are what a budget of n keeps.
FEATURE_ORDERS: frozenset[str] = frozenset({"pivot_distance", "max_min_distance", "determinantal"})
#: Scores that read where tokens lie in their picture.
PLACED: frozenset[str] = frozenset({"frame_change", "frame_uniqueness", "grid"})
#: Scores for which the attention of the vision encoder is read.
ENCODER_SCORES: frozenset[str] = frozenset({"encoder_attention", "salient_then_distant", "tile_attention"})
#: Scores that exist before the decoder runs, and only there.
ENTRY_SCORES: frozenset[str] = FEATURE_ORDERS | ENCODER_SCORES | PLACED | {"encoder_norm"}
#: Choices without a score that a threshold could be compared with.
UNRANKED: frozenset[str] = FEATURE_ORDERS | {"none", "random", "grid", "salient_then_distant", "frame_uniqueness"}
#: Scores that read the attention from text to visual tokens, so the scoring layer must have it.
ATTENTION_SCORES: frozenset[str] = frozenset(
    {
        *("last_attention", "last_attention_detrended", "text_attention", "visual_attention"),
        *("influence_l2", "influence_cos", "text_raters", "cross_self_attention"),
    }
)
#: Scores that read the attention between visual tokens.
BETWEEN_VISUAL: frozenset[str] = frozenset({"visual_attention", "cross_self_attention"})
#: Scores made of the attention of the last prompt row alone.
OF_LAST_ROW: frozenset[str] = frozenset({"last_attention", "last_attention_detrended", "influence_l2", "influence_cos"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    #: Fields that came after the first plans: a document leaves them out where they say nothing, so that those plans
    #: keep their digests.
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if value is not None or name not in self.LATER}


class Count(_Frozen):
    """Keep this many tokens, or all where there are fewer. Fractions of a token occur only in a paper's accounting."""

    count: Annotated[float, Field(ge=0)] | Annotated[int, Field(ge=0)]


class Fraction(_Frozen):
    """Keep this share of the tokens present at the selection, to the nearest token (halves up), at least one."""

    fraction: Annotated[float, Field(gt=0, le=1)]


class Threshold(_Frozen):
    """Keep the tokens whose score reaches a threshold: adaptive, so each sample keeps its own number.

    `relative` divides the score by the norm of the last token's attention output first. `expected` is the mean number
    kept on the calibration samples: what the cost model uses where it must name one number.
    """

    threshold: float
    relative: bool = False
    at_least: Annotated[int, Field(ge=1)] = 1
    at_most: Annotated[int, Field(ge=1)]
    expected: float | None = None


Keep = Count | Fraction | Threshold


class Select(_Frozen):
    """Which tokens survive.

    Scores come from the last layer of the stage that carries the selection (whose attention has just run), or, with
    `probe`, from the layer after it: keys and values of all tokens, query of the last row only, before that layer runs
    on the survivors.

    `of="context"` ranks text tokens after the image instead, except the last `protect` ones (question and role
    tokens).

    `per` says what an entry's budget is for, and within what it ranks: all visual tokens of a prompt, each picture's
    (image or video), or each tile's. A tile is what lies in one grid: where tiles are unpadded and put together
    (LLaVA-NeXT), the base view and the rest.

    `merge` says what becomes of the tokens that an entry drops; `pivots` how many pivots `pivot_distance` begins with;
    `salient` which share of the budget `salient_then_distant` gives to attention.
    """

    rank_by: RankBy
    keep: Keep
    of: Literal["visual", "context"] = "visual"
    probe: bool = False
    protect: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    pivots: Annotated[int, Field(ge=1)] = 4
    per: Literal["prompt", "picture", "tile"] = "prompt"
    salient: Annotated[float, Field(gt=0, le=1)] = 0.5
    merge: Merge = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Select:
        if self.rank_by == "none" and not (isinstance(self.keep, Count) and self.keep.count == 0):
            raise ValueError("rank_by 'none' can only drop everything: keep must be {'count': 0}")
        if isinstance(self.keep, Threshold) and self.rank_by in UNRANKED:
            raise ValueError(f"a threshold needs a score, and rank_by '{self.rank_by}' has none")
        if self.of == "context" and self.protect < 1:
            raise ValueError("a context selection must protect at least the last row, which predicts the answer")
        if isinstance(self.keep, Threshold) and self.keep.relative and not self.rank_by.startswith("influence"):
            raise ValueError(f"a relative threshold is a share of an influence, not of '{self.rank_by}'")
        if self.merge in ("cell", "pixels") and self.rank_by != "grid":
            raise ValueError(f"merge '{self.merge}' needs cells, which rank_by '{self.rank_by}' does not make")
        if self.merge != "none" and self.rank_by == "none":
            raise ValueError("where nothing is kept, nothing can be merged: merge must be 'none'")
        ranks_context = self.rank_by == "attention_received"
        if self.rank_by not in ("none", "random") and ranks_context != (self.of == "context"):
            raise ValueError(f"rank_by '{self.rank_by}' does not rank {self.of} tokens")
        if self.probe and self.rank_by not in OF_LAST_ROW:
            raise ValueError(f"probe computes one query row, which cannot give the score '{self.rank_by}'")
        return self

    @property
    def in_words(self) -> str:
        """What it does, a phrase."""
        if self.rank_by == "none":
            return "drop the image" if self.of == "visual" else "drop the context"
        keep = self.keep
        if isinstance(keep, Count):
            amount = f"keep {keep.count:g}"
        elif isinstance(keep, Fraction):
            amount = f"keep {keep.fraction:.3g} of them"
        else:
            amount = f"keep score >= {keep.threshold:g}{' of |O|' if keep.relative else ''}, at most {keep.at_most}"
        what = "" if self.of == "visual" else " context tokens"
        return f"{amount}{what} by {self.rank_by}{' (probe)' if self.probe else ''}"


class Redistribute(_Frozen):
    """Move attention weight from visual sink tokens to the other visual tokens in image-centric heads (VAR).

    A token is a sink when ``max over sink_dims of |x_d / RMS(x)| >= tau`` at the layer's input. A head is
    image-centric for a query row when its visual attention sums to at least `min_visual` and the non-sink share of
    that is at least `rho`. A share `p` of the sink tokens' weight moves. Layers without attention weights stay as they
    are.
    """

    sink_dims: tuple[int, ...] = Field(min_length=1)
    tau: float = 20.0
    rho: Annotated[float, Field(ge=0, le=1)] = 0.8
    p: Annotated[float, Field(ge=0, le=1)] = 0.6
    min_visual: Annotated[float, Field(ge=0, le=1)] = 0.2


class Stage(_Frozen):
    """Layers ``[first, last)`` under one rule.

    Attributes:
        visual_attention: ``full``: visual tokens attend as in the model. ``prefix``: each attends to the text before
            it and to itself, and to no other visual token. The text before it is all that the layer computes of the
            text ahead of it in the sequence, between earlier images too, as far as the model lets it be seen (padding
            never; a sliding window or chunk cuts it). ``self``: each attends to itself alone, so that its attention
            output is its value vector, and neither its query nor (unless text reads it) its key is computed. ``skip``:
            visual tokens pass by these layers as they are and come back behind them (ShortV); text that reads them
            reads keys and values of what passes by.
        text_to_visual: ``full``: text after the image attends to visual tokens. ``none``: it does not, and the
            softmax runs over the rest. ``merge``: all the weight it puts on visual keys goes to the value of the
            first visual token (needs ``self``).
        cache_visual: visual tokens that decoding may attend to in these layers: ``all`` that the layer computed, those
            that the stage's selection ``kept`` (after a merge: the merge token), or ``none``.
        cache_generated: of the answer, the tokens that stay in the cache of these layers: the last so many, or a share
            that is chosen as they come (Dynamic-LLaVA); None: all. The newest one always sees itself.
        selects: applied after layer ``last - 1``, in order.

    Recurrent layers (linear attention, short convolutions) run over the rows that are left, in order, and hand their
    state on; no cache of theirs can forget a row that ran, whatever `cache_visual` says. There visual tokens are alone
    only where text goes on without them: ``self`` (each a sequence of its own, from a fresh state) and ``skip`` with
    text_to_visual ``none``. The runtime refuses what else a stage may ask of such a layer.

    Bounds are whole layers. Fractional ones (a paper's mean over samples) can be costed in that paper's convention but
    not executed.
    """

    first: Annotated[float, Field(ge=0)] | Annotated[int, Field(ge=0)]
    last: Annotated[float, Field(gt=0)] | Annotated[int, Field(gt=0)]
    visual_attention: Literal["full", "prefix", "self", "skip"] = "full"
    text_to_visual: Literal["full", "merge", "none"] = "full"
    cache_visual: Literal["all", "kept", "none"] = "all"
    selects: tuple[Select, ...] = ()
    redistribute: Redistribute | None = None
    cache_generated: Count | Fraction | None = None

    LATER: ClassVar[frozenset[str]] = frozenset({"cache_generated"})

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        if self.first >= self.last:
            raise ValueError(f"a stage must hold at least one layer, got [{self.first}, {self.last})")
        if self.text_to_visual == "merge" and self.visual_attention != "self":
            raise ValueError("text_to_visual 'merge' needs visual_attention 'self'")
        if self.text_to_visual == "none" and self.cache_visual != "none":
            raise ValueError("text_to_visual 'none' holds for generated text too: cache_visual must be 'none'")
        if self.text_to_visual == "merge" and self.cache_visual == "all":
            raise ValueError("after a merge only the merge token means anything: cache_visual must be 'kept' or 'none'")
        for select in self.selects:
            if select.rank_by in ATTENTION_SCORES and self.text_to_visual == "none" and not select.probe:
                raise ValueError(
                    f"layers [{self.first}, {self.last}) hide the image from the text: "
                    f"'{select.rank_by}' has nothing to rank by"
                )
            if select.rank_by in BETWEEN_VISUAL and self.isolated:
                raise ValueError(
                    f"'{select.rank_by}' needs attention between visual tokens, which '{self.visual_attention}' removes"
                )
            if select.rank_by in ENTRY_SCORES:
                raise ValueError(f"'{select.rank_by}' belongs to the schedule's entry, not to a stage")
            if select.per != "prompt":
                raise ValueError("only the schedule's entry has a budget for each picture or tile")
            if select.merge != "none" and select.of == "context":
                raise ValueError("only visual tokens are merged")
        if self.redistribute is not None and self.text_to_visual != "full":
            raise ValueError("redistribute needs text_to_visual 'full'")
        return self

    @property
    def isolated(self) -> bool:
        """True when no visual token sees another one, so that each depends on itself and the text before it."""
        return self.visual_attention != "full"


class TowerMerge(_Frozen):
    """Tokens that each tile loses inside the vision encoder, between the attention and the feed-forward of a block
    (ToMe, Bolya et al., ICLR 2023, section 3).

    Every other token there looks for the one of the rest that it is most like, by their keys' mean over heads; of the
    most alike pairs so many become one, their mean.

    Attributes:
        merged: pairs, block by block; blocks beyond the last one named merge none.
    """

    merged: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class Schedule(_Frozen):
    """Stages that tile ``[0, layers)``, and what is dropped before layer 0.

    Attributes:
        tower: tokens that are merged inside the vision encoder; it leaves none for an entry to choose among.
        positions: ``original``: every token keeps its position id. ``packed``: those that the entry leaves are counted
            anew, as engines do that never see the dropped ones (vLLM, OpenVINO). What stages drop leaves gaps all the
            same: their keys are in the cache of earlier layers. Sliding windows reach as far as in the whole prompt.
    """

    stages: tuple[Stage, ...] = Field(min_length=1)
    entry: Select | None = None
    positions: Literal["original", "packed"] = "original"
    tower: TowerMerge | None = None

    LATER: ClassVar[frozenset[str]] = frozenset({"tower"})

    @model_validator(mode="after")
    def _tiles(self) -> Schedule:
        expected: float = 0
        for stage in self.stages:
            if stage.first != expected:
                raise ValueError(f"stages must be contiguous: one starts at layer {stage.first}, expected {expected}")
            expected = stage.last
        entry = self.entry
        if entry is not None and (entry.rank_by not in ENTRY_SCORES | {"none", "random"} or entry.of != "visual"):
            raise ValueError(f"nothing ranks by '{entry.rank_by}' before the first layer")
        if self.tower is not None and entry is not None:
            raise ValueError("tokens merged inside the vision encoder lie in no grid that an entry could choose from")
        if self.positions == "packed" and entry is None:
            raise ValueError("positions 'packed' needs an entry: nothing else is dropped before positions are given")
        if self.stages[-1].selects and any(select.probe for select in self.stages[-1].selects):
            raise ValueError("the last stage cannot probe: there is no layer after it")
        return self

    @property
    def layers(self) -> int:
        """Number of decoder layers covered."""
        return int(self.stages[-1].last)

    @property
    def selects(self) -> tuple[Select, ...]:
        """Every selection, in the order it happens."""
        inner = tuple(select for stage in self.stages for select in stage.selects)
        return (self.entry, *inner) if self.entry is not None else inner

    @property
    def executable(self) -> bool:
        """True when bounds and counts are whole numbers."""
        for stage in self.stages:
            if type(stage.last) is float and not stage.last.is_integer():
                return False
            for select in stage.selects:
                keep = select.keep
                # Whole counts without a call: this is asked of every schedule that is costed.
                if type(keep) is Count and type(keep.count) is not int and not _whole(keep):
                    return False
        return self.entry is None or _whole(self.entry.keep)

    @property
    def empty(self) -> bool:
        """True when executing this schedule changes nothing."""
        return self.entry is None and self.tower is None and self.before_decoder

    @property
    def before_decoder(self) -> bool:
        """True when executing this schedule leaves the decoder's layers as they are: all that it drops, it drops before
        layer 0."""
        return all(
            stage.visual_attention == "full"
            and stage.text_to_visual == "full"
            and stage.cache_visual == "all"
            and stage.cache_generated is None
            and not stage.selects
            and stage.redistribute is None
            for stage in self.stages
        )

    @property
    def cost_only(self) -> tuple[str, ...]:
        """What of it can be costed and not executed, in words; nothing of a schedule that can be attached."""
        return tuple(dict.fromkeys(self._cost_only()))

    def _cost_only(self) -> Iterator[str]:
        if self.tower is not None:
            yield "merges tokens inside the vision encoder"
        if self.entry is not None and self.entry.rank_by == "tile_attention":
            yield "gives each tile a budget by an early layer of the vision encoder"
        for stage in self.stages:
            if stage.cache_generated is not None:
                yield "drops generated tokens from the cache"
            if any(select.merge != "none" for select in stage.selects):
                yield "merges tokens between decoder layers"

    def image_stream_layers(self, deepstack: int = 0) -> float:
        """How many of the first layers compute visual rows that depend on their image alone, or on it and what stands
        before it (`image_stream_reads_prefix`), so that they can be cached; 0 where none do.

        Args:
            deepstack: layers after which the model adds further features of the vision encoder; all of them have to be
                among these layers, because the encoder does not run again.
        """
        depth: float = 0
        fixed = True  # whether the text before an image is what the prompt has there, whatever comes after it
        for stage in self.stages if self.entry is None else ():
            if not stage.isolated or stage.visual_attention == "skip" or stage.redistribute is not None:
                break
            if stage.visual_attention == "prefix" and not fixed:
                break
            depth = stage.last
            if any(select.of == "visual" for select in stage.selects):
                break
            fixed = fixed and not stage.selects
        return depth if depth >= deepstack else 0

    def image_stream_reads_prefix(self, deepstack: int = 0) -> bool:
        """True when the visual rows of those layers depend on the text before their image too."""
        depth = self.image_stream_layers(deepstack)
        return any(stage.visual_attention == "prefix" for stage in self.stages if stage.first < depth)

    def stage_of(self, layer: int) -> Stage:
        """The stage that holds a layer.

        Raises:
            ScheduleError: the schedule has no such layer.
        """
        for stage in self.stages:
            if stage.first <= layer < stage.last:
                return stage
        raise ScheduleError(f"layer {layer} is outside the schedule's {self.layers} layers")


def _whole(keep: Keep) -> bool:
    """No count of a part of a token."""
    return type(keep) is not Count or float(keep.count).is_integer()


def dense(layers: int) -> Schedule:
    """The schedule that leaves a model of `layers` decoder layers as it is."""
    return Schedule(stages=(Stage(first=0, last=layers),))


def kept(keep: Keep, present: float) -> float:
    """Tokens kept out of `present`; for a threshold the expected number, else its maximum.

    The one rounding rule of the project: runtime, cost and reference all call this.
    """
    if isinstance(keep, Count):
        return min(keep.count, present)
    if isinstance(keep, Fraction):
        return min(present, max(1, int(keep.fraction * present + 0.5))) if present else 0
    wanted = keep.at_most if keep.expected is None else keep.expected
    return min(max(wanted, keep.at_least), present)
