"use strict";
// Reading a safetensors file: https://huggingface.co/docs/safetensors
//
// Nothing in a file is trusted: whatever is wrong with it becomes an Error whose message is fit to be
// shown. Its names are only compared and shown as text.

const MAX_HEADER_BYTES = 1e6; // ours take 2 kB

/** For every type of number read here, its size and how to turn bytes into Float32Array. */
const NUMBER_TYPES = {
  F64: { bytes: 8, read: (bytes) => Float32Array.from(new Float64Array(bytes)) },
  F32: { bytes: 4, read: (bytes) => new Float32Array(bytes) },
  BF16: { bytes: 2, read: (bytes) => bfloat16ToFloat(new Uint16Array(bytes)) },
  F16: {
    bytes: 2,
    read: (bytes) => globalThis.Float16Array // in browsers since 2025, and faster
      ? new Float32Array(new Float16Array(bytes))
      : float16ToFloat(new Uint16Array(bytes)),
  },
};

/**
 * Read a safetensors file.
 * @param {Uint8Array} file
 * @returns {Map<string, {shape: number[], data: Float32Array}>} its tensors by name
 */
function readSafetensors(file) {
  if (file.length < 8) throw new Error("The file is too short to be a safetensors file.");
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const headerBytes = Number(view.getBigUint64(0, true));
  if (headerBytes > Math.min(MAX_HEADER_BYTES, file.length - 8)) {
    throw new Error("This is no safetensors file, or it is cut short: its header does not fit into it.");
  }
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file.subarray(8, 8 + headerBytes)));
  } catch {
    throw new Error("This is no safetensors file: its header is not JSON.");
  }
  if (header === null || typeof header !== "object" || Array.isArray(header)) {
    throw new Error("This is no safetensors file: its header is not an object.");
  }
  const tensors = new Map();
  const body = file.subarray(8 + headerBytes);
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors.set(name, readTensor(name, entry, body));
  }
  return tensors;
}

function readTensor(name, entry, body) {
  const type = Object.hasOwn(NUMBER_TYPES, entry?.dtype) ? NUMBER_TYPES[entry.dtype] : null;
  if (!type) throw new Error(`The tensor ${brief(name)} is not floating point.`);
  const { shape, data_offsets: offsets } = entry;
  const isSize = (n) => Number.isSafeInteger(n) && n >= 0;
  if (!Array.isArray(shape) || !shape.every(isSize) || !Array.isArray(offsets) || !offsets.every(isSize)) {
    throw new Error(`The tensor ${brief(name)} has no valid shape or place.`);
  }
  const [begin, end] = offsets;
  const count = shape.reduce((product, n) => product * n, 1);
  if (offsets.length !== 2 || end - begin !== count * type.bytes || end > body.length) {
    throw new Error(`The tensor ${brief(name)} lies outside the file, or its size does not fit its shape.`);
  }
  const data = type.read(body.slice(begin, end).buffer); // a copy, because typed arrays need alignment
  for (let i = 0; i < count; i++) {
    if (!Number.isFinite(data[i])) throw new Error(`The tensor ${brief(name)} holds values that are not finite.`);
  }
  return { shape, data };
}

/** Turn IEEE half precision into single precision, by a table of all 65,536 values. */
function float16ToFloat(halves) {
  float16ToFloat.table ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = (bits & 1023) / 1024;
    if (exponent === 0) return sign * fraction * 2 ** -14;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction) * 2 ** (exponent - 15);
  });
  const { table } = float16ToFloat;
  const floats = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) floats[i] = table[halves[i]];
  return floats;
}

function bfloat16ToFloat(halves) {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}

/** A name from a file, at a length that fits into a message. */
function brief(name) {
  return name.length > 40 ? `${name.slice(0, 40)}…` : name;
}
