/* What a schedule costs: FLOPs, KV cache, memory and an estimate of time. As planner/cost has it in flops.py,
 * vision.py, machine.py, roofline.py and memory.py. Totals may exceed 2^53 and are BigInt.
 */
"use strict";

/** Components of a prefill, in the order that tables show them. */
const COMPONENTS = [
  "vision", "projector", "attention_projections", "attention_scores", "ffn", "lm_head", "selector",
];
const ENCODER_SCORES = ["encoder_attention", "salient_then_distant"];
const LARGEST_BATCH = 1 << 16;

// -- a schedule's cost ----------------------------------------------

/** FLOPs of tower, projector, and of ranking inside the tower, whole batch.
 *
 * `fixed` grows with the images, `paired` with their square and once more with the batch: towers that take all images
 * of a batch as one sequence.
 */
function visionFlops(model, workload, entry) {
  const { picture } = workload;
  if (!picture || !workload.visual_tokens) return [0n, 0n, 0n];
  const images = BigInt(workload.pictures), batch = BigInt(workload.batch);
  const ranks = entry && ENCODER_SCORES.includes(entry.rank_by);
  return [
    batch * (images * BigInt(picture.fixed_flops) + batch * images * images * BigInt(picture.paired_flops)),
    batch * images * (BigInt(picture.projector_flops) + BigInt(picture.tiles) * textFlops(model, workload)),
    ranks ? batch * images * BigInt(picture.ranking_flops) : 0n,
  ];
}

/** FLOPs of a projector that reads the prompt's text beside a tile's latents. */
function textFlops(model, workload) {
  const { latents, text_macs, text_pair_macs } = model.projector_text;
  const words = workload.system_tokens + workload.text_tokens;
  return 2n * BigInt(words) * (BigInt(text_macs) + BigInt(2 * latents + words) * BigInt(text_pair_macs));
}

/** Bytes of the KV cache once `tokens` generated tokens of each request are in it, whole batch. */
function cacheBytes(model, workload, cells, tokens) {
  let elements = 0;
  for (const [segment, kind, layers] of cells) elements += layers * cachedElements(model, kind.plain, segment, tokens);
  const bits = (BigInt(elements) * BigInt(workload.kv_bits) + BigInt(model.state_bits)) * BigInt(workload.batch);
  return (bits + 7n) / 8n;
}

/** What a schedule costs.
 *
 * @param workload tokens as planner.workload names them, and `picture` (one of the model's) and `pictures`, how many.
 * @param causal count only the attention pairs that a causal mask allows (convention `causal`; else `exact`).
 * @returns prefill by component (BigInt, whole batch), decode FLOPs of one request's first step, KV bytes, and the
 *   visual tokens and decoder FLOPs of each layer.
 */
function cost(model, workload, schedule, causal = false) {
  const segments = lay(schedule, workload), cells = cellsOf(model, segments), batch = BigInt(workload.batch);
  const names = ["attention_projections", "attention_scores", "ffn", "selector"];
  const prefill = Object.fromEntries(COMPONENTS.map((name) => [name, 0n]));
  let decode = 2n * BigInt(model.head_macs);
  for (const [segment, kind, layers] of cells) {
    layerMacs(causal, model, kind.plain, segment).forEach((macs, i) => {
      prefill[names[i]] += 2n * batch * BigInt(layers) * BigInt(macs);
    });
    for (const macs of decodeMacs(model, kind.plain, segment, 0)) decode += 2n * BigInt(layers) * BigInt(macs);
  }
  const [vision, projector, ranked] = visionFlops(model, workload, schedule.entry);
  let chosen = schedule.entry ? entryMacs(model, schedule.entry, workload.visual_tokens) : 0;
  for (const segment of segments) for (const one of segment.scorings) chosen += scoreMacs(model, segment, one);
  prefill.selector += 2n * batch * BigInt(chosen) + ranked;
  Object.assign(prefill, { vision, projector, lm_head: 2n * batch * BigInt(model.head_macs) });
  const perLayer = segments.flatMap((segment) => {
    const kinds = model.kind_of.slice(segment.first, segment.last);
    return kinds.map((kind) => {
      const macs = layerMacs(causal, model, model.kinds[kind].plain, segment).slice(0, 3);
      return 2 * workload.batch * macs.reduce((sum, one) => sum + one, 0);
    });
  });
  return {
    model, workload, segments, cells, prefill, perLayer,
    prefillFlops: COMPONENTS.reduce((sum, name) => sum + prefill[name], 0n),
    decodeFlops: decode,
    kvCacheBytes: cacheBytes(model, workload, cells, 0),
    visualTokens: segments.flatMap((segment) => Array(segment.last - segment.first).fill(segment.visual)),
  };
}

