// The page: loads the bundle beside it in a worker, asks for a request, and shows the results.

import { makeFields } from "./fields.js";
import { isPictures, toPixels } from "./image.js";

const BUNDLE = new URL("./bundle/", import.meta.url).href;
const SMALLEST_SIDE = 144;
const SHOWN_ELEMENTS = 400;

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let read = null;
let example = null;
let comparing = false;
let asked = {};

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("failure").textContent = text;
  at("failure").hidden = text === "";
}

function busy(running) {
  at("run").disabled = running;
  at("check").disabled = running;
  at("stop").hidden = !running;
}

function ask(request, seed, compare) {
  comparing = compare;
  asked = request;
  fail("");
  busy(true);
  say("Starting");
  at("progress").value = 0;
  worker.postMessage({ kind: "run", request, seed });
}

function loaded({ manifest, example: stored, engine }) {
  example = stored;
  read = makeFields(at("fields"), manifest, example);
  const threads = engine.threads === 1 ? "one thread" : `${engine.threads} threads`;
  const reason = globalThis.crossOriginIsolated ? "" : " (the page is not cross-origin isolated)";
  at("title").textContent = "This bundle runs in your browser";
  at("engine").textContent =
    `Makes ${purpose(manifest)}. ` +
    "Everything is computed on this machine; nothing is sent anywhere. " +
    `Engine: onnxruntime-web ${engine.version}, WebAssembly, ${threads}${reason}.`;
  at("check").hidden = example === null;
  at("request").hidden = false;
  at("progress").value = 0;
  showFacts(manifest);
  say("Ready");
}

/** What is made from what: "latent from class_labels and noise". */
function purpose({ signature, loop }) {
  const from = signature.inputs.map((item) => item.name);
  if (loop.noise.length > 0) from.push("noise");
  const list = new Intl.ListFormat("en");
  return `${list.format(signature.outputs)} from ${list.format(from)}`;
}

function showFacts(manifest) {
  const bytes = Object.values(manifest.files).reduce((sum, file) => sum + file.size, 0);
  const facts = {
    "written by": `${manifest.generator.name} ${manifest.generator.version}`,
    recipe: manifest.recipe?.name ?? "none",
    graphs: Object.keys(manifest.graphs).join(", "),
    size: `${(bytes / 1e6).toFixed(1)} MB, every file checked by SHA-256`,
  };
  if (manifest.prompting) facts.prompts = "not in the browser; give the numbers of the tokens";
  for (const [name, text] of Object.entries(facts)) {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, description.textContent] = [name, text];
    at("facts").append(term, description);
  }
  at("about").hidden = false;
}

function finished({ results, seconds }) {
  busy(false);
  at("results").replaceChildren(
    ...Object.entries(results).map(([name, array]) => shown(name, array)),
  );
  const [first] = Object.values(results);
  const count = first?.shape[0] ?? 1;
  const what = first && isPictures(first) ? "image" : "sample";
  const each = count > 1 ? `, ${(seconds / count).toFixed(2)} s for each` : "";
  let text = `${count} ${what}${count === 1 ? "" : "s"} in ${seconds.toFixed(2)} s${each}`;
  if (comparing) text += `; ${difference(results)}`;
  at("progress").value = 1;
  say(text);
}

/** How far the results are from those that PyTorch gave when the bundle was written. */
function difference(results) {
  const found = Object.entries(example.results).map(([name, stored]) => {
    const made = results[name];
    if (made?.shape.join() !== stored.shape.join()) return `${name}: another shape than PyTorch's`;
    const most = stored.data.reduce(
      (largest, value, index) =>
        Math.max(largest, Math.abs(Number(value) - Number(made.data[index]))),
      0,
    );
    const distance = most === 0 ? "equal to" : `at most ${most.toExponential(1)} from`;
    return `${name}: ${distance} PyTorch's`;
  });
  return found.join("; ");
}

function shown(name, array) {
  const section = document.createElement("section");
  const heading = document.createElement("h2");
  const kind = document.createElement("small");
  heading.textContent = name;
  kind.textContent = ` ${array.dtype} [${array.shape.join(", ")}]`;
  heading.append(kind);
  section.append(heading, isPictures(array) ? pictures(array) : numbers(array));
  return section;
}

function pictures(array) {
  const [count, , height, width] = array.shape;
  const scale = Math.max(1, Math.ceil(SMALLEST_SIDE / Math.min(height, width)));
  const list = document.createElement("div");
  list.className = "pictures";
  for (let index = 0; index < count; index++) {
    const [figure, canvas, caption] = ["figure", "canvas", "figcaption"].map((kind) =>
      document.createElement(kind),
    );
    Object.assign(canvas, { width, height });
    canvas.style.width = `${width * scale}px`;
    const pixels = new ImageData(toPixels(array, index), width, height);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    caption.textContent = captionOf(index, count);
    figure.append(canvas, caption);
    list.append(figure);
  }
  return list;
}

/** What was asked of one sample, as far as that is one number a field; else which it is. */
function captionOf(index, count) {
  const lists = Object.entries(asked).map(([name, value]) => [name, value.data ?? value]);
  const own = lists.filter(([, list]) => list.length === count && !Array.isArray(list[0]));
  return own.map(([name, list]) => `${name} ${list[index]}`).join(", ") || `sample ${index}`;
}

/** One line for each sample, the long ones cut. */
function numbers({ shape, data }) {
  const block = document.createElement("pre");
  const count = shape.length > 0 ? shape[0] : 1;
  const size = data.length / Math.max(1, count);
  const lines = Array.from({ length: count }, (_, sample) => {
    const elements = data.subarray(sample * size, sample * size + Math.min(size, SHOWN_ELEMENTS));
    const text = Array.from(elements, (value) =>
      Number.isInteger(value) || typeof value === "bigint" ? String(value) : value.toPrecision(5),
    );
    return text.join(" ") + (size > SHOWN_ELEMENTS ? ` … ${size - SHOWN_ELEMENTS} more` : "");
  });
  block.textContent = lines.join("\n");
  return block;
}

const MESSAGES = {
  loaded,
  results: finished,
  fetched({ bytes, of }) {
    at("progress").value = bytes / of;
    say(`Fetching files: ${(bytes / 1e6).toFixed(1)} of ${(of / 1e6).toFixed(1)} MB`);
  },
  step({ done, of }) {
    at("progress").value = done / of;
    say(`Step ${done} of ${of}`);
  },
  failed({ task, stopped, text, code }) {
    if (task === "load") at("title").textContent = "This bundle cannot be used";
    else busy(false);
    at("progress").value = 0;
    say(stopped ? "Stopped" : "");
    if (!stopped) fail(`${text} (${code})`);
  },
};

worker.onmessage = ({ data }) => MESSAGES[data.kind](data);
worker.onerror = (event) => {
  event.preventDefault();
  MESSAGES.failed({
    task: "load",
    text: event.message ?? "worker.js cannot be loaded",
    code: "internal",
  });
};

at("request").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    const { request, seed } = read();
    ask(request, seed, false);
  } catch (error) {
    fail(error.message);
  }
});
at("check").addEventListener("click", () => ask(storedRequest(), example.seed, true));
at("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));

/** The stored request as a session takes it: numbers for arrays without dimensions. */
function storedRequest() {
  return Object.fromEntries(
    Object.entries(example.request).map(([name, array]) => [
      name,
      array.shape.length === 0 ? array.data[0] : array,
    ]),
  );
}

worker.postMessage({ kind: "load", url: BUNDLE });
