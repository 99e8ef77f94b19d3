/* Policies whose main keys have sliders: from the keys to a schedule, as the class of the same name in planner/policies
 * makes it. Keys without a slider have Python's defaults.
 */
"use strict";

const select = (rank_by, keep, more = {}) => ({
  rank_by, keep, of: "visual", probe: false, protect: 0, merge: "none", pivots: 4, ...more,
});
const NOTHING = select("none", { count: 0 });
const stage = (first, last, more = {}) => ({
  first, last, visual_attention: "full", text_to_visual: "full", cache_visual: "all", selects: [], redistribute: null,
  ...more,
});
const staged = (...stages) => ({ entry: null, stages });

/** A budget as users write it: below 1 a share of the tokens present, else a number of tokens. */
const keepOf = (value) => (value > 0 && value < 1 ? { fraction: value } : { count: value });

/** All tokens in layers [0, k), a share `ratio` fewer visual ones from layer k on. */
function dropAfter(model, k, ratio, rankBy) {
  const share = Number((1 - ratio).toFixed(12));
  const chosen = share > 0 ? select(rankBy, { fraction: share }) : NOTHING;
  return staged(stage(0, k, { selects: [chosen] }), stage(k, model.kind_of.length));
}

/** A selection before layer 0. */
const before = (rankBy, summary, more = {}) => ({
  summary,
  keys: { keep: { low: () => 0.02, high: () => 1, step: 0.02, start: () => 0.26 } },
  schedule(model, { keep }) {
    const entry = select(rankBy, { fraction: keep }, more);
    return { entry, stages: [stage(0, model.kind_of.length)] };
  },
});

const depth = (model) => model.kind_of.length;
const layerKey = (share) => ({
  low: () => 1, high: (model) => depth(model) - 1, step: 1,
  start: (model) => Math.max(1, Math.round(depth(model) * share)),
});
const ratioKey = { low: () => 0, high: () => 1, step: 0.05, start: () => 0.75 };

const POLICIES = {
  dense: {
    summary: "nothing is dropped",
    keys: {},
    schedule: (model) => staged(stage(0, depth(model))),
  },
  visipruner: {
    summary: "shallow layers do not read the picture, one layer filters, deep layers have no visual token",
    keys: {
      filter: { ...layerKey(0.25), low: () => 0, high: (model) => depth(model) - 2 },
      keep: { low: () => 1, high: () => 300, step: 1, start: () => 10 },
      exit: { low: () => 2, high: depth, step: 1, start: (model) => Math.round(depth(model) * 0.75) },
    },
    schedule(model, { filter, keep, exit }) {
      const layers = depth(model), middle = filter + 1, last = Math.min(exit, layers);
      const shallow = { visual_attention: "prefix", text_to_visual: "none", cache_visual: "none" };
      const influence = select("influence_l2", keepOf(keep));
      const parts = filter ? [stage(0, filter, shallow)] : [];
      parts.push(stage(filter, middle, { selects: [influence] }));
      if (middle < last) parts.push(stage(middle, last, { selects: last < layers ? [NOTHING] : [] }));
      if (last < layers) parts.push(stage(last, layers));
      return staged(...parts);
    },
    // The kept tokens need a layer after the filter.
    settle: (keys) => ({ ...keys, exit: Math.max(keys.exit, keys.filter + 2) }),
  },
  fastv: {
    summary: "after layer k the visual tokens that the last token attends to least go",
    keys: { k: { ...layerKey(0), start: () => 2 }, ratio: ratioKey },
    schedule: (model, { k, ratio }) => dropAfter(model, k, ratio, "last_attention"),
  },
  random: {
    summary: "after layer k a random subset stays (the control)",
    keys: { k: { ...layerKey(0), start: () => 2 }, ratio: ratioKey },
    schedule: (model, { k, ratio }) => dropAfter(model, k, ratio, "random"),
  },
  pyramiddrop: {
    summary: "at a quarter, half and three quarters of the depth a share of the rest stays",
    keys: { keep: { low: () => 0.05, high: () => 1, step: 0.05, start: () => 0.5 } },
    schedule(model, { keep }) {
      const bounds = [0, ...model.pyramid_layers];
      const rest = stage(bounds.at(-1), depth(model));
      const ranked = select("last_attention", { fraction: keep });
      return staged(...model.pyramid_layers.map((last, i) => stage(bounds[i], last, { selects: [ranked] })), rest);
    },
  },
  vtw: {
    summary: "from layer k on no visual token is left",
    keys: { k: layerKey(0.5) },
    schedule: (model, { k }) => dropAfter(model, k, 1, "none"),
  },
  prellm: before("encoder_attention", "before the decoder, by the vision encoder's attention"),
  diverse: before("max_min_distance", "before the decoder, tokens far from each other (DivPrune)"),
  cdpruner: before("determinantal", "before the decoder, diverse tokens that matter to the question"),
  dart: before("pivot_distance", "before the decoder, tokens unlike a few pivots"),
  vispruner: before("salient_then_distant", "before the decoder, attended tokens and those unlike them"),
  pool: before("grid", "before the decoder the tokens' grid is pooled (a control)", { merge: "cell" }),
};

/** A policy with its keys as a command line spells it. */
function spelled(name, keys) {
  const pairs = Object.entries(keys).map(([key, value]) => `${key}=${value}`);
  return pairs.length ? `${name}:${pairs.join(",")}` : name;
}
