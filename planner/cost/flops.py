"""The cost of a schedule: FLOPs of prefill and decoding by component, KV-cache bytes, tokens per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from planner.cost import formulas
from planner.cost.conventions import CONVENTIONS, Convention, convention
from planner.cost.merging import merged_workload
from planner.cost.pieces import pieces
from planner.cost.selector import Number, entry_macs, merge_macs, score_macs
from planner.cost.staircase import Segment, lay, survivor_count
from planner.cost.vision import vision_flops
from planner.errors import InputError, ScheduleError
from planner.schedule import ENCODER_SCORES, Schedule, Select
from planner.spec.facts import LayerSpec, ModelSpec
from planner.workload import Workload

#: Every component of a prefill, in the order tables show them.
COMPONENTS = ("vision", "projector", "attention_projections", "attention_scores", "ffn", "lm_head", "selector")
Head = Literal["last", "all"]
#: A segment, one kind of layer, and how many such layers the segment has.
Cell = tuple[Segment, LayerSpec, Number]
Alone = Literal["fast", "generic"]


@dataclass(frozen=True)
class Cost:
    """What a schedule costs on a model under a workload.

    Attributes:
        convention: how FLOPs were counted.
        prefill: FLOPs by component, for the whole batch. Under a per-layer convention, the average layer's.
        decode: FLOPs by component of the first step after the prefill, per request: the prompt's cache and the token
            itself. Papers do not count decoding, so this is `exact` under every convention.
        visual_attention: FLOPs of scores and weighted sums whose key is a visual token: what pruning saves of
            attention. Only ratios matter.
        kv_cache_bytes: held by the cache after the prefill, whole batch.
    """

    convention: str
    prefill: dict[str, Number]
    decode: dict[str, Number]
    visual_attention: Number
    kv_cache_bytes: int
    spec: ModelSpec = field(repr=False)
    workload: Workload = field(repr=False)
    segments: tuple[Segment, ...] = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)
    schedule: Schedule = field(repr=False)
    generic: bool = field(default=False, repr=False)

    @property
    def prefill_flops(self) -> Number:
        """All components of the prefill."""
        return sum(self.prefill.values())

    @property
    def decode_flops_per_token(self) -> Number:
        """All components of a decode step of one request; a batch's step is `batch` times that."""
        return sum(self.decode.values())

    @cached_property
    def visual_tokens_per_layer(self) -> tuple[float, ...]:
        """Visual rows computed in each layer of one request; where a bound is fractional, the layer's mean."""
        return tuple(
            sum(share * segment.visual for segment, share in self._shares(layer)) for layer in range(self.spec.layers)
        )

    @cached_property
    def per_layer(self) -> dict[str, tuple[Number, ...]]:
        """Decoder components of the prefill layer by layer, whole batch.

        Under a convention that sums over layers each sums to its component, but for a selection before the decoder.
        """
        rule, batch = CONVENTIONS[self.convention], self.workload.batch
        table: dict[str, list[Number]] = {name: [] for name in formulas.DECODER_COMPONENTS}
        for index, layer in enumerate(self.spec.decoder.layers):
            total: list[Number] = [0, 0, 0, 0]
            for segment, share in self._shares(index):
                macs = formulas.layer_macs(rule, layer, segment, self.spec.decoder, self.generic)
                total = [have + share * more for have, more in zip(total, macs[:4], strict=True)]
            if rule.real:
                total[3] += _scorings_at(self.spec, self.segments, index, self.generic)
            for name, macs in zip(table, total, strict=True):
                table[name].append(macs * rule.flops_per_mac * batch)
        return {name: tuple(values) for name, values in table.items()}

    def kv_cache_bytes_after(self, tokens: int) -> int:
        """Bytes the cache holds once `tokens` generated tokens of each request are cached."""
        return _cache_bytes(self.spec, self.workload, decode_step(self.spec, self.cells, tokens)[1])

    def decode_flops_at(self, step: int) -> Number:
        """FLOPs of decode step `step` (0 is the first) of one request."""
        return sum(_decode(decode_step(self.spec, self.cells, step)[0]).values())

    def _shares(self, layer: int) -> list[tuple[Segment, float]]:
        """The segments that overlap a layer, and how much of it each covers."""
        overlaps = [(s, min(s.last, layer + 1) - max(s.first, layer)) for s in self.segments]
        return [(segment, share) for segment, share in overlaps if share > 0]


