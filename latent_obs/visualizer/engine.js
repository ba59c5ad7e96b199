"use strict";
// The VAE in plain JavaScript: frames to latents and latents to images, the numbers of vae.py in float32.
//
// All activations are stored as (row, column, channel) with a border of one zero pixel. Then both kinds
// of layer are the same loop over contiguous numbers: an output pixel is the product of a few runs of its
// input with as many runs of weights. The encoder's convolution (4x4, stride 2, padding 1) has four runs
// of four pixels; the decoder's transposed one has, for each of the four places of an output pixel in a
// 2x2 block, two runs of two pixels.
//
// This file and safetensors.js also run in a worker, so they touch no document.

const SIDE = 64; // pixels of a frame
const MAX_LAYERS = 6;
const MAX_WIDTH = 2048; // channels or latent dimensions of an encoder that is opened here

/** The even number of channels in which a layer's output is stored: channels are computed in pairs. */
const even = (channels) => channels + (channels % 2);

/** The two networks of a VAE. */
class Network {
  /**
   * @param {Map<string, {shape: number[], data: Float32Array}>} tensors content of model.safetensors;
   *   the log-variance may be missing
   */
  constructor(tensors) {
    const { latentDim, channels } = architecture(tensors);
    this.latentDim = latentDim;
    this.channels = channels;
    const weights = (name) => tensors.get(name)?.data;
    const widths = [3, ...channels];
    const depth = channels.length;
    const side = SIDE >> depth; // pixels of the features between convolutions and linear layers
    const width = channels[depth - 1];

    this.frame = image(SIDE, 3);
    this.down = channels.map((outputs, i) => ({
      weight: packConvolution(weights(`encoder.conv${i}.weight`), widths[i], outputs, i ? even(widths[i]) : 3),
      bias: padded(weights(`encoder.conv${i}.bias`), even(outputs)),
      output: image(SIDE >> (i + 1), even(outputs)),
    }));
    this.mean = packHead(weights("mean.weight"), weights("mean.bias"), width, side);
    if (tensors.has("log_variance.weight")) {
      this.logVariance = packHead(weights("log_variance.weight"), weights("log_variance.bias"), width, side);
    }

    this.linear = { weight: weights("decoder.linear.weight"), bias: weights("decoder.linear.bias") };
    this.features = image(side, even(width));
    this.featureChannels = width;
    this.up = channels.map((_, i) => {
      const [inputs, outputs] = [widths[depth - i], widths[depth - i - 1]];
      return {
        weights: packTransposed(weights(`decoder.conv${i}.weight`), inputs, outputs),
        bias: padded(weights(`decoder.conv${i}.bias`) ?? new Float32Array(0), even(outputs)),
        output: image(side << (i + 1), even(outputs)),
        rectify: i < depth - 1,
      };
    });
    this.outputBias = weights("output_bias");
  }

  /**
   * Encode one frame.
   * @param {Uint8Array} frame RGB, 64 x 64 x 3, values 0 to 255
   * @returns {Float32Array} the posterior mean, one number for each latent dimension
   */
  encode(frame) {
    return applyHead(this.mean, this.extract(frame));
  }

  /**
   * KL divergence of a frame's posterior from the standard normal, in nats per latent dimension.
   * @param {Uint8Array} frame as for encode
   * @returns {Float32Array | null} null for an encoder without log-variance
   */
  divergence(frame) {
    if (!this.logVariance) return null;
    const features = this.extract(frame);
    const logVariance = applyHead(this.logVariance, features);
    return applyHead(this.mean, features).map(
      (mean, i) => 0.5 * (mean * mean + Math.exp(logVariance[i]) - 1 - logVariance[i]),
    );
  }

  /** The encoder's convolutions. */
  extract(frame) {
    const { data, channels } = this.frame;
    for (let y = 0; y < SIDE; y++) {
      const row = ((y + 1) * (SIDE + 2) + 1) * channels;
      for (let i = 0; i < SIDE * 3; i++) data[row + i] = frame[y * SIDE * 3 + i] / 255;
    }
    let input = this.frame;
    for (const { weight, bias, output } of this.down) {
      convolve(input, weight, bias, output, { runs: 4, pixels: 4, stride: 2, rectify: true });
      input = output;
    }
    return input.data;
  }

  /**
   * Decode one latent.
   * @param {Float32Array} latent
   * @returns {Uint8ClampedArray} RGBA, 64 x 64 x 4, as a canvas takes it
   */
  decode(latent) {
    let input = this.project(latent);
    for (const { weights, bias, output, rectify } of this.up) {
      for (const [place, weight] of weights.entries()) {
        convolve(input, weight, bias, output, { runs: 2, pixels: 2, stride: 1, rectify, place });
      }
      input = output;
    }
    return this.toImage(input);
  }

