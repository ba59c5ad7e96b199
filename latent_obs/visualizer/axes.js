"use strict";
// What a slider can move: one dimension of the latent, a direction through it, or a walk along real frames. All are
// axes with positions from -3 to 3: standard deviations of the data, or the way from a walk's first stop to its last.

// A dimension follows a variable that explains at least this share of it, and is ahead of the second variable by at
// least this share of its own.
const [FOLLOWS, EXCLUSIVE] = [0.5, 0.25];
const VISIBLE = 16; // levels: a dimension that changes no pixel by this many changes nothing that one sees

/**
 * @typedef {object} Axis
 * @property {string} name such as "z3", or the variable that a direction moves
 * @property {string} title what a person reads first
 * @property {string} note what is known of it
 * @property {number} share length of its bar, 0 to 1
 * @property {boolean} active whether it varies over the data
 * @property {boolean} visible whether one sees it move
 * @property {(latent: Float32Array) => number} read its position in standard deviations
 * @property {(latent: Float32Array, position: number) => Float32Array} move a latent moved there
 * @property {(latent: Float32Array) => string} value the number shown beside the slider
 * @property {(latent: Float32Array, value: number) => Float32Array} set the latent for such a number
 * @property {number} [dim] of a dimension
 * @property {number[]} [tiles] positions of the strip's thumbnails, where not those of standard deviations
 * @property {number} [step] between two positions of the slider
 * @property {(position: number) => string} [describe] a position in words
 */

/** The axes of an encoder's dimensions: first those that follow one variable, then by how much of them one explains. */
function dimensionAxes({ latents, labels }, range) {
  const { mean, kl } = latents;
  const most = Math.max(...kl);
  const best = (dim) => labels?.dimensions[dim].explained[0]?.r2 ?? 0;
  const clear = (dim) => Number(labels ? follows(labels.dimensions[dim]) : false);
  const dims = Array.from(mean.keys()).sort((a, b) => clear(b) - clear(a) || best(b) - best(a) || kl[b] - kl[a]);
  return dims.map((dim) => {
    const { active, center, spread } = range(dim);
    const label = labels?.dimensions[dim];
    const visible = active && (!label || label.change >= VISIBLE);
    return {
      dim, active, visible,
      name: `z${dim}`,
      kl: kl[dim],
      title: label ? titleOf(label, visible) : `z${dim}`,
      note: label ? noteOf(label, dim) : "",
      share: label ? best(dim) : Math.min(Math.max(kl[dim] / most, 0), 1) || 0,
      read: (latent) => (latent[dim] - center) / spread,
      move: (latent, position) => changed(latent, dim, center + position * spread),
      value: (latent) => latent[dim].toFixed(2),
      set: (latent, value) => changed(latent, dim, value),
    };
  });
}

function changed(latent, dim, value) {
  const moved = latent.slice();
  moved[dim] = value;
  return moved;
}

/** Whether one variable explains most of a dimension, and clearly more than any other. */
function follows({ explained, exclusive }) {
  return explained.length > 0 && explained[0].r2 >= FOLLOWS && exclusive >= EXCLUSIVE;
}

/** A dimension in a few words: its variable, or that it is a part of what moves it, or that it mixes several. */
function titleOf(label, visible) {
  const { explained, exclusive } = label;
  if (!visible) return "nothing visible";
  if (follows(label)) return explained[0].name;
  if (!explained.length) return "unknown";
  if (exclusive >= EXCLUSIVE) return `partly ${explained[0].name}`;
  return `mixed: ${explained.slice(0, 2).map(({ name }) => name).join(", ")}`;
}

function noteOf(label, dim) {
  const { explained, exclusive } = label;
  if (follows(label)) {
    return `z${dim}, R² ${explained[0].r2.toFixed(2)}, exclusive ${Math.round(100 * exclusive)}%`;
  }
  const parts = explained.slice(0, 2).map(({ name, r2 }) => `${name} ${r2.toFixed(2)}`);
  return [`z${dim}`, ...(parts.length ? [`R²: ${parts.join(", ")}`] : [])].join(", ");
}

