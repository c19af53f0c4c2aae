// Runs a session beside the page, so that the page stays responsive.
//
// Takes {kind: "load", url}, {kind: "run", request, seed} and {kind: "stop"}; posts "fetched",
// "loaded", "step", "results" and "failed".

import * as ort from "./ort/ort.wasm.min.mjs";
import { load } from "./session.js";

const MOST_THREADS = 8;

let session = null;
let stopped = false;

// WebAssembly shares memory between threads only in pages that are isolated from other origins.
const threads = globalThis.crossOriginIsolated
  ? Math.min(MOST_THREADS, navigator.hardwareConcurrency)
  : 1;
ort.env.wasm.numThreads = threads;
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

async function open(url) {
  const progress = (bytes, of) => postMessage({ kind: "fetched", bytes, of });
  session = await load(url, { ort, progress });
  const engine = { version: ort.env.versions.web, threads };
  const { manifest } = session;
  postMessage({ kind: "loaded", manifest, example: await session.example(), engine });
}

async function run({ request, seed }) {
  stopped = false;
  const start = performance.now();
  const progress = async (done, of) => {
    postMessage({ kind: "step", done, of });
    await turn();
    if (stopped) throw new Error("stopped");
  };
  const results = await session.run(request, { seed, progress });
  postMessage({ kind: "results", results, seconds: (performance.now() - start) / 1000 });
}

/** Lets messages that have arrived be read. */
function turn() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

const TASKS = { load: (message) => open(message.url), run };

onmessage = async ({ data }) => {
  if (data.kind === "stop") {
    stopped = true;
    return;
  }
  try {
    await TASKS[data.kind](data);
  } catch (error) {
    const text = error?.message ?? String(error);
    postMessage({
      kind: "failed",
      task: data.kind,
      stopped,
      text,
      code: error?.code ?? "internal",
    });
  }
};
