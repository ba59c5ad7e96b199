"use strict";
// Strips of thumbnails and statistics, computed beside the page so that its sliders never stutter.
// The page starts this file as a worker, behind safetensors.js and engine.js.

let network;

const jobs = {
  /** Take the encoder that the other jobs use. */
  load({ model }) {
    network = new Network(readSafetensors(model));
  },

  /** Decode latents; `change` tells where the images differ. */
  strip({ latents }) {
    const images = latents.map((latent) => network.decode(latent));
    const change = new Uint8Array(SIDE * SIDE);
    for (let i = 0; i < change.length * 4; i++) {
      if (i % 4 === 3) continue; // the opacity
      let [low, high] = [255, 0];
      for (const image of images) {
        low = Math.min(low, image[i]);
        high = Math.max(high, image[i]);
      }
      change[i >> 2] = Math.max(change[i >> 2], high - low);
    }
    return { images, change };
  },

  /** Mean and standard deviation of the latents of `frames`, and mean KL; of an encoder not in use yet. */
  statistics({ model, frames }) {
    const other = new Network(readSafetensors(model));
    const latents = frames.map((frame) => other.encode(frame));
    const mean = average(latents);
    const std = average(latents.map((latent) => latent.map((z, d) => (z - mean[d]) ** 2))).map(Math.sqrt);
    // Without the log-variance KL is not known; this is the part of it that orders dimensions.
    const kls = frames.map((frame) => other.divergence(frame) ?? other.encode(frame).map((z) => (z * z) / 2));
    return { mean, std, kl: average(kls) };
  },
};

function average(rows) {
  return Array.from(rows[0], (_, d) => rows.reduce((sum, row) => sum + row[d], 0) / rows.length);
}

onmessage = ({ data: { id, job, ...given } }) => {
  try {
    postMessage({ id, result: jobs[job](given) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
