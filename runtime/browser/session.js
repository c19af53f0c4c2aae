// A loaded bundle that answers requests, in a page, a worker or node.
//
//   import * as ort from "./ort/ort.wasm.min.mjs";
//   const session = await load("bundle/", { ort });
//   const { latent } = await session.run({ class_labels: [7] }, { seed: 0 });

import { values } from "./arrays.js";
import { openBundle } from "./bundle.js";
import { Run, noiseKeys } from "./driver.js";
import { CorruptBundle, ResourceError } from "./errors.js";
import { OrtEngine } from "./ort_engine.js";
import { checkRequest } from "./request.js";
import { readTensors } from "./safetensors.js";

const EXAMPLE_FILE = "example.safetensors";

/**
 * Opens a bundle.
 *
 * @param {string|URL} url its folder.
 * @param {object} options
 * @param {object} options.ort the module onnxruntime-web.
 * @param {typeof fetch} [options.fetch] what fetches its files.
 * @param {(bytes: number, of: number) => void} [options.progress] called while they arrive.
 * @throws {BundleError} its subclasses say what is wrong with the bundle.
 * @throws {ResourceError} memory, network, or a page that is no secure context.
 */
export async function load(url, { ort, fetch, progress } = {}) {
  if (typeof ort?.InferenceSession?.create !== "function") {
    throw new TypeError("load: found no onnxruntime-web, expected its module as `ort`");
  }
  const bundle = await openBundle(url, { fetch, progress });
  const keys = await noiseKeys(bundle.manifest.loop);
  return new Session(bundle, keys, await OrtEngine.create(ort, bundle));
}

/** A loaded bundle; `manifest` and `signature` say what it is and what a request may contain. */
export class Session {
  #tables;
  #keys;
  #engine;
  #read;
  #rows = new Map();
  #last = Promise.resolve();

  constructor({ manifest, tables, read }, keys, engine) {
    this.manifest = manifest;
    this.signature = manifest.signature;
    this.#tables = tables;
    this.#keys = keys;
    this.#engine = engine;
    this.#read = read;
  }

  /**
   * The request that the bundle stores, and what PyTorch answered; null where it stores none.
   *
   * @returns {Promise<?{request: object, seed: ?bigint, results: object}>} arrays by name.
   */
  async example() {
    const content = await this.#read(EXAMPLE_FILE);
    if (content === null) return null;
    const found = { request: {}, result: {} };
    for (const [name, array] of readTensors(content, EXAMPLE_FILE)) {
      const [kind, ...rest] = name.split(".");
      if (!Object.hasOwn(found, kind)) {
        throw new CorruptBundle(
          `${EXAMPLE_FILE}: found tensor '${name}', expected request and result`,
        );
      }
      found[kind][rest.join(".")] = { ...array, data: values(array) };
    }
    const { seed, ...request } = found.request;
    // The seed is stored as its 64 bits, signed.
    const unsigned = seed ? BigInt.asUintN(64, BigInt(seed.data[0])) : null;
    return { request, seed: unsigned, results: found.result };
  }

  /**
   * Runs the loop. Requests made meanwhile wait for their turn.
   *
   * @param {object} request the fields of `signature`; see request.js for how they are given.
   * @param {object} options
   * @param {bigint|number} [options.seed] in [0, 2**64); draws the noise the request does not give.
   * @param {(done: number, of: number) => any} [options.progress] called, and waited for, after
   *   each step; what it throws ends the request, and the session stays usable.
   * @returns result name → {dtype, shape, data}; float16 comes as Float32Array.
   * @throws {RuntimeInputError} the request does not fit the signature.
   * @throws {ResourceError} the session is closed, or ran out of memory.
   */
  async run(request, { seed = null, progress } = {}) {
    if (this.#engine === null) {
      throw new ResourceError("session: found a closed session; load the bundle again");
    }
    const { loop } = this.manifest;
    const checked = checkRequest(this.signature, loop, request, seed);
    const run = new Run({
      loop,
      tables: this.#tables,
      engine: this.#engine,
      keys: this.#keys,
      sizes: checked.sizes,
      request: checked.arrays,
      seed: checked.seed,
      progress,
      rows: this.#rows,
    });
    const results = await this.#inTurn(() => run.execute());
    for (const array of Object.values(results)) array.data = values(array);
    return results;
  }

  /** Frees the graphs once the requests before have ended; calling it again does nothing. */
  async close() {
    const engine = this.#engine;
    this.#engine = null;
    if (engine !== null) await this.#inTurn(() => engine.release());
  }

  /** onnxruntime-web runs one call at a time, so requests take turns. */
  #inTurn(work) {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }
}
