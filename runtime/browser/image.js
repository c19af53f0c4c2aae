// Pictures from results: floats to the bytes of a canvas, rounded as optimize/runtime/image.py.

import { RuntimeInputError } from "./errors.js";

/** Whether an array is a batch of pictures: floats [B, C, H, W] with 1, 3 or 4 channels. */
export function isPictures({ dtype, shape }) {
  return dtype.startsWith("float") && shape.length === 4 && [1, 3, 4].includes(shape[1]);
}

/**
 * One picture of a batch as red, green, blue and opacity of each pixel.
 *
 * @param {object} array floats [B, C, H, W] in [-1, 1]; values outside are clipped.
 * @param {number} index which one.
 * @returns {Uint8ClampedArray} [H * W * 4]
 * @throws {RuntimeInputError} values that are not finite.
 */
export function toPixels({ shape, data }, index) {
  const [, channels, height, width] = shape;
  const area = height * width;
  const picture = data.subarray(index * channels * area, (index + 1) * channels * area);
  if (!picture.every(Number.isFinite)) {
    throw new RuntimeInputError("image: found NaN or infinite values, expected finite ones");
  }
  // Storing into a clamped array rounds to nearest, ties to even.
  const pixels = new Uint8ClampedArray(area * 4);
  for (let pixel = 0; pixel < area; pixel++) {
    for (let channel = 0; channel < 4; channel++) {
      const source = channels === 1 ? 0 : channel;
      const opaque = channel === 3 && channels < 4;
      pixels[4 * pixel + channel] = opaque ? 255 : ((picture[source * area + pixel] + 1) / 2) * 255;
    }
  }
  return pixels;
}
