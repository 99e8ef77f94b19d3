/* Rows of a schedule, and what one layer multiplies on them: planner/schedule.py and, of planner/cost, staircase.py,
 * formulas.py and selector.py once more, for a page that has no Python behind it.
 *
 * Facts come from Python as JSON under Python's names (`__init__.py` beside this file), and a schedule is the JSON of a
 * plan's. tests/integration/test_explorer.py holds both against each other. A layer's count of one request stays below
 * 2^53 and is a Number.
 */
"use strict";

const BY_LAST_ROW = ["last_attention", "last_attention_detrended", "influence_l2", "influence_cos"];

// -- tokens: planner/schedule.py and planner/cost/staircase.py --------------------------------------------------------

/** Tokens kept out of those present. */
function kept(keep, present) {
  if ("count" in keep) return Math.min(keep.count, present);
  if ("fraction" in keep) {
    return present ? Math.min(present, Math.max(1, Math.floor(keep.fraction * present + 0.5))) : 0;
  }
  const expected = keep.expected == null ? keep.at_most : keep.expected;
  return Math.min(Math.max(expected, keep.at_least), present);
}

/** A schedule over a workload: for each stage its rows, what the cache keeps, and the selections at its end. */
function lay(schedule, workload) {
  let visual = workload.visual_tokens, text = workload.text_tokens;
  if (schedule.entry) visual = kept(schedule.entry.keep, visual);
  return schedule.stages.map((stage) => {
    const alone = stage.visual_attention !== "full", merge = stage.text_to_visual === "merge";
    // Isolated visual rows that are not read have no keys that a score could meet.
    const seen = alone && stage.text_to_visual === "none" ? 0 : visual;
    let leftVisual = visual, leftText = text, weighed = false;
    const scorings = stage.selects.map((select) => {
      const ofVisual = select.of === "visual";
      const ranked = ofVisual ? leftVisual : Math.max(leftText - select.protect, 0);
      const byLastRow = BY_LAST_ROW.includes(select.rank_by) && !select.probe;
      const scoring = {
        select, ranked, repeated: byLastRow && weighed,
        visual: select.probe ? leftVisual : seen,
        text: select.probe ? leftText : text,
        layer: select.probe ? stage.last : stage.last - 1,
      };
      weighed = weighed || (byLastRow && ranked > 0);
      if (ofVisual) leftVisual = kept(select.keep, leftVisual);
      else leftText = leftText - ranked + kept(select.keep, ranked);
      return scoring;
    });
    const keptOnes = merge ? Math.min(1, visual) : leftVisual;
    const segment = {
      first: stage.first, last: stage.last, system: workload.system_tokens, text, visual,
      cachedVisual: { none: 0, kept: keptOnes, all: visual }[stage.cache_visual],
      promptText: workload.text_tokens, promptVisual: workload.visual_tokens, between: workload.between_tokens,
      marks: workload.mark_tokens,
      alone, merge, scorings,
      // Of the rows that run together.
      gone: text - leftText + (alone ? 0 : visual - leftVisual),
      prefix: stage.visual_attention === "prefix",
      // What skips a layer costs what text reads of it.
      streamed: stage.visual_attention === "skip",
      reads: stage.text_to_visual === "full",
      redistributes: stage.redistribute != null,
    };
    visual = leftVisual;
    text = leftText;
    return segment;
  });
}

/** Every segment with every kind of layer that it holds, and how many such layers. */
function cellsOf(model, segments) {
  return segments.flatMap((segment) => {
    const kinds = model.kind_of.slice(segment.first, segment.last);
    return [...new Set(kinds)].map((kind) => [segment, model.kinds[kind], kinds.filter((one) => one === kind).length]);
  });
}

// -- multiply-adds of a layer: planner/cost/formulas.py ---------------------------------------------------------------

/** Pairs that a causal mask allows among rows [first, last); windows and chunks count in rows present. */
function causalPairs(attention, first, last) {
  const rows = last - first, window = attention.window;
  if (!window) return rows * (rows + 1) / 2;
  if (attention.kind === "chunked") {
    const upTo = (count) => {
      const rest = count % window;
      return Math.floor(count / window) * (window * (window + 1) / 2) + rest * (rest + 1) / 2;
    };
    const inside = first % window;
    return upTo(last) - upTo(first) - inside * Math.min(window - inside, rows);
  }
  const near = Math.min(rows, window);
  return near * (near + 1) / 2 + (rows - near) * window;
}