  /** The decoder's linear layer: its features come in (channel, row, column) order. */
  project(latent) {
    const { data, side, channels } = this.features;
    const { weight, bias } = this.linear;
    const dims = this.latentDim;
    let feature = 0;
    for (let c = 0; c < this.featureChannels; c++) {
      for (let y = 1; y <= side; y++) {
        for (let x = 1; x <= side; x++, feature++) {
          let sum = bias[feature];
          for (let d = 0; d < dims; d++) sum += weight[feature * dims + d] * latent[d];
          data[(y * (side + 2) + x) * channels + c] = sum > 0 ? sum : 0;
        }
      }
    }
    return this.features;
  }

  /** Add the output bias (channel, row, column) to the logits and turn them into levels. */
  toImage({ data, channels }) {
    const rgba = new Uint8ClampedArray(SIDE * SIDE * 4); // it rounds, as to_frames in evaluate.py does
    const plane = SIDE * SIDE;
    for (let y = 0, pixel = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++, pixel++) {
        const at = ((y + 1) * (SIDE + 2) + x + 1) * channels;
        for (let c = 0; c < 3; c++) {
          rgba[pixel * 4 + c] = 255 / (1 + Math.exp(-data[at + c] - this.outputBias[c * plane + pixel]));
        }
        rgba[pixel * 4 + 3] = 255;
      }
    }
    return rgba;
  }
}

/**
 * One convolution, or one quarter of a transposed one: the output pixels at `place` of every 2x2 block.
 *
 * Four pixels and two channels are computed together, because they share what they read. In a row whose
 * length is no multiple of four the last pixel is computed again in place of those beyond it.
 */
function convolve(input, weight, bias, output, { runs, pixels, stride, rectify, place }) {
  const x = input.data;
  const y = output.data;
  const transposed = place !== undefined;
  const down = transposed ? place >> 1 : 0;
  const across = transposed ? place & 1 : 0;
  const step = transposed ? 2 : 1; // from one output pixel to the next
  const rows = output.side / step;
  const run = pixels * input.channels;
  const inRow = (input.side + 2) * input.channels;
  const outRow = (output.side + 2) * output.channels;
  const lowest = rectify ? 0 : -Infinity;
  const length = runs * run;

  for (let row = 0; row < rows; row++) {
    const inTop = (row * stride + down) * inRow;
    const outTop = (row * step + down + 1) * outRow;
    for (let column = 0; column < rows; column += 4) {
      const column1 = Math.min(column + 1, rows - 1);
      const column2 = Math.min(column + 2, rows - 1);
      const column3 = Math.min(column + 3, rows - 1);
      const from = inTop + (column * stride + across) * input.channels;
      const gap1 = (column1 - column) * stride * input.channels;
      const gap2 = (column2 - column) * stride * input.channels;
      const gap3 = (column3 - column) * stride * input.channels;
      for (let channel = 0; channel < output.channels; channel += 2) {
        let a0 = bias[channel], a1 = a0, a2 = a0, a3 = a0;
        let b0 = bias[channel + 1], b1 = b0, b2 = b0, b3 = b0;
        let k = channel * length;
        for (let r = 0; r < runs; r++) {
          let i = from + r * inRow;
          for (const end = i + run; i < end; i++, k++) {
            const a = weight[k], b = weight[k + length];
            const x0 = x[i], x1 = x[i + gap1], x2 = x[i + gap2], x3 = x[i + gap3];
            a0 += a * x0; a1 += a * x1; a2 += a * x2; a3 += a * x3;
            b0 += b * x0; b1 += b * x1; b2 += b * x2; b3 += b * x3;
          }
        }
        const to = outTop + (across + 1) * output.channels + channel;
        const to0 = to + column * step * output.channels;
        const to1 = to + column1 * step * output.channels;
        const to2 = to + column2 * step * output.channels;
        const to3 = to + column3 * step * output.channels;
        y[to0] = Math.max(a0, lowest); y[to0 + 1] = Math.max(b0, lowest);
        y[to1] = Math.max(a1, lowest); y[to1 + 1] = Math.max(b1, lowest);
        y[to2] = Math.max(a2, lowest); y[to2 + 1] = Math.max(b2, lowest);
        y[to3] = Math.max(a3, lowest); y[to3 + 1] = Math.max(b3, lowest);
      }
    }
  }
}

/** An activation: a square of pixels inside a border of zeros. */
function image(side, channels) {
  return { side, channels, data: new Float32Array((side + 2) * (side + 2) * channels) };
}