def cost(
    spec: ModelSpec,
    workload: Workload,
    schedule: Schedule,
    convention: str = "exact",
    head: Head = "last",
    alone: Alone = "fast",
) -> Cost:
    """What a schedule costs.

    Args:
        spec: the model's facts.
        workload: what is asked.
        schedule: what is computed; fractional bounds and budgets only under a paper's convention.
        convention: a name in `planner.cost.conventions`.
        head: the language-model head runs on the last position, as in generation, or on all.
        alone: how visual rows that see only themselves run: `fast` (values, outputs and feed-forward only) or
            `generic` (queries and keys too).

    Raises:
        InputError: no such convention, or a fractional schedule under a convention of executed work.
        ScheduleError: the schedule has another number of layers than the model.
    """
    rule = _check(spec, schedule, convention, head, alone)
    if workload.image_stream_cached and not schedule.image_stream_layers(spec.decoder.deepstack):
        workload = workload.model_copy(update={"image_stream_cached": False})  # this schedule has none
    request = merged_workload(spec, workload, schedule.tower)
    shared = pieces(spec, request, schedule.entry)
    segments = lay(schedule, request, rule.real, shared)
    cells = cells_of(spec, segments)
    generic = alone == "generic"
    if rule.mean_token:
        macs, visual_attention = _mean_token(spec, workload, segments)
    else:
        macs, visual_attention = decoder_macs(rule, spec, segments, cells, generic)
    batch, flops = workload.batch, rule.flops_per_mac
    prefill: dict[str, Number] = dict.fromkeys(COMPONENTS, 0)
    prefill |= {name: macs[name] * batch * flops for name in macs}
    if rule.real:
        prefill["vision"], prefill["projector"], scored = sight_flops(spec, workload, schedule)
        chosen = _entry_macs(spec, schedule.entry, shared)
        prefill["selector"] += scored + flops * batch * chosen
        # The runtime gives dropped rows their place back, so a head on all positions runs on all of the prompt's.
        words = request.system_tokens + request.text_tokens
        rows = 1 if head == "last" else words + (0 if spec.decoder.cross else request.visual_tokens)
        prefill["lm_head"] = flops * batch * rows * spec.decoder.head_macs
    if rule.per_layer:
        prefill = {name: value / spec.layers for name, value in prefill.items()}
    step, cached = decode_step(spec, cells, 0)
    return Cost(
        convention=rule.name,
        prefill=prefill,
        decode=_decode(step),
        visual_attention=visual_attention * batch * flops,
        kv_cache_bytes=_cache_bytes(spec, workload, cached),
        spec=spec,
        workload=workload,
        segments=segments,
        cells=cells,
        schedule=schedule,
        generic=generic,
    )


def _check(spec: ModelSpec, schedule: Schedule, name: str, head: str, alone: str) -> Convention:
    rule = convention(name)
    if schedule.layers != spec.layers:
        raise ScheduleError(
            f"the schedule covers {schedule.layers} layers and {spec.name or spec.family} has {spec.layers}",
            "Make the schedule for this model",
        )
    if rule.real and not schedule.executable:
        raise InputError(
            f"fractions of layers or tokens cannot be executed, so they have no '{name}' cost",
            "Use whole numbers, or a paper's convention such as pdrop",
        )
    if head not in ("last", "all") or alone not in ("fast", "generic"):
        raise InputError(
            f"head={head!r}, alone={alone!r} is not known", "head is last or all, alone is fast or generic"
        )
    return rule


def cells_of(spec: ModelSpec, segments: Sequence[Segment]) -> tuple[Cell, ...]:
    """Every segment with every kind of layer it holds."""
    cells: list[Cell] = []
    kinds = spec.decoder.kinds
    for segment in segments:
        if len(kinds) == 1:
            cells.append((segment, kinds[0][0], segment.last - segment.first))
            continue
        for layer, prefix in kinds:
            layers = between(prefix, segment.first, segment.last)
            if not (isinstance(layers, int) and layers == 0):
                cells.append((segment, layer, layers))
    return tuple(cells)


def decoder_macs(
    rule: Convention, spec: ModelSpec, segments: Sequence[Segment], cells: Sequence[Cell], generic: bool
) -> tuple[dict[str, Number], Number]:
    """Prefill of all decoder layers of one request, by component, and attention on visual keys. Arrays in, arrays
    out."""
    projections = scores = ffn = selector = visual_attention = 0
    for segment, layer, layers in cells:
        projected, scored, fed, selected, seen = formulas.layer_macs(rule, layer, segment, spec.decoder, generic)
        projections += layers * projected
        scores += layers * scored
        ffn += layers * fed
        selector += layers * selected
        visual_attention += layers * seen
    if rule.real:
        selector += _scorings(spec, segments, generic)
    return dict(zip(formulas.DECODER_COMPONENTS, (projections, scores, ffn, selector), strict=True)), visual_attention


def between(prefix: Sequence[int], first: Number, last: Number) -> Number:
    """How many layers of one kind lie in ``[first, last)``, from the count before each layer; linear inside a layer."""
    if type(first) is int and type(last) is int:
        return prefix[last] - prefix[first]
    return _before(prefix, last) - _before(prefix, first)


def _before(prefix: Sequence[int], layer: Number) -> Number:
    if isinstance(layer, int):
        return prefix[layer]
    if isinstance(layer, float):
        whole = int(layer)
        return prefix[whole] + (layer - whole) * (prefix[min(whole + 1, len(prefix) - 1)] - prefix[whole])
    import numpy as np

    # Arrays of Python's own integers, for counts beyond 64 bits, stay such arrays.
    return np.asarray(prefix, dtype=layer.dtype)[layer.astype(np.int64)]