/** Causal pairs of a text row after the image and a visual key. */
function textToVisual(attention, segment) {
  const seen = segment.system + segment.visual, rows = seen + segment.text;
  return causalPairs(attention, segment.system, rows)
    - causalPairs(attention, seen, rows) - causalPairs(attention, segment.system, seen);
}

/** Query-key pairs of ordinary attention. */
function ordinaryPairs(causal, attention, segment, rows) {
  if (!causal) return rows * rows;
  const pairs = causalPairs(attention, 0, rows);
  return segment.reads ? pairs : pairs - textToVisual(attention, segment);
}

/** Projections of one visual row that sees no other one: what neither it nor text reads of it is left out. */
function isolatedProjections(attention, isRead, segment, fast) {
  if (segment.streamed && !isRead) return 0;
  const inputs = fast && (segment.streamed || !segment.prefix)
    ? attention.value_macs + (isRead ? attention.key_macs : 0)
    : attention.projection_macs - attention.output_macs;
  return inputs + (segment.streamed ? attention.before_macs : attention.output_macs);
}

/** Feed-forward of text and visual rows, and what runs in front of all layers, on the whole prompt, and behind them, on
 * the rows that are left. Marks around pictures go to the experts for what is seen.
 */
function fed(ffn, words, visual, segment) {
  const dropped = segment.system + segment.promptText + segment.promptVisual - words - visual;
  const gone = segment.alone ? segment.gone + visual : segment.gone, marks = Math.min(segment.marks, words);
  return dropped * ffn.front_macs - gone * ffn.back_macs
    + (words - marks) * ffn.macs + (visual + marks) * ffn.visual_macs;
}

/** A layer in which no visual row sees another one. */
function isolatedMacs(causal, layer, segment, visual) {
  const { attention, ffn } = layer, words = segment.system + segment.text;
  const isRead = segment.merge || segment.reads, computed = segment.streamed ? 0 : visual;
  const fast = attention.separable;
  const textPairs = causal ? causalPairs(attention, 0, words) : words * words;
  const read = !isRead ? 0 : causal ? textToVisual(attention, segment) : words * visual;
  const own = segment.prefix || !(fast || causal) ? computed : 0;
  let ahead = 0;
  if (segment.prefix && !segment.streamed) {
    const { system } = segment, seen = system + segment.visual;
    ahead = causal
      ? causalPairs(attention, 0, seen) - causalPairs(attention, 0, system) - causalPairs(attention, system, seen)
      : segment.visual * (system + segment.between);
  }
  return [
    words * attention.projection_macs + visual * isolatedProjections(attention, isRead, segment, fast),
    (textPairs + read + own + ahead) * attention.pair_macs,
    fed(ffn, words, computed, segment),
    segment.redistributes ? attention.pair_macs * segment.text * (words + visual) : 0,
  ];
}

/** Prefill of one layer and request: projections, scores, feed-forward, selector. */
function layerMacs(causal, model, layer, segment) {
  const { attention, ffn } = layer, words = segment.system + segment.text;
  if (attention.kind === "cross") {
    const rows = segment.visual > 0 ? words : 0;
    return [
      rows * (attention.query_macs + attention.output_macs)
        + segment.visual * (attention.key_macs + attention.value_macs),
      rows * segment.visual * attention.pair_macs, rows * ffn.macs, 0,
    ];
  }
  const visual = model.cross ? 0 : segment.visual, rows = words + visual;
  if (attention.kind === "linear") {
    // Visual rows that run alone are each a decode step, from a fresh state.
    const together = segment.alone ? words : rows, alone = segment.alone && !segment.streamed ? visual : 0;
    const chunks = attention.chunk ? Math.ceil(together / attention.chunk) : 0;
    const state = (together + attention.state_lead) * attention.state_macs + chunks * attention.chunk_macs
      + alone * 2 * attention.state_macs;
    const run = together + alone;
    return [run * attention.projection_macs, state, fed(ffn, words, run - words, segment), 0];
  }
  if (segment.alone) return isolatedMacs(causal, layer, segment, visual);
  return [
    rows * attention.projection_macs,
    ordinaryPairs(causal, attention, segment, rows) * attention.pair_macs,
    fed(ffn, words, visual, segment),
    segment.redistributes ? attention.pair_macs * segment.text * rows : 0,
  ];
}

