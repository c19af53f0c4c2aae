// The loop of a manifest: what calls there are, and whether this runtime can run them.

import { CorruptBundle, VersionError } from "./errors.js";

const SOURCES = ["request", "state", "table", "noise"];
const DISTRIBUTIONS = ["normal", "uniform"];
const DTYPES = ["float64", "float32", "float16", "int64", "int32", "bool"];

/** The size of a dimension: a number, a named size, or a multiple of one ("2*batch"). */
export function dimensionSize(dimension, sizes) {
  if (typeof dimension === "number") return dimension;
  const [name, factor] = dimension.split("*").reverse();
  if (!sizes.has(name)) {
    throw new CorruptBundle(
      `loop: found size '${name}', which the signature lacks; export the bundle again`,
    );
  }
  return Number(factor ?? 1) * sizes.get(name);
}

/** Whether an item of a body repeats others; else it is a call. */
export function isRepeat(item) {
  return Object.hasOwn(item, "steps");
}

/** Every call of a body, in order, each once. */
export function loopCalls(body) {
  return body.flatMap((item) =>
    isRepeat(item) ? Object.values(item.bodies).flatMap(loopCalls) : [item],
  );
}

function loopRepeats(body) {
  return body
    .filter(isRepeat)
    .flatMap((item) => [item, ...Object.values(item.bodies).flatMap(loopRepeats)]);
}

/**
 * Refuses a loop that names what the bundle lacks, or needs what this runtime lacks.
 *
 * @throws {CorruptBundle} a name that leads nowhere.
 * @throws {VersionError} a dtype, source or distribution this runtime does not have.
 */
export function checkLoop(loop, graphs, signature) {
  if (![loop?.slots, loop?.noise, loop?.body].every(Array.isArray)) {
    throw new CorruptBundle("manifest.json: found no loop; export the bundle again");
  }
  const slots = new Set(loop.slots.map((slot) => slot.name));
  const known = {
    state: slots,
    noise: new Set(loop.noise.map((noise) => noise.name)),
    request: new Set(signature.inputs.map((input) => input.name)),
  };
  for (const item of [...loop.slots, ...loop.noise, ...signature.inputs]) {
    expectOne(item.dtype, DTYPES, `${item.name}: dtype`);
  }
  for (const noise of loop.noise) {
    expectOne(noise.distribution ?? "normal", DISTRIBUTIONS, `${noise.name}: distribution`);
  }
  for (const slot of loop.slots) {
    if (slot.initial) checkBinding(slot.initial, known);
  }
  for (const call of loopCalls(loop.body)) checkCall(call, graphs, known);
  for (const repeat of loopRepeats(loop.body)) checkRepeat(repeat, slots);
  for (const slot of Object.values(loop.results)) expectKnown(slot, slots, "slot");
}

function checkCall(call, graphs, known) {
  expectKnown(call.graph, new Set(Object.keys(graphs)), "graph");
  const graph = graphs[call.graph];
  const inputs = Object.keys(call.inputs);
  const same = inputs.length === Object.keys(graph.inputs).length;
  if (!same || inputs.some((name) => !Object.hasOwn(graph.inputs, name))) {
    throw new CorruptBundle(`the loop calls graph ${call.graph} with other names than it has`);
  }
  Object.values(call.inputs).forEach((binding) => checkBinding(binding, known));
  for (const [name, to] of Object.entries(call.outputs)) {
    expectKnown(name, new Set(Object.keys(graph.outputs)), `output of graph ${call.graph}`);
    if (to.state) expectKnown(to.state, known.state, "slot");
    if (to.counts) expectKnown(to.counts, new Set(Object.keys(call.outputs)), "output");
  }
}

function checkRepeat(repeat, slots) {
  const bodies = new Set(Object.keys(repeat.bodies));
  repeat.steps.forEach((name) => expectKnown(name, bodies, "body"));
  if (repeat.until) expectKnown(repeat.until, slots, "slot");
}

function checkBinding(binding, known) {
  expectOne(binding.source, SOURCES, `${binding.name}: source`);
  if (binding.source !== "table") expectKnown(binding.name, known[binding.source], binding.source);
}

function expectKnown(name, known, kind) {
  if (!known.has(name)) {
    throw new CorruptBundle(`the loop names unknown ${kind} ${name}; export the bundle again`);
  }
}

function expectOne(found, expected, what) {
  if (!expected.includes(found)) {
    throw new VersionError(
      `${what}: found ${found}, expected one of ${expected.join(", ")}, which the browser ` +
        "runtime has; export the bundle for another runtime or in another precision",
    );
  }
}
