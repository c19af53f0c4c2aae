// Arrays on the host: {dtype, shape, data}, data flat in C order.
//
// dtype is our name of it. float16 and bfloat16 lie in data as their 16 bits (Uint16Array), int64
// as BigInt64Array, bool as Uint8Array of 0 and 1.

import { CorruptBundle } from "./errors.js";

export const STORAGE = {
  float64: Float64Array,
  float32: Float32Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

export function isFloat(dtype) {
  return dtype.includes("float");
}

/** How many elements an array of this shape has. */
export function sizeOf(shape) {
  return shape.reduce((size, dimension) => size * dimension, 1);
}

export function zeros(shape, dtype) {
  return { dtype, shape, data: new STORAGE[dtype](sizeOf(shape)) };
}

/** Row `index` of an array [rows, ...]. */
export function row(array, index) {
  const [first, ...shape] = array.shape;
  if (index < 0 || index >= first) {
    throw new CorruptBundle(`loop: found row ${index} of an array of ${first} rows; export again`);
  }
  const size = sizeOf(shape);
  return { dtype: array.dtype, shape, data: array.data.subarray(index * size, (index + 1) * size) };
}

/** Rows `start` up to `stop` of an array [rows, ...], as many of them as there are. */
export function rows(array, start, stop) {
  const [first, ...shape] = array.shape;
  const size = sizeOf(shape);
  const [from, to] = [Math.min(start, first), Math.min(stop, first)];
  return {
    dtype: array.dtype,
    shape: [to - from, ...shape],
    data: array.data.subarray(from * size, to * size),
  };
}

/** Arrays of one shape stacked along a new dimension `axis`. */
export function stack(arrays, axis = 0) {
  const { dtype, shape } = arrays[0];
  for (const array of arrays) {
    if (array.shape.join() !== shape.join()) {
      throw new CorruptBundle(
        `loop: found parts of shapes [${shape}] and [${array.shape}], expected equal ones`,
      );
    }
  }
  const outer = sizeOf(shape.slice(0, axis));
  const inner = sizeOf(shape.slice(axis));
  const data = new STORAGE[dtype](outer * arrays.length * inner);
  arrays.forEach((array, position) => {
    for (let index = 0; index < outer; index++) {
      const piece = array.data.subarray(index * inner, (index + 1) * inner);
      data.set(piece, (index * arrays.length + position) * inner);
    }
  });
  return { dtype, shape: [...shape.slice(0, axis), arrays.length, ...shape.slice(axis)], data };
}

/** Numbers rounded to `dtype` (to nearest, ties to even), in its storage. */
export function cast(numbers, dtype) {
  if (dtype === "float16") return Uint16Array.from(numbers, toHalf);
  if (dtype === "bfloat16") return Uint16Array.from(numbers, toBfloat16);
  if (dtype === "int64") return BigInt64Array.from(numbers, (number) => BigInt(number));
  return STORAGE[dtype].from(numbers);
}

/** The elements as JavaScript numbers (BigInts of an int64 array), whatever their storage. */
export function values(array) {
  if (array.dtype === "float16") return Float32Array.from(array.data, fromHalf);
  if (array.dtype === "bfloat16") return Float32Array.from(array.data, fromBfloat16);
  return array.data;
}

const SCRATCH = new DataView(new ArrayBuffer(4));

/** The bits of the float16 nearest to a number. */
function toHalf(number) {
  const sign = number < 0 || Object.is(number, -0) ? 0x8000 : 0;
  const size = Math.abs(number);
  if (Number.isNaN(number)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  // Below 2**-14 steps are 2**-24; the carry of rounding up runs into the exponent by itself.
  if (size < 2 ** -14) return sign | roundEven(size * 2 ** 24);
  const exponent = exponentOf(size);
  return sign | ((exponent + 14) * 1024 + roundEven(size * 2 ** (10 - exponent)));
}

/** The exponent e of a normal number m * 2**e, 1 <= m < 2, in the range of float16. */
function exponentOf(size) {
  let exponent = -14;
  while (size >= 2 ** (exponent + 1)) exponent++;
  return exponent;
}

function roundEven(number) {
  const low = Math.floor(number);
  const rest = number - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low;
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The bits of the bfloat16 nearest to the float32 nearest to a number, as Python's runtime. */
function toBfloat16(number) {
  SCRATCH.setFloat32(0, number);
  const bits = SCRATCH.getUint32(0);
  if (Number.isNaN(number)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) / 0x10000) & 0xffff;
}

function fromBfloat16(bits) {
  SCRATCH.setUint32(0, bits * 0x10000);
  return SCRATCH.getFloat32(0);
}
