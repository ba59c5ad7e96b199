"use strict";
// What a person may open or drop: an image, or an encoder with its statistics and frames.

const MAX_IMAGE_BYTES = 32e6;
const MAX_MODEL_BYTES = 256e6;

/**
 * Read opened files.
 * @param {File[]} files
 * @returns {Promise<{model?: Uint8Array, name?: string, config?: object, labels?: object, sheet?: Uint8Array[],
 *   image?: {data: Uint8ClampedArray, width: number, height: number}}>}
 */
async function readFiles(files) {
  const find = (test) => files.find((file) => test(file.name.toLowerCase(), file.type));
  const model = find((name) => name.endsWith(".safetensors"));
  const labels = find((name) => name.endsWith("labels.json"));
  const config = find((name) => name.endsWith("config.json"))
    ?? find((name) => name.endsWith(".json") && !name.endsWith("labels.json") && !name.endsWith("reports.json"));
  const image = find((name, type) => type.startsWith("image/"));
  // A whole encoder folder has card.png and others beside it.
  const sheet = find((name) => name.endsWith("calibration.png")) ?? image;
  if (model) {
    return {
      model: new Uint8Array(await bytesOf(model, MAX_MODEL_BYTES)),
      name: model.name,
      config: config && parseConfig(new TextDecoder().decode(await bytesOf(config, 1e6))),
      labels: labels && parseLabels(new TextDecoder().decode(await bytesOf(labels, 1e6))),
      sheet: sheet && cutSheet(await readImage(sheet)),
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
  const name = typeof provenance?.recipe === "string" && provenance.recipe;
  return { latents, crop, environment, metrics, ...(name ? { name: brief(name) } : {}) };
}

/** Take from a labels.json what the page uses, and check it; docs/formats.md says what it holds. */
function parseLabels(text) {
  let labels;
  try {
    labels = JSON.parse(text);
  } catch {
    throw new Error("labels.json is not JSON.");
  }
  const numbers = (list, length) => Array.isArray(list) && list.length === length && list.every(Number.isFinite);
  const { mean, dimensions, walks = [], directions, whitening, distances } = labels ?? {};
  const size = mean?.length;
  const right = labels?.format === "latent_obs.labels" && typeof labels.source === "string"
    && numbers(mean, size) && numbers(distances, 3)
    && Array.isArray(whitening) && whitening.length === size && whitening.every((row) => numbers(row, size))
    && Array.isArray(dimensions) && dimensions.length === size && dimensions.every(isLabel)
    && Array.isArray(walks) && walks.every((walk) => isWalk(walk, size))
    && Array.isArray(directions) && directions.every((one) => typeof one?.name === "string"
      && Number.isFinite(one.r2) && Number.isFinite(one.follows) && numbers(one.reads, size) && numbers(one.moves, size));
  if (!right) throw new Error("labels.json does not describe the dimensions of an encoder.");
  return { ...labels, walks };
}

function isLabel(label) {
  return Number.isFinite(label?.change) && Number.isFinite(label.exclusive) && Array.isArray(label.explained)
    && label.explained.every((one) => typeof one?.name === "string" && Number.isFinite(one.r2));
}

function isWalk(walk, size) {
  const numbers = (list, length) => Array.isArray(list) && list.length === length && list.every(Number.isFinite);
  const count = walk?.values?.length;
  return typeof walk?.name === "string" && count > 1 && numbers(walk.values, count) && Number.isFinite(walk.drawn)
    && Array.isArray(walk.latents) && walk.latents.length === count && walk.latents.every((row) => numbers(row, size))
    && Array.isArray(walk.along) && walk.along.every((name) => typeof name === "string");
}
