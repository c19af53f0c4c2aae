// node run_session.js MODULES ORT BUNDLE: reads [{request, seed}, …], writes what a session gives.
//
// A field {typed: "Float32Array", data: [...], shape: [...]} stands for an array of that class. An
// answer is {results} or {code, message}; a bundle that does not load is answered by one of these.

import { readFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, runtime, bundle] = process.argv.slice(2);
const { load } = await import(`${modules}/session.js`);
const ort = await import(`${runtime}/ort.wasm.min.mjs`);
ort.env.wasm.numThreads = 1;

async function fetchFile(url) {
  try {
    return new Response(await readFile(url));
  } catch {
    return new Response(null, { status: 404 });
  }
}

function revived(name, value) {
  if (!value?.typed) return value;
  const convert = value.typed.startsWith("Big") ? BigInt : Number;
  const data = globalThis[value.typed].from(value.data, convert);
  return { data, shape: value.shape };
}

function plain({ dtype, shape, data }) {
  return { dtype, shape, data: Array.from(data, String) };
}

function failure(error) {
  return { code: error.code ?? error.name, message: error.message };
}

let session;
try {
  session = await load(pathToFileURL(bundle), { ort, fetch: fetchFile });
} catch (error) {
  process.stdout.write(JSON.stringify(failure(error)));
  process.exit();
}
const answers = [];
for (const { request, seed } of JSON.parse(readFileSync(0, "utf-8"), revived)) {
  const steps = [];
  try {
    const options = {
      seed: seed === null ? null : BigInt(seed),
      progress: (...of) => steps.push(of),
    };
    const results = await session.run(request, options);
    const entries = Object.entries(results).map(([name, array]) => [name, plain(array)]);
    answers.push({ results: Object.fromEntries(entries), steps });
  } catch (error) {
    answers.push(failure(error));
  }
}
const example = await session.example();
process.stdout.write(JSON.stringify({ answers, example: example && Object.keys(example.results) }));
