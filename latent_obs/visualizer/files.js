"use strict";
// What a person may open or drop: an image, or an encoder with its statistics and frames.

const MAX_IMAGE_BYTES = 32e6;
const MAX_MODEL_BYTES = 256e6;

/**
 * Read opened files.
 * @param {File[]} files
 * @returns {Promise<{model?: Uint8Array, name?: string, config?: object, sheet?: Uint8Array[],
 *   image?: {data: Uint8ClampedArray, width: number, height: number}}>}
 */
async function readFiles(files) {
  const find = (test) => files.find((file) => test(file.name.toLowerCase(), file.type));
  const model = find((name) => name.endsWith(".safetensors"));
  const config = find((name) => name.endsWith(".json"));
  const image = find((name, type) => type.startsWith("image/"));
  if (model) {
    return {
      model: new Uint8Array(await bytesOf(model, MAX_MODEL_BYTES)),
      name: model.name,
      config: config && parseConfig(new TextDecoder().decode(await bytesOf(config, 1e6))),
      sheet: image && cutSheet(await readImage(image)),
    };
  }
  if (!image) {
    throw new Error(config
      ? "A config.json needs the model.safetensors beside it: open both together."
      : "Open an image, or an encoder's model.safetensors.");
  }
  await bytesOf(image.slice(0, 1), 1); // a folder dropped here cannot be read
  if (image.size > MAX_IMAGE_BYTES) throw new Error(tooLarge(image, MAX_IMAGE_BYTES));
  return { name: image.name, image: await readImage(image) };
}

async function bytesOf(file, most) {
  if (file.size > most) throw new Error(tooLarge(file, most));
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error("The browser cannot read this file.");
  }
}

function tooLarge(file, most) {
  return `${brief(file.name)} has ${Math.round(file.size / 1e6)} MB, more than this page can take (${most / 1e6} MB).`;
}

/** Take from a config.json what the page uses, and check it; docs/formats.md says what it holds. */
function parseConfig(text) {
  let config;
  try {
    config = JSON.parse(text);
  } catch {
    throw new Error("config.json is not JSON.");
  }
  if (config?.format !== "latent_obs.encoder") throw new Error("config.json does not describe an encoder.");
  const { latents, frame_spec: spec, source, provenance, metrics } = config;
  const numbers = (list) => Array.isArray(list) && list.every(Number.isFinite);
  for (const name of ["mean", "std", "kl"]) {
    if (!numbers(latents?.[name])) throw new Error(`config.json: latents.${name} must be a list of numbers.`);
  }
  const crop = spec?.crop ?? null;
  const isCrop = numbers(crop) && crop.length === 4 && crop.every((n) => Number.isInteger(n) && n >= 0);
  if (crop !== null && !(isCrop && crop[0] < crop[1] && crop[2] < crop[3])) {
    throw new Error("config.json: frame_spec.crop must be null, or top, bottom, left and right in pixels.");
  }
  const environment = typeof source?.env_id === "string" ? source.env_id : "";
  return { latents, crop, environment, metrics };
}
