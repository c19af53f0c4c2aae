// Fetches a bundle: every file is checked against the manifest before anything uses it.

import {
  BundleError,
  CorruptBundle,
  IntegrityError,
  ResourceError,
  UnsafeBundle,
  VersionError,
} from "./errors.js";
import { checkLoop, loopCalls } from "./loop.js";
import { readTensors } from "./safetensors.js";
import { hexDigest } from "./sha256.js";

const FORMAT = "optimize-bundle";
const FORMAT_MAJOR = 1;
const FEATURES = ["ragged_results", "step_ranges", "uniform_noise"];
const MANIFEST_FILE = "manifest.json";
const MAX_MANIFEST_BYTES = 4 * 2 ** 20;
const WEIGHTS_NAME = "weights.safetensors";
const WEIGHTS_FILE = `graphs/${WEIGHTS_NAME}`;
const TABLES_FILE = "tables.safetensors";

/**
 * A verified bundle.
 *
 * @param {string|URL} url the folder, absolute or relative to the page.
 * @param {object} options
 * @param {typeof fetch} [options.fetch] what fetches.
 * @param {(bytes: number, of: number) => void} [options.progress] called while files arrive.
 * @returns manifest, models (role → Uint8Array), weights (`{path, data}`), tables (name → array)
 *   and `read`, which fetches and checks another file: null where the manifest names none such.
 */
export async function openBundle(url, { fetch = globalThis.fetch, progress } = {}) {
  const folder = folderUrl(url);
  const get = (name) => fetched(fetch, folder, name);
  const manifest = parseManifest(
    await readAll(await get(MANIFEST_FILE), MANIFEST_FILE, MAX_MANIFEST_BYTES),
  );
  const roles = [...new Set(loopCalls(manifest.loop.body).map((call) => call.graph))];
  const names = [TABLES_FILE, WEIGHTS_FILE, ...roles.map((role) => manifest.graphs[role].file)];
  const total = names.reduce((size, name) => size + manifest.files[name].size, 0);
  let done = 0;
  const arrived = (count) => progress?.((done += count), total);
  const content = new Map();
  for (const name of names) {
    content.set(name, await verified(await get(name), name, manifest.files[name], arrived));
  }
  return {
    manifest,
    models: new Map(roles.map((role) => [role, content.get(manifest.graphs[role].file)])),
    weights: { path: WEIGHTS_NAME, data: content.get(WEIGHTS_FILE) },
    tables: readTensors(content.get(TABLES_FILE), TABLES_FILE),
    read: async (name) =>
      Object.hasOwn(manifest.files, name)
        ? verified(await get(name), name, manifest.files[name], () => {})
        : null,
  };
}

function folderUrl(url) {
  const base = globalThis.location?.href;
  const folder = new URL(url, base);
  if (!folder.pathname.endsWith("/")) folder.pathname += "/";
  return folder;
}

async function fetched(fetch, folder, name) {
  const url = new URL(name.split("/").map(encodeURIComponent).join("/"), folder);
  let response;
  try {
    response = await fetch(url);
  } catch (cause) {
    throw new ResourceError(`${name}: cannot be fetched: ${cause.message}`, { cause });
  }
  if (response.status === 404 && name === MANIFEST_FILE) {
    throw new BundleError(
      `${folder}: found no ${MANIFEST_FILE}, so this is not a bundle; give the address of the ` +
        "folder that `export` wrote",
    );
  }
  if (response.status === 404) {
    throw new IntegrityError(`${name}: the file is missing; copy the whole bundle again`);
  }
  if (!response.ok) {
    throw new ResourceError(`${name}: found status ${response.status}, expected 200`);
  }
  return response;
}

/** The body of a response of at most `limit` bytes. */
async function readAll(response, name, limit) {
  const data = new Uint8Array(await response.arrayBuffer());
  if (data.length > limit) {
    throw new CorruptBundle(`${name}: found more than ${limit} bytes`);
  }
  return data;
}