def _scorings(spec: ModelSpec, segments: Sequence[Segment], generic: bool) -> Number:
    """Selections at the end of segments, each by the attention of its scoring layer."""
    total: Number = 0
    hidden, kinds, cross = spec.decoder.hidden_size, spec.decoder.kinds, spec.decoder.cross
    alike = kinds[0][0].attention if len(kinds) == 1 else None
    for segment in segments:
        for select, visual, text, at, ranked, repeated, left in segment.scorings:
            rows = segment.system + text + (0 if cross else visual)
            among = visual if ranked is None else ranked
            if alike is not None:
                total += score_macs(select, alike, hidden, rows, among, text, generic, repeated)
            else:
                for layer, prefix in kinds:
                    macs = score_macs(select, layer.attention, hidden, rows, among, text, generic, repeated)
                    total += between(prefix, at, at + 1) * macs
            if select.merge != "none":
                total += merge_macs(select, hidden, among, left)
    return total


def _scorings_at(spec: ModelSpec, segments: Sequence[Segment], index: int, generic: bool) -> Number:
    """Selections whose scoring layer is `index`."""
    total: Number = 0
    for segment in segments:
        here = tuple(scoring for scoring in segment.scorings if scoring.layer == index)
        total += _scorings(spec, (segment._replace(scorings=here),), generic)
    return total


def _mean_token(spec: ModelSpec, workload: Workload, segments: Sequence[Segment]) -> tuple[dict[str, Number], Number]:
    mean = sum((segment.last - segment.first) * segment.visual for segment in segments) / spec.layers
    words = workload.system_tokens + workload.text_tokens
    pairs = spec.layers * (mean * mean + mean * words)
    return {"attention_scores": 2 * spec.hidden_size * pairs}, 2 * spec.hidden_size * pairs


def sight_flops(spec: ModelSpec, workload: Workload, schedule: Schedule) -> tuple[int, int, int]:
    """FLOPs of tower, projector, and of ranking inside the tower, whole batch. A cached image stream needs none of
    them."""
    if spec.vision is None or not workload.visual_tokens or workload.image_stream_cached:
        return 0, 0, 0
    entry = schedule.entry
    # HiRED asks an early layer too, for the budgets of tiles.
    ranks = 0 if entry is None else (entry.rank_by in ENCODER_SCORES) + (entry.rank_by == "tile_attention")
    shrinks = entry if entry is not None and entry.merge == "pixels" else None
    merged = () if schedule.tower is None else schedule.tower.merged
    images, visual, batch = workload.images, workload.visual_tokens, workload.batch
    reads = spec.projector is not None and spec.projector.text_macs > 0
    words = workload.system_tokens + workload.text_tokens if reads else 0
    return vision_flops(spec, images, visual, batch, ranks, shrinks, workload.videos, merged, words)


def _entry_macs(spec: ModelSpec, entry: Select | None, shared: Sequence[int]) -> Number:
    """Multiply-adds of the entry of one request, but for those inside the vision tower."""
    if entry is None:
        return 0
    counts = ((piece, survivor_count(entry.keep, piece)) for piece in shared)
    return sum(entry_macs(entry, spec.hidden_size, piece, left) for piece, left in counts if piece)


def decode_step(spec: ModelSpec, cells: Sequence[Cell], step: int) -> tuple[dict[str, Number], Number]:
    """The new row of one request over the cache, all layers and the head: multiply-adds by component, and elements that
    the cache holds. Arrays in, arrays out."""
    projections = scores = ffn = selector = elements = 0
    decoder, decode_macs = spec.decoder, formulas.decode_macs
    for segment, layer, layers in cells:
        projected, scored, fed, selected, held = decode_macs(layer, segment, decoder, step)
        projections += layers * projected
        scores += layers * scored
        ffn += layers * fed
        selector += layers * selected
        elements += layers * held
    named = dict(zip(formulas.DECODER_COMPONENTS, (projections, scores, ffn, selector), strict=True))
    return {**named, "lm_head": spec.decoder.head_macs}, elements


def _decode(macs: dict[str, Number]) -> dict[str, Number]:
    exact = CONVENTIONS["exact"].flops_per_mac
    return {name: exact * macs.get(name, 0) for name in COMPONENTS}


def cache_bits(spec: ModelSpec, elements: Number, kv_bits: int) -> Number:
    """Bits of so many cached elements of one request, recurrent states in float32 included. Arrays in, arrays out."""
    states = sum(prefix[-1] * layer.attention.float_state_elements for layer, prefix in spec.decoder.kinds)
    return elements * kv_bits + 32 * states


def _cache_bytes(spec: ModelSpec, workload: Workload, elements: Number) -> int:
    bits = cache_bits(spec, elements, workload.kv_bits) * workload.batch
    return bits // 8 + (bits % 8 > 0) if isinstance(bits, int) else round(bits / 8)