function padded(values, length) {
  const longer = new Float32Array(length);
  longer.set(values);
  return longer;
}

/** Weights (output, input, row, column) of a 4x4 convolution to (output, row, column, stored input). */
function packConvolution(weight, inputs, outputs, stored) {
  const packed = new Float32Array(even(outputs) * 16 * stored);
  for (let o = 0; o < outputs; o++) {
    for (let i = 0; i < inputs; i++) {
      for (let tap = 0; tap < 16; tap++) {
        packed[(o * 16 + tap) * stored + i] = weight[(o * inputs + i) * 16 + tap];
      }
    }
  }
  return packed;
}

/**
 * Weights (input, output, row, column) of a transposed 4x4 convolution to four 2x2 ones, (output, row,
 * column, input). Output pixel 2y + p reads input pixels y + p - 1 and y + p; kernel row 3 - p - 2t of
 * the transposed convolution joins it to the t-th of them.
 */
function packTransposed(weight, inputs, outputs) {
  const stored = even(inputs);
  return [0, 1, 2, 3].map((place) => {
    const packed = new Float32Array(even(outputs) * 4 * stored);
    for (let o = 0; o < outputs; o++) {
      for (let tap = 0; tap < 4; tap++) {
        const row = 3 - (place >> 1) - 2 * (tap >> 1);
        const column = 3 - (place & 1) - 2 * (tap & 1);
        for (let i = 0; i < inputs; i++) {
          packed[(o * 4 + tap) * stored + i] = weight[((i * outputs + o) * 4 + row) * 4 + column];
        }
      }
    }
    return packed;
  });
}

/** A linear layer on features in (channel, row, column) order, to read them as they are stored here. */
function packHead(weight, bias, channels, side) {
  const { data, channels: stored } = image(side, even(channels));
  const packed = new Float32Array(bias.length * data.length);
  let from = 0;
  for (let o = 0; o < bias.length; o++) {
    for (let c = 0; c < channels; c++) {
      for (let y = 1; y <= side; y++) {
        for (let x = 1; x <= side; x++, from++) {
          packed[o * data.length + (y * (side + 2) + x) * stored + c] = weight[from];
        }
      }
    }
  }
  return { weight: packed, bias };
}

function applyHead({ weight, bias }, features) {
  return bias.map((start, o) => {
    let sum = start;
    const row = o * features.length;
    for (let i = 0; i < features.length; i++) sum += weight[row + i] * features[i];
    return sum;
  });
}

/** Infer latent size and channels from the shapes of the tensors, and check that all fit together. */
function architecture(tensors) {
  const channels = [];
  while (channels.length < MAX_LAYERS && tensors.has(`encoder.conv${channels.length}.weight`)) {
    channels.push(tensors.get(`encoder.conv${channels.length}.weight`).shape[0]);
  }
  const latentDim = tensors.get("mean.bias")?.shape[0];
  const sizes = [latentDim, ...channels];
  if (!channels.length || !sizes.every((n) => n >= 1 && n <= MAX_WIDTH)) {
    throw new Error("This is not the model.safetensors of an encoder folder; docs/formats.md says what such a file holds.");
  }
  const side = SIDE >> channels.length;
  const features = channels.at(-1) * side * side;
  const widths = [3, ...channels];
  const wanted = {
    "mean.weight": [latentDim, features],
    "mean.bias": [latentDim],
    "decoder.linear.weight": [features, latentDim],
    "decoder.linear.bias": [features],
    output_bias: [3, SIDE, SIDE],
  };
  if (tensors.has("log_variance.weight")) {
    wanted["log_variance.weight"] = [latentDim, features];
    wanted["log_variance.bias"] = [latentDim];
  }
  for (let i = 0; i < channels.length; i++) {
    wanted[`encoder.conv${i}.weight`] = [widths[i + 1], widths[i], 4, 4];
    wanted[`encoder.conv${i}.bias`] = [widths[i + 1]];
    const [inputs, outputs] = widths.slice(0, widths.length - i).reverse();
    wanted[`decoder.conv${i}.weight`] = [inputs, outputs, 4, 4];
    if (outputs !== 3 || tensors.has(`decoder.conv${i}.bias`)) wanted[`decoder.conv${i}.bias`] = [outputs];
  }
  for (const [name, shape] of Object.entries(wanted)) {
    const found = tensors.get(name)?.shape;
    if (String(found) !== String(shape)) {
      throw new Error(`The tensor ${name} must have the shape (${shape.join(", ")}), got ${
        found ? `(${found.slice(0, 5).join(", ")})` : "none"}.`);
    }
  }
  return { latentDim, channels };
}
