// The inputs of the page: one for each field of a signature, and how their text becomes a request.

import { RuntimeInputError } from "./errors.js";

const EXAMPLE_ROWS = 64;

/**
 * Adds a labelled input for each field of the signature, for each size that no field has, and for
 * the seed where the loop draws noise.
 *
 * @param {Element} form where they go.
 * @param {object} manifest of the bundle.
 * @param {?object} example the stored request, shown to begin with.
 * @returns {() => {request: object, seed: ?bigint}} reads them; throws RuntimeInputError.
 */
export function makeFields(form, { signature, loop }, example) {
  const readers = signature.inputs.map((item) => {
    const input = addInput(
      form,
      item.name,
      hint(item),
      firstText(item, example),
      item.shape.length > 1,
    );
    return [item.name, () => fieldValue(item, input.value)];
  });
  const bound = new Set(signature.inputs.flatMap((item) => item.shape));
  for (const [name, [low, high]] of Object.entries(signature.dimensions)) {
    if (bound.has(name)) continue;
    const input = addInput(form, name, `a size, ${low} to ${high}`, String(Math.max(1, low)));
    readers.push([name, () => Number(wholeNumber(name, input.value))]);
  }
  const seed =
    loop.noise.length > 0
      ? addInput(
          form,
          "seed",
          "the noise: the same seed gives the same result",
          String(example?.seed ?? 0),
        )
      : null;
  return () => ({
    request: Object.fromEntries(readers.map(([name, read]) => [name, read()])),
    seed: seed === null ? null : wholeNumber("seed", seed.value),
  });
}

function addInput(form, name, note, text, wide = false) {
  const label = document.createElement("label");
  const small = document.createElement("small");
  const input = document.createElement(wide ? "textarea" : "input");
  label.textContent = name;
  label.classList.toggle("wide", wide);
  small.textContent = note;
  Object.assign(input, { name, value: text, autocomplete: "off", spellcheck: false });
  label.append(small, input);
  form.append(label);
  return input;
}

function hint(item) {
  const kind =
    { int64: "whole numbers", int32: "whole numbers", bool: "0 or 1" }[item.dtype] ?? "numbers";
  const bounds = [item.low, item.at_most ?? item.high];
  const [low, high] = bounds.map((bound) => bound ?? null);
  let range = "";
  if (low !== null && high !== null) range = `, ${low} to ${high}`;
  else if (low !== null) range = `, at least ${low}`;
  else if (high !== null) range = `, at most ${high}`;
  const shape = item.shape.length > 1 ? `, a list [${item.shape.join(", ")}]` : "";
  const each = item.shape.length === 1 ? "; several with commas between" : "";
  return `${kind}${range}${shape}${each}`;
}

/** What a field shows to begin with: its default, the stored example, or its least value. */
function firstText(item, example) {
  const stored = example?.request[item.name];
  if (stored && (stored.shape.length < 2 || stored.shape[0] <= EXAMPLE_ROWS)) {
    return nested(stored.shape, Array.from(stored.data, String));
  }
  if (item.default !== null && item.default !== undefined) return String(item.default);
  const least = String(item.low ?? 0);
  return item.shape.length > 1
    ? "[".repeat(item.shape.length) + least + "]".repeat(item.shape.length)
    : least;
}

/** Elements as text: "1, 2" for one dimension, nested lists for more. */
function nested(shape, elements) {
  if (shape.length < 2) return elements.join(", ");
  const size = elements.length / shape[0];
  const lines = Array.from({ length: shape[0] }, (_, row) => {
    const inner = nested(shape.slice(1), elements.slice(row * size, (row + 1) * size));
    return shape.length === 2 ? `[${inner}]` : inner;
  });
  return `[${lines.join(",\n ")}]`;
}

function fieldValue(item, text) {
  if (item.shape.length < 2 && !text.includes("[")) {
    const parts = text.split(",").map((part) => number(item, part.trim()));
    return parts.length === 1 ? parts[0] : parts;
  }
  // Text, so that whole numbers keep all their digits.
  const quoted = text.replaceAll(/[^\s[\],]+/g, (part) => JSON.stringify(part));
  let lists;
  try {
    lists = JSON.parse(quoted);
  } catch (cause) {
    throw new RuntimeInputError(
      `${item.name}: found no list of numbers, expected one of shape ` +
        `[${item.shape.join(", ")}], such as [[1, 2]]`,
      { cause },
    );
  }
  const convert = (part) => (Array.isArray(part) ? part.map(convert) : number(item, part));
  return convert(lists);
}

function number(item, text) {
  if (item.dtype === "int64" || item.dtype === "int32") {
    const whole = wholeNumber(item.name, text);
    return item.dtype === "int64" ? whole : Number(whole);
  }
  const value = text === "" ? NaN : Number(text);
  if (Number.isNaN(value)) {
    throw new RuntimeInputError(`${item.name}: found '${text}', expected a number`);
  }
  return item.dtype === "bool" ? value !== 0 : value;
}

function wholeNumber(name, text) {
  if (!/^-?\d{1,20}$/.test(text.trim())) {
    throw new RuntimeInputError(`${name}: found '${text}', expected a whole number`);
  }
  return BigInt(text.trim());
}