// -- time -------------------------------------------------------

/** Work of a step as it adds up on one device; each class of operations computes and reads. */
class Work {
  constructor(model, workload, hardware, engine) {
    Object.assign(this, { model, workload });
    this.constants = hardware.measured || engine.constants;
    this.matmulRate = hardware.peak_tflops * this.constants.matmul * 1e9;
    this.attentionRate = hardware.peak_tflops * this.constants.attention * 1e9;
    this.readRate = hardware.bandwidth_gbs * this.constants.memory * 1e6;
    this.layerSize = model.layer_bits[workload.weight_bits] / 8;
    this.valueSize = workload.kv_bits / 8;
    this.asynchronous = hardware.asynchronous;
    Object.assign(this, { deviceMs: 0, computingMs: 0, readingMs: 0, overheadUs: 0 });
  }

  add(flops, bytes, times = 1, attends = false) {
    const computing = flops / (attends ? this.attentionRate : this.matmulRate), reading = bytes / this.readRate;
    this.deviceMs += times * (computing + reading - this.constants.overlap * Math.min(computing, reading));
    this.computingMs += times * computing;
    this.readingMs += times * reading;
  }

  /** Equal decoder layers: `macs` of one request, `rows` of the whole batch, elements cached per request. */
  addLayers(layer, layers, macs, rows, cached, twice = 0, asks = false) {
    const { attention, ffn } = layer, { batch } = this.workload, hidden = this.model.hidden_size;
    const flops = macs.map((one) => 2 * batch * one);
    const again = asks ? attention.projection_macs : attention.value_macs + attention.output_macs;
    this.add(flops[0], (attention.projection_macs + twice * again) * this.layerSize, layers);
    this.add(flops[1], cached * batch * this.valueSize, layers, true);
    const fed = (1 + twice) * ffn.dense_macs * this.layerSize;
    if (ffn.experts) {
      const routed = ffn.experts_run * ffn.expert_macs / ffn.macs;
      const reached = ffn.experts * (1 - (1 - ffn.experts_run / ffn.experts) ** rows);
      this.add(flops[2] * (1 - routed), fed, layers);
      this.add(flops[2] * routed, reached * ffn.expert_macs * this.layerSize, layers);
    } else {
      this.add(flops[2], fed, layers);
    }
    // Norms, residual sums, rotary embedding and activations, one after the other.
    const turned = attention.heads * attention.head_dim + attention.key_macs / hidden;
    const touched = 10 * hidden + 10 * turned + 5 * ffn.macs / (3 * hidden);
    const slower = this.constants.memory / this.constants.elementwise;
    this.add(0, rows * touched * this.valueSize * slower, layers);
  }

  get overheadMs() {
    return this.overheadUs / 1000;
  }

  /** The device's time and the host's, side by side or one after the other. */
  get ms() {
    return this.asynchronous ? Math.max(this.deviceMs, this.overheadMs) : this.deviceMs + this.overheadMs;
  }
}

/** Tower and projector. */
function sight(found, work, serving) {
  const { model, workload } = found, { picture } = workload;
  if (!found.prefill.vision) return work;
  const images = workload.pictures, size = workload.weight_bits / 8;
  // Serving engines attend to each image of a batch alone.
  const flops = serving ? workload.batch * images * picture.served_flops : Number(found.prefill.vision);
  work.add(flops, model.tower_weights * size);
  work.add(Number(found.prefill.projector), model.projector_weights * size);
  work.overheadUs = work.constants.tower_layer_us * model.tower_layers;
  return work;
}

