// Counter-based random numbers, the same as optimize/runtime/philox.py makes.
//
// Philox4x64-10 (Salmon et al., 2011) keyed by (seed, slot) with the counter (block, 0, step,
// sample). A 64-bit word is a pair of 32-bit halves, low first: BigInt arithmetic takes two to
// three times as long. Uniform numbers are bit for bit those of Python; normal numbers may differ
// in the last digits, because browsers round logarithm and cosine differently.

import { sha256 } from "./sha256.js";

export const MAX_SEED = 2n ** 64n - 1n;

const ROUNDS = 10;
const MULTIPLIER_0 = [0xe14c6c93 >>> 0, 0xd2e7470e >>> 0];
const MULTIPLIER_1 = [0x95121157 >>> 0, 0xca5a8263 >>> 0];
const WEYL_0 = [0x7f4a7c15 >>> 0, 0x9e3779b9 >>> 0];
const WEYL_1 = [0x84caa73b >>> 0, 0xbb67ae85 >>> 0];

/** The key of a named noise slot: two 32-bit halves of the first eight bytes of its SHA-256. */
export async function slotKey(slot) {
  const digest = await sha256(new TextEncoder().encode(slot));
  const view = new DataView(digest.buffer);
  return [view.getUint32(0, true), view.getUint32(4, true)];
}

/** Halves, low first, of a whole number in [0, 2**64), given as a BigInt or a number. */
function halves(value) {
  const big = BigInt(value);
  return [Number(big & 0xffffffffn), Number(big >> 32n)];
}

/** The upper 32 bits of a product of two 32-bit numbers. */
function highProduct(a, b) {
  // Each partial product has at most 48 bits, so doubles hold it exactly.
  const low = (a & 0xffff) * b;
  const high = (a >>> 16) * b;
  return Math.floor((high + Math.floor(low / 0x10000)) / 0x10000);
}

/** Writes the 128-bit product of two 64-bit numbers to out[0..3], low 32 bits first. */
function product(a0, a1, b0, b1, out) {
  const cross0 = Math.imul(a0, b1) >>> 0;
  const cross1 = Math.imul(a1, b0) >>> 0;
  const top = Math.imul(a1, b1) >>> 0;
  out[0] = Math.imul(a0, b0) >>> 0;
  const second = highProduct(a0, b0) + cross0 + cross1;
  out[1] = second >>> 0;
  const carry = Math.floor(second / 0x100000000);
  const third = highProduct(a0, b1) + highProduct(a1, b0) + top + carry;
  out[2] = third >>> 0;
  out[3] = highProduct(a1, b1) + Math.floor(third / 0x100000000);
}

/** The round keys of (seed, slot): key 0 and key 1 of each round, low half first. */
function schedule(seed, key) {
  const keys = new Uint32Array(4 * ROUNDS);
  let [a0, a1] = halves(seed);
  let [b0, b1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    keys.set([a0, a1, b0, b1], 4 * round);
    a1 = (a1 + WEYL_0[1] + (a0 + WEYL_0[0] > 0xffffffff ? 1 : 0)) >>> 0;
    a0 = (a0 + WEYL_0[0]) >>> 0;
    b1 = (b1 + WEYL_1[1] + (b0 + WEYL_1[0] > 0xffffffff ? 1 : 0)) >>> 0;
    b0 = (b0 + WEYL_1[0]) >>> 0;
  }
  return keys;
}

/**
 * Draws float64 numbers in (0, 1), 53 bits each.
 *
 * @param {bigint|number} seed in [0, 2**64).
 * @param {number[]} key what `slotKey` made of the slot's name.
 * @param {number} step loop step, >= 0.
 * @param {number} sample index in the batch, >= 0.
 * @param {number} count how many numbers.
 * @returns {Float64Array} [count]
 */
export function uniform(seed, key, step, sample, count) {
  const numbers = new Float64Array(count);
  const keys = schedule(seed, key);
  const [step0, step1] = halves(step);
  const [sample0, sample1] = halves(sample);
  const first = new Uint32Array(4);
  const second = new Uint32Array(4);
  // Blocks count from 1: numpy adds one to the counter before it makes the first block.
  for (let block = 1, at = 0; at < count; block++, at += 4) {
    let [w0, w1, w2, w3] = [block >>> 0, Math.floor(block / 0x100000000), 0, 0];
    let [w4, w5, w6, w7] = [step0, step1, sample0, sample1];
    for (let round = 0; round < ROUNDS; round++) {
      product(w0, w1, MULTIPLIER_0[0], MULTIPLIER_0[1], first);
      product(w4, w5, MULTIPLIER_1[0], MULTIPLIER_1[1], second);
      w0 = (second[2] ^ w2 ^ keys[4 * round]) >>> 0;
      w1 = (second[3] ^ w3 ^ keys[4 * round + 1]) >>> 0;
      w4 = (first[2] ^ w6 ^ keys[4 * round + 2]) >>> 0;
      w5 = (first[3] ^ w7 ^ keys[4 * round + 3]) >>> 0;
      w2 = second[0];
      w3 = second[1];
      w6 = first[0];
      w7 = first[1];
    }
    numbers[at] = unit(w0, w1);
    if (at + 1 < count) numbers[at + 1] = unit(w2, w3);
    if (at + 2 < count) numbers[at + 2] = unit(w4, w5);
    if (at + 3 < count) numbers[at + 3] = unit(w6, w7);
  }
  return numbers;
}

/** The upper 53 of 64 bits as a number in (0, 1). */
function unit(low, high) {
  return (high * 0x200000 + (low >>> 11) + 0.5) * 2 ** -53;
}

/** Draws float64 standard normal numbers [count]; pairs share one Box-Muller transform. */
export function normal(seed, key, step, sample, count) {
  const half = Math.floor((count + 1) / 2);
  const numbers = uniform(seed, key, step, sample, 2 * half);
  const drawn = new Float64Array(count);
  for (let index = 0; index < half; index++) {
    const radius = Math.sqrt(-2.0 * Math.log(numbers[index]));
    const angle = 2.0 * Math.PI * numbers[half + index];
    drawn[index] = radius * Math.cos(angle);
    if (half + index < count) drawn[half + index] = radius * Math.sin(angle);
  }
  return drawn;
}

export const DRAWS = { normal, uniform };

/** Draws float64 numbers of `shape`, flat; the first dimension is the sample index. */
export function batch(seed, key, step, shape, distribution = "normal") {
  const count = shape.slice(1).reduce((size, dimension) => size * dimension, 1);
  const numbers = new Float64Array(shape[0] * count);
  for (let sample = 0; sample < shape[0]; sample++) {
    numbers.set(DRAWS[distribution](seed, key, step, sample, count), sample * count);
  }
  return numbers;
}
