// Reads a safetensors file from verified bytes; as strict as optimize/runtime/tensors.py.

import { STORAGE, sizeOf } from "./arrays.js";
import { CorruptBundle, UnsafeBundle } from "./errors.js";

const MAX_HEADER_BYTES = 8 * 2 ** 20;
const MAX_TENSORS = 20_000;
const MAX_RANK = 16;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,499}$/;

const DTYPES = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I64: "int64",
  I32: "int32",
  I16: "int16",
  I8: "int8",
  U8: "uint8",
  BOOL: "bool",
};

/**
 * The tensors of a file.
 *
 * @param {Uint8Array} data the whole file.
 * @param {string} file its name, for messages.
 * @returns {Map<string, {dtype, shape, data}>} arrays with memory of their own.
 */
export function readTensors(data, file) {
  const [header, start] = readHeader(data, file);
  const names = Object.keys(header);
  if (names.length > MAX_TENSORS) {
    throw new UnsafeBundle(
      `${file}: found ${names.length} tensors, expected at most ${MAX_TENSORS}`,
    );
  }
  const tensors = new Map();
  const spans = [];
  for (const name of names) {
    const { dtype, shape, begin, end } = checkedEntry(name, header[name], file);
    if (end - begin !== sizeOf(shape) * STORAGE[dtype].BYTES_PER_ELEMENT) {
      throw new CorruptBundle(
        `${file}: found ${end - begin} bytes for tensor '${name}', expected ${dtype} [${shape}]`,
      );
    }
    if (start + end > data.length) {
      throw new CorruptBundle(`${file}: found tensor '${name}' ending after the file`);
    }
    spans.push([begin, end]);
    // Copied, because a view must begin at a multiple of its item size.
    const bytes = data.slice(start + begin, start + end);
    tensors.set(name, { dtype, shape, data: new STORAGE[dtype](bytes.buffer) });
  }
  checkTiling(spans, data.length - start, file);
  return tensors;
}

function readHeader(data, file) {
  if (data.length < 8) {
    throw new CorruptBundle(
      `${file}: found ${data.length} bytes, expected a safetensors header; export it again`,
    );
  }
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const length = view.getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new UnsafeBundle(
      `${file}: found a header of ${length} bytes, expected at most ${MAX_HEADER_BYTES}`,
    );
  }
  const start = 8 + Number(length);
  if (start > data.length) {
    throw new CorruptBundle(
      `${file}: found a header of ${length} bytes that ends after the file; export it again`,
    );
  }
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(8, start)));
  } catch (cause) {
    throw new CorruptBundle(`${file}: found a header that is no JSON; export it again`, { cause });
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    throw new CorruptBundle(`${file}: found a header that is no object; export it again`);
  }
  delete header.__metadata__;
  return [header, start];
}

function checkedEntry(name, entry, file) {
  if (!NAME.test(name) || name.includes("..") || name.includes("//")) {
    throw new UnsafeBundle(
      `${file}: found tensor name '${name.slice(0, 100)}', expected a plain name`,
    );
  }
  const offsets = entry?.data_offsets;
  if (!Object.hasOwn(DTYPES, entry?.dtype)) {
    throw new CorruptBundle(
      `${file}: found dtype ${entry?.dtype} for tensor '${name}', expected one of ` +
        Object.keys(DTYPES).join(", "),
    );
  }
  if (
    !naturals(entry.shape) ||
    entry.shape.length > MAX_RANK ||
    !naturals(offsets) ||
    offsets.length !== 2 ||
    offsets[0] > offsets[1]
  ) {
    throw new CorruptBundle(`${file}: found a malformed shape or place for tensor '${name}'`);
  }
  return { dtype: DTYPES[entry.dtype], shape: entry.shape, begin: offsets[0], end: offsets[1] };
}

function naturals(numbers) {
  return Array.isArray(numbers) && numbers.every((n) => Number.isSafeInteger(n) && n >= 0);
}

/** No hole, no overlap, no trailing byte: nothing can hide in the file. */
function checkTiling(spans, size, file) {
  let position = 0;
  for (const [begin, end] of spans.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (begin !== position) {
      throw new CorruptBundle(
        `${file}: found a hole or an overlap at byte ${position} of the data`,
      );
    }
    position = end;
  }
  if (position !== size) {
    throw new CorruptBundle(
      `${file}: found ${size - position} bytes that belong to no tensor; export it again`,
    );
  }
}