/** Tokens that a layer's cache holds of one request, `ahead` generated ones after the prompt. */
function cachedTokens(model, attention, segment, ahead) {
  const visual = model.cross ? 0 : segment.cachedVisual;
  if (!attention.window) {
    const generated = attention.answer_window ? Math.min(ahead, attention.answer_window - 1) : ahead;
    return segment.system + segment.text + visual + generated;
  }
  let reach = attention.window - 1 - ahead, total = Math.min(ahead, attention.window - 1);
  const parts = [
    [segment.text, segment.promptText], [visual, segment.promptVisual], [segment.system, segment.system],
  ];
  for (const [held, positions] of parts) {
    const inside = Math.min(Math.max(reach, 0), positions);
    total += inside === positions ? held : Math.floor(held * inside / positions);
    reach -= positions;
  }
  return total;
}

/** Elements that a layer's cache holds of one request. */
function cachedElements(model, layer, segment, ahead) {
  const { attention } = layer;
  if (attention.kind === "linear") return attention.state_elements;
  if (attention.kind === "cross") return segment.cachedVisual * attention.cached_elements;
  return cachedTokens(model, attention, segment, ahead) * attention.cached_elements;
}

/** The new row over the cache in one layer of one request: projections, scores, feed-forward, selector. */
function decodeMacs(model, layer, segment, ahead) {
  const { attention, ffn } = layer;
  if (attention.kind === "linear") return [attention.projection_macs, 2 * attention.state_macs, ffn.macs, 0];
  if (attention.kind === "cross") {
    const asking = segment.visual > 0 ? 1 : 0;
    const projected = asking * (attention.query_macs + attention.output_macs);
    return [projected, segment.cachedVisual * attention.pair_macs, asking * ffn.macs, 0];
  }
  const keys = cachedTokens(model, attention, segment, ahead) + 1;
  const projected = attention.projection_macs + (keys - 1) * attention.expand_macs;
  const edited = segment.redistributes ? attention.pair_macs * keys : 0;
  return [projected, keys * attention.pair_macs, ffn.macs, edited];
}

// -- choosing tokens: planner/cost/selector.py ------------------------------------------------------------------------

/** Multiply-adds of one selection at the end of a stage, in one request. */
function scoreMacs(model, segment, scoring) {
  const { select, ranked, text } = scoring, { attention } = model.kinds[model.kind_of[scoring.layer]].plain;
  if (!(ranked > 0) || ["none", "random"].includes(select.rank_by)) return 0;
  const rows = segment.system + text + (model.cross ? 0 : scoring.visual);
  const queryRow = attention.heads * attention.head_dim * rows;
  switch (select.rank_by) {
    case "text_raters": return model.hidden_size * text * ranked + text * queryRow;
    case "cross_self_attention": return (text + ranked) * queryRow;
    case "attention_received": case "text_attention": return text * queryRow;
    case "visual_attention": return ranked * queryRow;
  }
  let macs = scoring.repeated ? 0 : queryRow;
  if (select.rank_by === "influence_cos") macs += attention.heads * attention.value_dim * ranked;
  return select.probe ? macs + probeMacs(select, attention, rows) : macs;
}

/** A probe runs before its layer: it makes keys, and for an influence values, of all rows itself. */
function probeMacs(select, attention, rows) {
  const needsValues = ["influence_l2", "influence_cos"].includes(select.rank_by);
  const before = attention.before_macs * (rows + 1), macs = before + (attention.separable
    ? attention.query_macs + (attention.key_macs + (needsValues ? attention.value_macs : 0)) * rows
    : (attention.query_macs + attention.key_macs + attention.value_macs + attention.expand_macs) * (rows + 1));
  const outputs = (select.rank_by === "influence_cos" ? 1 : 0) + (select.keep.relative ? 1 : 0);
  return macs + outputs * attention.heads * attention.value_dim * rows;
}

/** Multiply-adds of a selection before layer 0, but for those inside the vision tower. */
function entryMacs(model, select, visual) {
  const left = kept(select.keep, visual), hidden = model.hidden_size, compared = left > 0 ? left - 1 : 0;
  if (!visual) return 0;
  const merged = select.merge === "nearest" ? hidden * left * visual : 0;
  switch (select.rank_by) {
    case "pivot_distance": return merged + hidden * Math.min(select.pivots, visual) * visual;
    case "salient_then_distant": return merged + hidden * compared * visual;
    case "max_min_distance": return merged + hidden * (compared + visual) * visual;
    case "determinantal":
      return merged + hidden * (compared + 1) * visual + visual * (compared * (compared - 1) / 2);
  }
  return merged;
}