/** The body of a response, once its size and hash are those of the manifest. */
async function verified(response, name, entry, arrived) {
  const data = allocated(entry.size, name);
  let size = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (size + part.value.length > entry.size) {
      await reader.cancel();
      throw differs(name, `more than ${entry.size} bytes`, `${entry.size}`);
    }
    data.set(part.value, size);
    size += part.value.length;
    arrived(part.value.length);
  }
  if (size !== entry.size) throw differs(name, `${size} bytes`, `${entry.size}`);
  const digest = await hexDigest(data);
  if (digest !== entry.sha256) throw differs(name, `sha256 ${digest}`, entry.sha256);
  return data;
}

function allocated(size, name) {
  try {
    return new Uint8Array(size);
  } catch (cause) {
    throw new ResourceError(`${name}: ${size} bytes do not fit in memory`, { cause });
  }
}

function differs(name, found, expected) {
  return new IntegrityError(
    `${name}: found ${found}, expected ${expected} as the manifest says; copy the bundle again`,
  );
}

/**
 * Reads a manifest: our part of it, once it is known to be one that this runtime can run.
 *
 * @param {Uint8Array} raw the bytes of manifest.json.
 */
export function parseManifest(raw) {
  let data;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(raw);
    data = JSON.parse(text)?.additional_metadata?.optimize;
  } catch (cause) {
    throw new CorruptBundle(
      `${MANIFEST_FILE}: found ${cause.message}, expected strict JSON; export it again`,
      { cause },
    );
  }
  checkVersion(data);
  const missing = list(data, "required_features").filter((name) => !FEATURES.includes(name));
  if (missing.length > 0) {
    throw new VersionError(
      `${MANIFEST_FILE}: needs ${missing.sort().join(", ")}, which the browser runtime does not ` +
        "have; install a newer version",
    );
  }
  const { files = {}, graphs = {}, loop, signature } = data;
  list(signature, "inputs");
  list(signature, "outputs");
  checkFiles(files);
  for (const name of [TABLES_FILE, WEIGHTS_FILE, ...Object.values(graphs).map((g) => g.file)]) {
    if (!Object.hasOwn(files, name)) {
      throw new CorruptBundle(`${MANIFEST_FILE}: \`files\` lacks ${name}; export the bundle again`);
    }
  }
  checkLoop(loop, graphs, signature);
  return data;
}

function list(data, name) {
  if (!Array.isArray(data?.[name])) {
    throw new CorruptBundle(`${MANIFEST_FILE}: found no list \`${name}\`; export the bundle again`);
  }
  return data[name];
}

function checkVersion(data) {
  if (data?.format !== FORMAT) {
    throw new CorruptBundle(`${MANIFEST_FILE}: found no field format='${FORMAT}'; not a bundle`);
  }
  const version = /^(\d{1,6})\.\d{1,6}$/.exec(data.format_version);
  if (version === null) {
    throw new CorruptBundle(
      `${MANIFEST_FILE}: found format_version ${data.format_version}; export the bundle again`,
    );
  }
  if (Number(version[1]) !== FORMAT_MAJOR) {
    throw new VersionError(
      `${MANIFEST_FILE}: found format version ${data.format_version}, ` +
        `expected ${FORMAT_MAJOR}.x; ` +
        (Number(version[1]) > FORMAT_MAJOR ? "install a newer version" : "export the bundle again"),
    );
  }
}

function checkFiles(files) {
  for (const [path, entry] of Object.entries(files)) {
    const parts = path.split("/");
    if (parts.some((part) => ["", ".", ".."].includes(part)) || /[\\:*?"<>|\x00-\x1f]/.test(path)) {
      throw new UnsafeBundle(
        `found path '${path.slice(0, 100)}', expected a plain path inside the bundle`,
      );
    }
    const whole = Number.isSafeInteger(entry?.size) && entry.size >= 0;
    if (!whole || !/^[0-9a-f]{64}$/.test(entry.sha256)) {
      throw new CorruptBundle(`${MANIFEST_FILE}: found no size and hash of ${path}`);
    }
  }
}
