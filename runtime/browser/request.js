// Checks a request against a signature before any engine sees it; see optimize/runtime/request.py.
//
// A field is given as a number, a bigint, a boolean, a nested list of them, a typed array (one
// dimension), or {data: typed array, shape: [...]}. float16 and bfloat16 fields are given in
// Float32Array, int64 in BigInt64Array, bool in Uint8Array or as booleans.

import { STORAGE, cast, isFloat, sizeOf } from "./arrays.js";
import { RuntimeInputError } from "./errors.js";
import { dimensionSize } from "./loop.js";
import { MAX_SEED } from "./philox.js";

/**
 * Checks names, dtypes, shapes and values, and fills in defaults.
 *
 * @param {object} signature of the manifest.
 * @param {object} loop its noise slots are optional fields, too.
 * @param {object} request field name → value; named sizes may be given, as in `{batch: 4}`.
 * @param {bigint|number|null} seed needed when a noise is not given as an array.
 * @returns {{arrays: Map, sizes: Map, seed: bigint}}
 * @throws {RuntimeInputError} with the field, what was found, what was expected.
 */
export function checkRequest(signature, loop, request, seed) {
  const fields = new Map([...signature.inputs, ...loop.noise].map((item) => [item.name, item]));
  const given = Object.entries(request).filter(
    ([, value]) => value !== null && value !== undefined,
  );
  const sizes = givenSizes(signature, given);
  const known = [...fields.keys(), "seed", ...Object.keys(signature.dimensions)];
  const unknown = given
    .map(([name]) => name)
    .filter((name) => !known.includes(name))
    .sort();
  if (unknown.length > 0 || Object.hasOwn(request, "seed")) {
    const name = unknown[0] ?? "seed";
    throw new RuntimeInputError(
      `request: found unknown field '${name}', expected some of ${known.join(", ")}` +
        (name === "seed" ? " (the seed is given beside the request)" : ""),
    );
  }
  const arrays = new Map();
  for (const [name, value] of given) {
    if (fields.has(name)) arrays.set(name, asArray(fields.get(name), value));
  }
  for (const item of signature.inputs) {
    if (!arrays.has(item.name) && hasDefault(item))
      arrays.set(item.name, asArray(item, item.default));
  }
  const missing = signature.inputs.find((item) => !arrays.has(item.name));
  if (missing !== undefined) {
    throw new RuntimeInputError(
      `request: '${missing.name}' is missing, expected ` +
        signature.inputs.map(describe).join(", "),
    );
  }
  for (const [name, array] of arrays) bindSizes(fields.get(name), array, sizes);
  for (const [name, [low, high]] of Object.entries(signature.dimensions)) {
    if (!sizes.has(name)) sizes.set(name, Math.max(1, low));
    const size = sizes.get(name);
    if (size < low || size > high) {
      throw new RuntimeInputError(
        `${name}: found ${size}, expected a size in [${low}, ${high}]; split the request or ` +
          "export again with a wider range",
      );
    }
  }
  for (const [name, array] of arrays) {
    const fitted = fitShape(fields.get(name), array, sizes);
    checkValues(fields.get(name), fitted, sizes);
    arrays.set(name, stored(fields.get(name), fitted));
  }
  const undrawn = loop.noise.find((noise) => !arrays.has(noise.name));
  return { arrays, sizes, seed: checkSeed(seed, undrawn) };
}

/** A field as a user reads it: `class_labels int64 [batch]`. */
export function describe(item) {
  return `${item.name} ${item.dtype} [${fieldShape(item).join(", ")}]`;
}

/** The shape of a field as a request gives it: noise that has steps has one row for each. */
export function fieldShape(item) {
  return item.steps ? [item.steps, ...item.shape] : item.shape;
}

function hasDefault(item) {
  return item.default !== null && item.default !== undefined;
}

function givenSizes(signature, given) {
  const sizes = new Map();
  for (const [name, value] of given) {
    if (!Object.hasOwn(signature.dimensions, name)) continue;
    const size = typeof value === "bigint" ? Number(value) : value;
    if (!Number.isSafeInteger(size)) {
      throw new RuntimeInputError(`${name}: found ${shown(value)}, expected a whole number`);
    }
    sizes.set(name, size);
  }
  return sizes;
}

/** The class a typed array of a field must have, and its elements as they are checked. */
function givenClass(dtype) {
  return dtype === "float16" || dtype === "bfloat16" ? Float32Array : STORAGE[dtype];
}

/** The field as {data, shape}, data of `givenClass`; never a silent cast. */
function asArray(item, value) {
  if (ArrayBuffer.isView(value)) return typed(item, value, [value.length]);
  if (ArrayBuffer.isView(value?.data) && Array.isArray(value.shape)) {
    return typed(item, value.data, value.shape);
  }
  const shape = listShape(item, value);
  const elements = shape.length === 0 ? [value] : value.flat(shape.length - 1);
  if (elements.length !== sizeOf(shape)) {
    throw new RuntimeInputError(
      `${item.name}: found lists of different lengths, expected ${describe(item)}`,
    );
  }
  return { shape, data: plain(item, elements) };
}