/** The axes of an encoder's walks: a slider stands at the stop whose latent is nearest, and jumps between stops. */
function walkAxes({ labels, latents }) {
  return (labels?.walks ?? []).map(({ name, values, latents: stops, drawn, along }) => {
    const last = values.length - 1;
    const codes = stops.map((stop) => Float32Array.from(stop));
    const nearest = (costs) => costs.indexOf(Math.min(...costs));
    const at = (latent) => nearest(codes.map((code) => code.reduce(
      (sum, value, d) => sum + ((value - latent[d]) / (latents.std[d] || 1)) ** 2, 0)));
    const stopOf = (position) => Math.max(0, Math.min(last, Math.round(((position + 3) / 6) * last)));
    const positionOf = (stop) => (6 * stop) / last - 3;
    const shown = (stop) => String(Number(values[stop].toPrecision(3)));
    const company = along.length ? `; ${along.join(" and ")} ${along.length > 1 ? "go" : "goes"} along` : "";
    return {
      name, active: true, visible: true,
      title: name,
      note: `${values.length} real frames, ${Math.round(100 * drawn)}% drawn${company}`,
      share: drawn,
      step: 6 / last,
      tiles: Array.from({ length: Math.min(7, last + 1) }, (_, i) => positionOf(Math.round((i * last) / Math.min(6, last)))),
      read: (latent) => positionOf(at(latent)),
      move: (_, position) => codes[stopOf(position)].slice(),
      value: (latent) => shown(at(latent)),
      set: (_, value) => codes[nearest(values.map((each) => Math.abs(each - value)))].slice(),
      describe: (position) => `frame ${stopOf(position) + 1} of ${last + 1}`,
    };
  });
}

/** The axes of an encoder's directions. */
function directionAxes({ labels }) {
  return (labels?.directions ?? []).map(({ name, r2, reads, moves, follows: kept }) => {
    const read = (latent) => reads.reduce((sum, weight, d) => sum + weight * (latent[d] - labels.mean[d]), 0);
    const move = (latent, position) => {
      const way = position - read(latent);
      return latent.map((value, d) => value + way * moves[d]);
    };
    const followed = Math.max(0, Math.min(kept, 1));
    return {
      name, active: true, visible: true, read, move,
      title: name,
      note: `${Math.round(100 * r2)}% of the latents' variance, the picture follows ${Math.round(100 * followed)}%`,
      share: followed,
      value: (latent) => read(latent).toFixed(2),
      set: move,
    };
  });
}

/** Whether fewer than half of the dimensions that one sees move follow one variable. */
function isMixed({ labels }, axes) {
  const visible = axes.filter((axis) => axis.visible);
  return Boolean(labels) && visible.filter(({ dim }) => follows(labels.dimensions[dim])).length < visible.length / 2;
}

/** What a person should know before moving the dimensions, in words. */
function describeLabels({ labels }, axes) {
  if (!labels) return "";
  const visible = axes.filter((axis) => axis.visible);
  const single = visible.filter(({ dim }) => follows(labels.dimensions[dim]));
  const count = `Of ${visible.length} dimensions that change the picture, ${single.length || "none"} ` +
    `${single.length > 1 ? "follow" : "follows"} one variable`;
  const mixed = isMixed({ labels }, axes)
    ? " This encoder mixes what it sees: one slider changes several things at once, and that is how it works." +
      (labels.walks.length ? " The walks move one thing at a time." : "")
    : "";
  return `${count}, measured on ${labels.source}.${mixed} R² is the share of a dimension that its variable ` +
    "explains; it is exclusive as far as no other variable explains it.";
}

/**
 * How far a latent is from the data: the Mahalanobis distance, beside that of the data's own frames.
 * @returns {{share: number, text: string} | null} share 0 at the mean, 1 where no frame is
 */
function distanceFromData(labels, latent) {
  if (!labels) return null;
  const { whitening, mean, distances: [middle, most, all] } = labels;
  const offsets = latent.map((value, d) => value - mean[d]);
  const distance = Math.hypot(...whitening.map((row) => row.reduce((sum, w, d) => sum + w * offsets[d], 0)));
  const text = distance <= most ? "like the data"
    : distance <= all ? "rarer than 19 of 20 frames"
      : "unlike the data: what it shows may mean nothing";
  return { share: Math.min(distance / (1.25 * all), 1), typical: middle / (1.25 * all), distance, text };
}
