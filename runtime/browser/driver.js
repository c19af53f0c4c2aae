// Runs a loop on any engine: the driver of optimize/runtime/driver.py.
//
// It moves handles between state slots and engine calls and never looks inside them. An engine has
//   upload(array) → handle, zeros(shape, dtype) → handle, download(handle) → array,
//   run(graph, inputs, outputs) → Promise of handles by name,
// where inputs are handles by name and outputs the names wanted. A run returns new handles, so no
// slot ever shares memory with another and `in_place` needs no care.

import { batch, slotKey } from "./philox.js";
import { cast, row, rows, sizeOf, stack, zeros } from "./arrays.js";
import { CorruptBundle } from "./errors.js";
import { dimensionSize, isRepeat } from "./loop.js";

/** The keys of all noise of a loop, name → key; made once, because hashing is asynchronous. */
export async function noiseKeys(loop) {
  const entries = loop.noise.map(async ({ name }) => [name, await slotKey(name)]);
  return new Map(await Promise.all(entries));
}

/** One execution of a loop. Make a new one for each request. */
export class Run {
  #slots;
  #noise;
  #state = new Map();
  #uploaded = new Map();
  #appended = new Map();
  #done = 0;
  #total;

  /**
   * @param {object} parts
   * @param {object} parts.loop of the manifest.
   * @param {Map} parts.tables name → array [steps, ...].
   * @param {object} parts.engine runs graphs.
   * @param {Map} parts.keys what `noiseKeys` made of the loop.
   * @param {Map} parts.sizes named size → number.
   * @param {Map} parts.request field → array.
   * @param {bigint} parts.seed
   * @param {(done: number, total: number) => any} [parts.progress] called, and waited for, after
   *   each step; what it throws ends the run.
   * @param {Map} [parts.rows] uploaded rows of the tables, kept from run to run.
   */
  constructor({ loop, tables, engine, keys, sizes, request, seed, progress, rows = new Map() }) {
    Object.assign(this, { loop, tables, engine, keys, sizes, request, seed, progress, rows });
    this.#slots = new Map(loop.slots.map((slot) => [slot.name, slot]));
    this.#noise = new Map(loop.noise.map((noise) => [noise.name, noise]));
    this.#total = loop.body.filter(isRepeat).reduce((total, item) => total + item.steps.length, 0);
  }

  /** Runs the loop; returns result name → array. */
  async execute() {
    for (const name of this.#slots.keys()) this.#state.set(name, this.#initial(name));
    for (const item of this.loop.body) await this.#execute(item, 0);
    const results = {};
    for (const [name, parts] of this.#appended) results[name] = joined(parts);
    for (const [name, slot] of Object.entries(this.loop.results)) {
      results[name] = this.engine.download(this.#state.get(slot));
    }
    return results;
  }

  #initial(name) {
    const { dtype, shape, initial } = this.#slots.get(name);
    if (!initial) return this.engine.zeros(this.#shape(shape), dtype);
    if (initial.source === "request") return this.engine.upload(this.request.get(initial.name));
    if (initial.source === "table") return this.engine.upload(row(this.#table(initial.name), 0));
    return this.#draw(initial, 0);
  }

  async #execute(item, step) {
    if (!isRepeat(item)) return this.#call(item, step);
    for (const [index, body] of item.steps.entries()) {
      for (const inner of item.bodies[body]) {
        await this.#execute(inner, index * (item.stride ?? 1));
      }
      this.#done += 1;
      await this.progress?.(this.#done, this.#total);
      if (item.until) {
        const flags = this.engine.download(this.#state.get(item.until)).data;
        if (flags.every(Boolean)) break;
      }
    }
  }

  async #call(call, step) {
    const inputs = {};
    for (const [name, binding] of Object.entries(call.inputs)) {
      inputs[name] = this.#value(binding, step);
    }
    const outputs = await this.engine.run(call.graph, inputs, Object.keys(call.outputs));
    for (const [name, to] of Object.entries(call.outputs)) {
      if (to.state) {
        this.#state.set(to.state, outputs[name]);
        continue;
      }
      const counts = to.counts ? this.engine.download(outputs[to.counts]) : null;
      const array = this.engine.download(outputs[name]);
      if (!this.#appended.has(to.append)) this.#appended.set(to.append, []);
      this.#appended.get(to.append).push({ array, counts, fill: to.fill ?? 0 });
    }
  }

  #value(binding, step) {
    if (binding.source === "state") return this.#state.get(binding.name);
    if (binding.source === "noise") return this.#draw(binding, step);
    if (binding.source === "table") {
      const key = `${binding.name} ${step} ${binding.steps ?? ""}`;
      return kept(this.rows, key, () =>
        this.engine.upload(rowsOf(this.#table(binding.name), binding, step)),
      );
    }
    return kept(this.#uploaded, binding.name, () =>
      this.engine.upload(this.request.get(binding.name)),
    );
  }

  #draw(binding, step) {
    const noise = this.#noise.get(binding.name);
    const given = this.request.get(noise.name);
    if (given !== undefined) {
      const repeated = binding.steps ? stack(Array(binding.steps).fill(given)) : given;
      return this.engine.upload(noise.steps ? rowsOf(given, binding, step) : repeated);
    }
    const shape = this.#shape(noise.shape);
    const draws = Array.from({ length: binding.steps ?? 1 }, (_, index) => {
      const { distribution = "normal", scale = 1, dtype } = noise;
      const key = this.keys.get(noise.name);
      const numbers = batch(this.seed, key, step + index, shape, distribution);
      return {
        dtype,
        shape,
        data: cast(
          numbers.map((number) => number * scale),
          dtype,
        ),
      };
    });
    return this.engine.upload(binding.steps ? stack(draws) : draws[0]);
  }

  #shape(dimensions) {
    return dimensions.map((dimension) => dimensionSize(dimension, this.sizes));
  }

  #table(name) {
    const table = this.tables.get(name);
    if (table === undefined) {
      throw new CorruptBundle(`tables.safetensors: lacks ${name}, which the loop reads`);
    }
    return table;
  }
}

function kept(map, key, make) {
  if (!map.has(key)) map.set(key, make());
  return map.get(key);
}

/** The row of a step, or the rows of as many steps as the binding takes. */
function rowsOf(array, binding, step) {
  return binding.steps ? rows(array, step, step + binding.steps) : row(array, step);
}

/** The parts of a result one after another in its second dimension. */
export function joined(parts) {
  const { array: first, fill } = parts[0];
  if (parts.every((part) => part.counts === null)) {
    return stack(
      parts.map((part) => part.array),
      Math.min(1, first.shape.length),
    );
  }
  const samples = Array.from({ length: first.shape[0] }, (_, sample) =>
    parts.map((part) => ofSample(part, sample)),
  );
  const lengths = samples.map((pieces) => pieces.reduce((sum, piece) => sum + piece.shape[0], 0));
  const longest = Math.max(0, ...lengths);
  const inner = samples.length ? samples[0][0].shape.slice(1) : first.shape.slice(2);
  const result = zeros([samples.length, longest, ...inner], first.dtype);
  result.data.fill(cast([fill], first.dtype)[0]);
  const size = sizeOf(inner);
  samples.forEach((pieces, sample) => {
    let position = sample * longest * size;
    for (const piece of pieces) {
      result.data.set(piece.data, position);
      position += piece.data.length;
    }
  });
  return result;
}

/** The elements of one sample of a part, [n, ...]. */
function ofSample({ array, counts }, sample) {
  if (counts === null) return rows(array, sample, sample + 1);
  const elements = row(array, sample);
  return rows(elements, 0, Number(counts.data[sample]));
}
