// SHA-256 by the browser's own code.

import { ResourceError } from "./errors.js";

/** The 32 bytes of the digest of `bytes`. */
export async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) {
    throw new ResourceError(
      "page: found no crypto.subtle, expected a secure context; serve it from https:// or " +
        "http://localhost",
    );
  }
  return new Uint8Array(await subtle.digest("SHA-256", bytes));
}

/** The digest as 64 hexadecimal digits. */
export async function hexDigest(bytes) {
  const digest = await sha256(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
