/* What is chosen on the page, and the figures that follow of it. */
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const SIDES = ["a", "b"];
/** Least and most of each number; within them a layer's counts are exact. */
const RANGES = { pictures: [0, 12], text: [0, 131072], output: [1, 131072], batch: [1, 4096] };

const WEIGHT_BITS = Object.keys(facts.models[0].weights_bytes).map(Number), KV_BITS = [16, 8, 4];

/** The entry of a name, else the first one. */
const named = (list, key, value) => list.find((one) => one[key] === value) || list[0];

const first = facts.models[0];
const state = {
  model: first.name, picture: first.pictures[0]?.size || "", pictures: 1,
  text: first.prompt.text_tokens, output: first.prompt.output_tokens, batch: 1, hardware: facts.hardware[0].id,
  engine: "hf", weight_bits: 16, kv_bits: 16, convention: "exact",
  a: { policy: "visipruner", keys: {} }, b: { policy: "fastv", keys: {} },
};

const within = (value, low, high) => Math.min(Math.max(value, low), high);
const bounded = (name, value) => Math.round(within(value, ...RANGES[name]));

/** The address's state, as far as this page knows its names. */
function restore() {
  let given = {};
  try {
    given = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
  } catch {
    return; // somebody else's fragment
  }
  for (const [key, value] of Object.entries(given)) {
    if (SIDES.includes(key)) state[key] = { policy: String(value?.policy), keys: { ...value?.keys } };
    else if (key in RANGES && Number.isFinite(value)) state[key] = bounded(key, value);
    else if (!(key in RANGES) && typeof value === typeof state[key]) state[key] = value;
  }
  if (!WEIGHT_BITS.includes(state.weight_bits)) state.weight_bits = 16;
  if (!KV_BITS.includes(state.kv_bits)) state.kv_bits = 16;
}

const currentModel = () => named(facts.models, "name", state.model);

/** The policies of a model: those with sliders, and what a plan brought along. */
function policiesOf(model) {
  const own = model.plans.map(({ name, schedule }) => {
    return [name, { summary: "the plan's", keys: {}, schedule: () => schedule }];
  });
  return { ...Object.fromEntries(own), ...POLICIES };
}

/** A side's keys on this model: set ones inside their ranges, others where they start. */
function settledKeys(model, side) {
  const policy = policiesOf(model)[side.policy];
  const pairs = Object.entries(policy.keys).map(([key, rule]) => {
    const asked = Number(side.keys[key] ?? NaN), value = Number.isFinite(asked) ? asked : rule.start(model);
    // Whole steps, without the last digits that they leave in floats.
    const stepped = Number((Math.round(value / rule.step) * rule.step).toFixed(4));
    return [key, within(stepped, rule.low(model), rule.high(model))];
  });
  const keys = Object.fromEntries(pairs);
  return policy.settle ? policy.settle(keys) : keys;
}

/** A request as planner.workload has it: what is shown brings its own text tokens along. */
function workloadOf(model, asked) {
  const offered = model.pictures.find((one) => one.size === asked.picture) || model.pictures[0];
  const picture = (asked.pictures > 1 && offered?.several) || offered;
  const pictures = picture ? asked.pictures : 0;
  const shown = (name) => (pictures ? picture.one[name] + (pictures - 1) * picture.more[name] : 0);
  return {
    picture, pictures,
    visual_tokens: shown("visual_tokens"),
    system_tokens: model.prompt.system_tokens + shown("system_tokens"),
    text_tokens: asked.text + shown("text_tokens"),
    between_tokens: shown("between_tokens"),
    mark_tokens: shown("mark_tokens"),
    output_tokens: asked.output, batch: asked.batch, weight_bits: asked.weight_bits, kv_bits: asked.kv_bits,
  };
}

/** Everything the page shows of one row. */
function figures(model, workload, schedule, asked) {
  const counted = cost(model, workload, schedule, asked.convention === "causal");
  const executed = cost(model, workload, schedule, true);
  const hardware = named(facts.hardware, "id", asked.hardware), engine = named(facts.engines, "name", asked.engine);
  return { counted, time: latency(executed, hardware, engine) };
}

/** The command that prints the figures of a state; `policies` as it spells them. */
function command(model, asked, policies) {
  const { pictures } = workloadOf(model, asked);
  return [
    "plan report", model.spelled,
    ...(pictures ? Array(pictures).fill(`--image ${asked.picture}`) : ["--visual-tokens 0"]),
    `--text-tokens ${asked.text}`, `--output-tokens ${asked.output}`, `--batch-size ${asked.batch}`,
    `--weight-bits ${asked.weight_bits}`, `--kv-bits ${asked.kv_bits}`, `--convention ${asked.convention}`,
    `--hardware ${asked.hardware}`, `--engine ${asked.engine}`, ...policies.map((policy) => `--policy ${policy}`),
  ].join(" ");
}
