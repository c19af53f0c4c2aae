// Runs a bundle's graphs in onnxruntime-web, with its WebAssembly code.

import { zeros } from "./arrays.js";
import { CorruptBundle, ResourceError } from "./errors.js";

/** The sessions of a bundle; an engine of `Run`, which keeps no state between calls. */
export class OrtEngine {
  #ort;
  #sessions;
  #entries;

  constructor(ort, sessions, entries) {
    this.#ort = ort;
    this.#sessions = sessions;
    this.#entries = entries;
  }

  /**
   * Makes a session of every graph; all of them read the one buffer of weights while they are made.
   *
   * @param {object} ort the module onnxruntime-web.
   * @param {object} bundle what `openBundle` returned.
   * @throws {CorruptBundle} it cannot read a graph.
   */
  static async create(ort, { manifest, models, weights }) {
    const sessions = new Map();
    for (const [role, model] of models) {
      try {
        const options = {
          executionProviders: ["wasm"],
          externalData: [weights],
          logSeverityLevel: 3,
        };
        sessions.set(role, await ort.InferenceSession.create(model, options));
      } catch (cause) {
        await Promise.all([...sessions.values()].map((session) => session.release()));
        throw failure(`graph ${role}: onnxruntime-web refused it`, cause);
      }
    }
    return new OrtEngine(ort, sessions, manifest.graphs);
  }

  upload(array) {
    return new this.#ort.Tensor(array.dtype, array.data, array.shape);
  }

  zeros(shape, dtype) {
    return this.upload(zeros(shape, dtype));
  }

  download(handle) {
    const { type, dims, data } = handle;
    // A browser that has Float16Array gets one; arrays.js keeps float16 as its bits.
    const bits = type === "float16";
    return {
      dtype: type,
      shape: [...dims],
      data: bits ? new Uint16Array(data.buffer, data.byteOffset, data.length) : data,
    };
  }

  async run(graph, inputs, outputs) {
    const names = this.#entries[graph];
    const feeds = {};
    for (const [name, handle] of Object.entries(inputs)) feeds[names.inputs[name]] = handle;
    const fetches = outputs.map((name) => names.outputs[name]);
    let made;
    try {
      made = await this.#sessions.get(graph).run(feeds, fetches);
    } catch (cause) {
      throw failure(`graph ${graph}: failed while running`, cause);
    }
    return Object.fromEntries(outputs.map((name) => [name, made[names.outputs[name]]]));
  }

  /** Frees the sessions. */
  async release() {
    const sessions = [...this.#sessions.values()];
    this.#sessions = new Map();
    await Promise.all(sessions.map((session) => session.release()));
  }
}

function failure(text, cause) {
  const first = String(cause?.message ?? cause)
    .split("\n")[0]
    .slice(0, 500);
  // A WebAssembly module that runs out of its 4 GiB throws numbers, RangeErrors and bad_alloc.
  if (cause instanceof RangeError || typeof cause === "number" || /alloc|memory/i.test(first)) {
    return new ResourceError(`${text}: ${first}; use a smaller batch, or free memory`, { cause });
  }
  return new CorruptBundle(`${text}: ${first}; export the bundle again`, { cause });
}
