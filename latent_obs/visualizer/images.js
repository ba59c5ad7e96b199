"use strict";
// Frames: 64 x 64 x 3 levels of red, green and blue, made from any image as frames.py makes them.

const FRAME_BYTES = SIDE * SIDE * 3;
const MAX_PIXELS = 32e6;

/**
 * Turn an image into a frame: crop, then cv2's INTER_AREA. An image of 64 x 64 is a frame already.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA
 * @param {number[] | null} crop top, bottom, left, right in pixels, as in the frame spec
 * @returns {Uint8Array}
 */
function toFrame({ data, width, height }, crop) {
  let [top, bottom, left, right] = [0, height, 0, width];
  if (crop && !(width === SIDE && height === SIDE)) {
    if (crop[1] > height || crop[3] > width) {
      throw new Error(`The encoder crops its frames from images of at least ${crop[3]} x ${crop[1]} pixels, ` +
        `but this image has ${width} x ${height}.`);
    }
    [top, bottom, left, right] = crop;
  }
  const enlarged = right - left < SIDE || bottom - top < SIDE;
  const across = axis(right - left, enlarged);
  const down = axis(bottom - top, enlarged);
  const frame = new Uint8Array(FRAME_BYTES);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      let [red, green, blue] = [0, 0, 0];
      for (const [row, weight] of down[y]) {
        for (const [column, share] of across[x]) {
          const at = ((top + row) * width + left + column) * 4;
          red += weight * share * data[at];
          green += weight * share * data[at + 1];
          blue += weight * share * data[at + 2];
        }
      }
      frame.set([Math.round(red), Math.round(green), Math.round(blue)], (y * SIDE + x) * 3);
    }
  }
  return frame;
}

/**
 * For each of 64 output pixels along one axis, the input pixels it reads and their weights.
 *
 * An output pixel is the mean of the input under it, border pixels counted by the part that is covered.
 * Where an image is enlarged cv2 does something else: two neighbours are blended where a border of an
 * input pixel lies inside the output pixel.
 */
function axis(size, enlarged) {
  const scale = size / SIDE;
  return Array.from({ length: SIDE }, (_, i) => {
    if (enlarged) {
      const first = Math.floor(i * scale + 1e-9);
      const share = Math.max(i + 1 - (first + 1) / scale, 0) % 1;
      const next = Math.min(first + 1, size - 1);
      return share > 0 ? [[first, 1 - share], [next, share]] : [[first, 1]];
    }
    const [begin, end] = [i * scale, (i + 1) * scale];
    const taps = [];
    for (let at = Math.floor(begin + 1e-9); at < Math.min(end - 1e-9, size); at++) {
      taps.push([at, (Math.min(at + 1, end) - Math.max(at, begin)) / scale]);
    }
    return taps;
  });
}

/** Decode an image file to RGBA pixels. */
async function readImage(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("The browser cannot read this image.");
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS) {
      throw new Error(`The image has ${width} x ${height} pixels, more than this page can take (32 million).`);
    }
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, width, height);
  } finally {
    bitmap.close();
  }
}

/** The 64 frames of an encoder folder's calibration.png, a sheet of 8 x 8 tiles. */
function cutSheet({ data, width, height }) {
  if (width !== 8 * SIDE || height !== 8 * SIDE) {
    throw new Error(`calibration.png must have 512 x 512 pixels, got ${width} x ${height}.`);
  }
  return Array.from({ length: 64 }, (_, tile) => {
    const frame = new Uint8Array(FRAME_BYTES);
    for (let y = 0, to = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++, to += 3) {
        const at = (((tile >> 3) * SIDE + y) * width + (tile & 7) * SIDE + x) * 4;
        frame.set(data.subarray(at, at + 3), to);
      }
    }
    return frame;
  });
}

/** Frame to RGBA, as a canvas takes it. */
function toRgba(frame) {
  const rgba = new Uint8ClampedArray(SIDE * SIDE * 4).fill(255);
  for (let from = 0, to = 0; from < FRAME_BYTES; from += 3, to += 4) {
    rgba[to] = frame[from];
    rgba[to + 1] = frame[from + 1];
    rgba[to + 2] = frame[from + 2];
  }
  return rgba;
}

/** Peak signal-to-noise ratio of an RGBA image to a frame, in dB. */
function psnr(frame, rgba) {
  let error = 0;
  for (let from = 0, to = 0; from < FRAME_BYTES; from += 3, to += 4) {
    for (let c = 0; c < 3; c++) error += (frame[from + c] - rgba[to + c]) ** 2;
  }
  return 10 * Math.log10((255 ** 2 * FRAME_BYTES) / error);
}

/** Draw RGBA pixels of one frame on a canvas: all of them, or a square region. */
function paint(canvas, rgba, { left, top, side } = { left: 0, top: 0, side: SIDE }) {
  if (canvas.width !== side) canvas.width = canvas.height = side;
  // Such a canvas stays in the memory of the CPU, where the pixels come from.
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.putImageData(new ImageData(rgba, SIDE, SIDE), -left, -top, left, top, side, side);
}
