/* Controls, table and pictures. The address after # is the state, so that a page can be passed on as it stands. */
"use strict";

// -- numbers for readers ----------------------------------------------------------------------------------------------

const NB = "\u00a0"; // a unit stays on its number's line
const SIZES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]];
const whole = (value) => value.toLocaleString("en-US");
const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 });

function scaled(value, unit) {
  const [size, letter] = SIZES.find(([least]) => value >= least);
  return digits(value / (size || 1)) + NB + letter + unit;
}

const flops = (value) => scaled(Number(value), "FLOP");
const bytes = (value) => scaled(Number(value), "B");
const time = (ms) => (ms >= 1000 ? digits(ms / 1000) + NB + "s" : digits(ms) + NB + "ms");
const share = (value, dense) => (dense ? `${digits(100 * Number(value) / Number(dense))}${NB}%` : "");

function fits({ fits: all, largestBatch }) {
  if (all) return `up to batch ${whole(largestBatch)}`;
  return largestBatch ? `no; batch ${whole(largestBatch)} does` : "no";
}

// -- the page ---------------------------------------------------------------------------------------------------------

function options(id, entries, chosen) {
  const all = entries.map(([value, label]) => new Option(label, value, false, String(value) === String(chosen)));
  byId(id).replaceChildren(...all);
}

/** Selects and sliders for what the state says. */
function controls() {
  const model = currentModel();
  options("model", facts.models.map(({ name }) => [name, name]), model.name);
  options("picture", model.pictures.map(({ size, one }) => {
    return [size, `${size.replace("x", " × ")} (${whole(one.visual_tokens)} tokens)`];
  }), state.picture);
  state.picture = byId("picture").value;
  options("hardware", facts.hardware.map((one) => [one.id, `${one.name}, ${one.memory_gb} GB`]), state.hardware);
  options("engine", facts.engines.map(({ name, summary }) => [name, `${name}: ${summary}`]), state.engine);
  options("weight_bits", WEIGHT_BITS.map((bits) => [bits, `${bits} bits`]), state.weight_bits);
  options("kv_bits", KV_BITS.map((bits) => [bits, `${bits} bits`]), state.kv_bits);
  options("convention", facts.conventions.map(({ name, formula }) => [name, `${name}: ${formula}`]), state.convention);
  for (const [name, [min, max]] of Object.entries(RANGES)) Object.assign(byId(name), { min, max, value: state[name] });
  for (const side of SIDES) sliders(model, side);
}

/** A side's policy, and a slider for each of its keys. */
function sliders(model, side) {
  const policies = policiesOf(model), keys = byId(`${side}-keys`);
  if (!Object.hasOwn(policies, state[side].policy)) state[side] = { policy: "dense", keys: {} };
  options(`${side}-policy`, Object.keys(policies).map((name) => [name, name]), state[side].policy);
  const policy = policies[state[side].policy], settled = settledKeys(model, state[side]);
  byId(`${side}-summary`).textContent = policy.summary;
  keys.replaceChildren(...Object.entries(policy.keys).map(([key, rule]) => {
    const label = document.createElement("label"), name = document.createElement("span");
    const value = document.createElement("output"), slider = document.createElement("input");
    name.textContent = key;
    value.id = `${side}-${key}-value`;
    value.textContent = settled[key];
    Object.assign(slider, { type: "range", min: rule.low(model), max: rule.high(model), step: rule.step });
    Object.assign(slider, { value: settled[key], id: `${side}-${key}` });
    slider.addEventListener("input", () => {
      state[side].keys = { ...settledKeys(currentModel(), state[side]), [key]: Number(slider.value) };
      state[side].keys = settledKeys(currentModel(), state[side]);
      for (const [other, now] of Object.entries(state[side].keys)) {
        byId(`${side}-${other}`).value = now;
        byId(`${side}-${other}-value`).textContent = now;
      }
      show();
    });
    label.append(name, slider, value);
    return label;
  }));
}

/** The figures in a table: what is compared in rows, so that a phone shows all columns. */
function table(rows) {
  const cell = (text, tag = "td") => Object.assign(document.createElement(tag), { textContent: text });
  // Name, value, spelling, and whether its share of the dense one is told.
  const lines = [
    ["prefill", (row) => row.counted.prefillFlops, flops, true],
    ["decoding, a token", (row) => row.counted.decodeFlops, flops, false],
    ["KV cache after the prompt", (row) => row.counted.kvCacheBytes, bytes, true],
    ["first token (estimate)", (row) => row.time.firstMs, time, true],
    ["bound by", (row) => row.time.firstBound, String, false],
    ["each further token (estimate)", (row) => row.time.tokenMs, time, true],
    ["whole answer (estimate)", (row) => row.time.totalMs, time, true],
    ["memory", (row) => row.time.memory.total, bytes, false],
    ["fits", (row) => row.time.memory, fits, false],
  ];
  byId("head").replaceChildren(cell("", "th"), ...rows.map((row) => cell(row.label, "th")));
  byId("body").replaceChildren(...lines.map(([name, value, spell, compared]) => {
    const line = document.createElement("tr");
    line.append(cell(name), ...rows.map((row, number) => {
      const one = cell(spell(value(row)));
      if (compared && number) one.append(cell(share(value(row), value(rows[0])), "small"));
      return one;
    }));
    return line;
  }));
}