function typed(item, data, shape) {
  const expected = givenClass(item.dtype);
  if (!(data instanceof expected)) {
    throw new RuntimeInputError(
      `${item.name}: found ${data.constructor.name}, expected ${expected.name} for ` +
        describe(item),
    );
  }
  if (sizeOf(shape) !== data.length) {
    throw new RuntimeInputError(
      `${item.name}: found ${data.length} elements for shape [${shape}], expected ${sizeOf(shape)}`,
    );
  }
  return { shape, data };
}

function listShape(item, value) {
  const shape = [];
  for (let inner = value; Array.isArray(inner); inner = inner[0]) {
    if (inner.length === 0) {
      throw new RuntimeInputError(`${item.name}: found an empty list, expected ${describe(item)}`);
    }
    shape.push(inner.length);
  }
  return shape;
}

/** Plain values have no dtype of their own: whole numbers may stand for floats, not the reverse. */
function plain(item, elements) {
  const fits = {
    bool: (value) => typeof value === "boolean",
    int64: (value) => typeof value === "bigint" || Number.isSafeInteger(value),
    int32: (value) => Number.isInteger(value) && value === (value | 0),
  };
  const number = (value) => typeof value === "number" || typeof value === "boolean";
  const wrong = elements.find((value) => !(fits[item.dtype] ?? number)(value));
  if (wrong !== undefined || elements.includes(undefined)) {
    throw new RuntimeInputError(`${item.name}: found ${shown(wrong)}, expected ${describe(item)}`);
  }
  const convert = item.dtype === "int64" ? BigInt : Number;
  return givenClass(item.dtype).from(elements, (value) => convert(value));
}

function shown(value) {
  if (typeof value === "string") return `'${value.slice(0, 50)}'`;
  return Array.isArray(value) ? "a list" : String(value);
}

/** Learns named sizes from arrays of full rank. */
function bindSizes(item, array, sizes) {
  const expected = fieldShape(item);
  if (array.shape.length !== expected.length) return;
  expected.forEach((dimension, position) => {
    const named = typeof dimension === "string" && !dimension.includes("*");
    if (named && !sizes.has(dimension)) sizes.set(dimension, array.shape[position]);
  });
}

/** The array at its full shape; a single number is repeated for the whole batch. */
function fitShape(item, array, sizes) {
  const expected = fieldShape(item).map((dimension) => dimensionSize(dimension, sizes));
  if (array.shape.length === 0 && expected.length <= 1) {
    const data = new array.data.constructor(sizeOf(expected)).fill(array.data[0]);
    return { shape: expected, data };
  }
  if (array.shape.join() !== expected.join()) {
    const named = [...sizes].map(([name, size]) => `${name}=${size}`).join(", ");
    throw new RuntimeInputError(
      `${item.name}: found shape [${array.shape.join(", ")}], expected ${describe(item)}` +
        (named ? ` with ${named}` : ""),
    );
  }
  return array;
}

function checkValues(item, { data }, sizes) {
  if (isFloat(item.dtype)) {
    const index = data.findIndex((value) => !Number.isFinite(value));
    if (index >= 0) {
      throw new RuntimeInputError(
        `${item.name}: found ${data[index]} at element ${index}, expected finite values`,
      );
    }
  }
  const low = item.low ?? null;
  let high = item.high ?? null;
  if (item.at_most) high = Math.min(sizes.get(item.at_most), high || Infinity);
  // Relations between numbers and BigInts are exact, so neither is converted.
  const outside = data.find(
    (value) => (low !== null && value < low) || (high !== null && value > high),
  );
  if (outside !== undefined) {
    throw new RuntimeInputError(
      `${item.name}: found value ${outside}, ` +
        `expected values in [${low ?? -Infinity}, ${high ?? Infinity}]`,
    );
  }
}

function stored(item, { shape, data }) {
  const small = item.dtype === "float16" || item.dtype === "bfloat16";
  return { dtype: item.dtype, shape, data: small ? cast(data, item.dtype) : data };
}

function checkSeed(seed, undrawn) {
  if (seed === null || seed === undefined) {
    if (undrawn !== undefined) {
      throw new RuntimeInputError(
        `request: found neither \`seed\` nor '${undrawn.name}'; ` +
          "give a seed to draw the noise, or the array itself",
      );
    }
    return 0n;
  }
  const whole = typeof seed === "bigint" || Number.isSafeInteger(seed);
  if (!whole || seed < 0 || seed > MAX_SEED) {
    throw new RuntimeInputError(
      `seed: found ${shown(seed)}, expected a whole number in [0, 2**64); a bigint above 2**53`,
    );
  }
  return BigInt(seed);
}