/** An estimate of time on a device under an engine, and whether it fits.
 *
 * @param found what `cost` returns under the convention `causal`.
 */
function latency(found, hardware, engine) {
  const { model, workload, cells } = found, { batch } = workload;
  const fresh = () => new Work(model, workload, hardware, engine);
  const vision = sight(found, fresh(), engine.serving), prefill = fresh(), step = fresh();
  const { layer_us: layerUs, step_us: stepUs } = prefill.constants;
  const ahead = Math.floor((workload.output_tokens - 1) / 2);
  const headBytes = model.head_macs * workload.weight_bits / 8;
  for (const [segment, kind, layers] of cells) {
    const layer = engine.serving ? kind.served : kind.plain;
    const twice = segment.alone && !segment.streamed && segment.visual > 0 ? 1 : 0;
    const rows = segment.system + segment.text + (segment.streamed ? 0 : segment.visual);
    const macs = layerMacs(true, model, layer, segment), cached = cachedElements(model, layer, segment, 0);
    prefill.addLayers(layer, layers, macs, batch * rows, cached, twice, segment.prefix);
    prefill.overheadUs += layers * (1 + twice) * layerUs;
    const decoded = decodeMacs(model, engine.serving ? kind.decoded : kind.plain, segment, ahead);
    step.addLayers(layer, layers, decoded, batch, cachedElements(model, layer, segment, ahead));
    step.add(layers * 2 * batch * decoded[3], 0, 1, true);
  }
  prefill.add(Number(found.prefill.lm_head), headBytes);
  prefill.add(Number(found.prefill.selector), 0, 1, true);
  prefill.overheadUs += stepUs;
  step.add(2 * batch * model.head_macs, headBytes);
  step.overheadUs = layerUs * model.kind_of.length + stepUs;
  const firstMs = vision.ms + prefill.ms;
  return {
    visionMs: vision.ms, firstMs, tokenMs: step.ms,
    totalMs: firstMs + step.ms * (workload.output_tokens - 1),
    firstBound: bound([vision, prefill]), tokenBound: bound([step]),
    memory: memory(found, hardware),
  };
}

/** What takes the larger part of the time. */
function bound(steps) {
  const sum = (name) => steps.reduce((total, step) => total + step[name], 0);
  if (sum("overheadMs") > sum("deviceMs")) return "overhead";
  return sum("computingMs") >= sum("readingMs") ? "compute" : "memory";
}

/** Bytes on the device, and the largest batch that fits. */
function memory(found, hardware) {
  const { model, workload, cells } = found, size = workload.kv_bits / 8, hidden = model.hidden_size;
  const weights = model.weights_bytes[workload.weight_bits];
  const kvCache = Number(cacheBytes(model, workload, cells, workload.output_tokens - 1));
  let most = 0;
  for (const [segment, { plain: { attention, ffn } }] of cells) {
    const asked = 2 * attention.heads * attention.head_dim + (attention.key_macs + attention.value_macs) / hidden;
    const run = ffn.dense_macs + ffn.experts_run * ffn.expert_macs;
    const rows = segment.system + segment.text + segment.visual;
    most = Math.max(most, rows * (2 * hidden + Math.max(asked, run / hidden)) * size);
  }
  const activations = Math.round(workload.batch * (most + model.vocab_size * (size + 4)));
  const available = Math.trunc(hardware.memory_gb * 1e9), each = (kvCache + activations) / workload.batch;
  const room = each ? Math.trunc((available - weights) / each) : LARGEST_BATCH;
  const total = weights + kvCache + activations;
  return {
    weights, kvCache, activations, total, available,
    fits: total <= available, largestBatch: Math.max(0, Math.min(room, LARGEST_BATCH)),
  };
}