/** A policy in a sentence. */
function sentence(row, dense) {
  const line = document.createElement("p"), name = document.createElement("code");
  const prefill = share(row.counted.prefillFlops, dense.counted.prefillFlops);
  const cache = share(row.counted.kvCacheBytes, dense.counted.kvCacheBytes);
  name.textContent = row.spelled;
  line.append(`${row.mark}, `, name, ` computes ${prefill} of the dense prefill, keeps ${cache} of its KV cache and is `
    + `estimated to take ${share(row.time.firstMs, dense.time.firstMs)} of its time to the first token.`);
  return line;
}

function pictures(rows) {
  const series = (value) => rows.map((row) => ({ name: row.label, colour: row.colour, values: value(row) }));
  const bars = (parts) => rows.map((row) => ({ name: row.mark, parts: parts(row) }));
  const short = (unit) => (value) => (value ? scaled(value, unit) : "0"), clock = (ms) => (ms ? time(ms) : "0");
  const called = {
    attention_projections: "projections", attention_scores: "scores", ffn: "feed-forward", lm_head: "head",
  };
  staircase("tokens-picture", "Visual tokens per decoder layer", series((row) => row.counted.visualTokens), whole);
  staircase("layers-picture", "Prefill FLOPs per decoder layer", series((row) => row.counted.perLayer), short(""));
  stacked("components-picture", "Prefill FLOPs by component", bars(({ counted: { prefill } }) => {
    return Object.fromEntries(COMPONENTS.map((name) => [called[name] || name, Number(prefill[name])]));
  }), short(""));
  stacked("first-picture", "Estimated time to the first token", bars(({ time: { visionMs, firstMs } }) => {
    return { "vision": visionMs, "decoder": firstMs - visionMs };
  }), clock);
  stacked("answer-picture", "Estimated time of an answer", bars(({ time: { firstMs, totalMs } }) => {
    return { "first token": firstMs, "further tokens": totalMs - firstMs };
  }), clock);
  stacked("memory-picture", "Memory of the device", bars(({ time: { memory: { weights, kvCache, activations } } }) => {
    return { "weights": weights, "KV cache": kvCache, "activations": activations };
  }), short("B"), { name: "the device has", value: rows[0].time.memory.available });
}

/** Everything that follows from the state. */
function show() {
  const model = currentModel(), workload = workloadOf(model, state), policies = policiesOf(model);
  const row = (mark, label, colour, schedule) => {
    return { mark, label, colour, ...figures(model, workload, schedule, state) };
  };
  const dense = row("dense", "dense", "dense", POLICIES.dense.schedule(model));
  const sides = SIDES.map((side, number) => {
    const { policy } = state[side], keys = settledKeys(model, state[side]), mark = side.toUpperCase();
    const made = row(mark, `${mark} ${policy}`, `series-${number + 1}`, policies[policy].schedule(model, keys));
    return { ...made, policy, spelled: spelled(policy, keys) };
  });
  byId("asked").textContent = `${model.name}: ${workload.system_tokens} + ${whole(workload.visual_tokens)} visual + `
    + `${whole(workload.text_tokens)} text tokens, batch ${workload.batch}.`
    + (model.modelled ? " Modelled: a part of this family's work is not counted as it runs." : "");
  byId("said").replaceChildren(...sides.map((side) => sentence(side, dense)));
  table([dense, ...sides]);
  pictures([dense, ...sides]);
  const told = sides.filter(({ policy }) => Object.hasOwn(POLICIES, policy)).map((side) => side.spelled);
  byId("command").textContent = command(model, state, told);
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
}

function start() {
  restore();
  controls();
  show();
  for (const name of ["model", "picture", "hardware", "engine", "weight_bits", "kv_bits", "convention"]) {
    byId(name).addEventListener("change", (event) => {
      const { value } = event.target;
      state[name] = name.endsWith("_bits") ? Number(value) : value;
      if (name === "model") state.text = currentModel().prompt.text_tokens;
      controls();
      show();
    });
  }
  for (const name of Object.keys(RANGES)) {
    byId(name).addEventListener("input", ({ target: { value } }) => {
      if (value === "") return; // still being typed
      state[name] = bounded(name, Number(value));
      show();
    });
  }
  addEventListener("resize", show);
  for (const side of SIDES) {
    byId(`${side}-policy`).addEventListener("change", (event) => {
      state[side] = { policy: event.target.value, keys: {} };
      sliders(currentModel(), side);
      show();
    });
  }
}

start();
