"use strict";
// The rows of the dimensions: KL bar, strip of thumbnails, slider and number.

const STOPS = [-3, -2, -1, 0, 1, 2, 3]; // thumbnails of a strip, in standard deviations
const FAINT = 32; // levels: weaker changes than this are drawn weaker
const SETTLED = 150; // ms without a change before strips are decoded again

class Rows {
  /**
   * @param {Assistant} assistant decodes the strips
   * @param {(dim: number, value: number) => void} onInput called when a person moves a dimension
   */
  constructor(assistant, onInput) {
    this.assistant = assistant;
    this.onInput = onInput;
    this.rows = [];
    this.timer = 0;
    this.busy = false;
    this.moving = false;
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const row = this.rows.find(({ element }) => element === target);
        if (row) row.visible = isIntersecting;
      }
      this.refresh();
    }, { rootMargin: "200px" });
  }

  /** Forget the rows of the encoder before. */
  clear() {
    this.rows = [];
    this.encoder = null;
    this.observer.disconnect();
  }

  /** Make the rows of an encoder, sorted by mean KL. */
  build(encoder) {
    this.encoder = encoder;
    const { mean, kl } = encoder.latents;
    const dims = Array.from(mean.keys()).sort((a, b) => kl[b] - kl[a]);
    this.rows = dims.map((dim) => this.makeRow(dim, kl[dims[0]]));
    const inactive = this.rows.filter(({ active }) => !active);
    const fold = document.getElementById("inactive");
    document.getElementById("active").replaceChildren(
      ...this.rows.filter(({ active }) => active).map(({ element }) => element));
    fold.querySelector("ol").replaceChildren(...inactive.map(({ element }) => element));
    fold.querySelector("summary").textContent =
      `${inactive.length} inactive ${inactive.length === 1 ? "dimension" : "dimensions"}`;
    fold.hidden = !inactive.length;
    fold.open = false;
    for (const { element } of this.rows) this.observer.observe(element);
  }

  makeRow(dim, largest) {
    const element = document.getElementById("row-template").content.firstElementChild.cloneNode(true);
    const find = (selector) => element.querySelector(selector);
    const name = `z${dim}`;
    const { center, spread, active } = this.encoder.range(dim);
    const kl = this.encoder.latents.kl[dim];
    const row = { dim, element, active, visible: false, drawn: null };
    row.slider = find("input[type=range]");
    row.number = find("input[type=number]");
    row.change = find(".change");
    element.dataset.dim = dim;
    find(".dim").textContent = name;
    find(".kl").textContent = kl.toFixed(2);
    find(".kl").setAttribute("aria-label", `mean KL ${kl.toFixed(2)} nats`);
    find(".bar span").style.inlineSize = `${100 * Math.min(Math.max(kl / largest, 0), 1) || 0}%`;
    find(".strip").setAttribute("aria-label", `${name} in steps`);
    row.change.setAttribute("aria-label", `Where ${name} changes the output`);
    row.slider.setAttribute("aria-label", name);
    row.number.setAttribute("aria-label", `Value of ${name}`);
    row.tiles = STOPS.map((stop) => {
      const button = document.createElement("button");
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = SIDE;
      canvas.className = "pixels";
      button.type = "button";
      button.tabIndex = -1; // the slider below does the same with the keyboard
      button.setAttribute("aria-label", `${name} at ${describe(stop)}`);
      button.append(canvas);
      button.addEventListener("click", () => this.onInput(dim, center + stop * spread));
      find(".strip").append(button);
      return { button, canvas, stop };
    });
    row.slider.addEventListener("input", () => this.onInput(dim, center + Number(row.slider.value) * spread));
    row.number.addEventListener("change", () => {
      const value = row.number.valueAsNumber;
      if (Number.isFinite(value) && Math.abs(value) < 1e4) this.onInput(dim, value);
      else this.show(this.latent);
    });
    return row;
  }

  /** Move the sliders and numbers to a latent; the strips follow once it rests. */
  show(latent) {
    this.latent = latent;
    for (const row of this.rows) {
      const value = latent[row.dim];
      const { center, spread } = this.encoder.range(row.dim);
      const offset = (value - center) / spread;
      const text = value.toFixed(2);
      if (row.number.value !== text && row.number !== document.activeElement) row.number.value = text;
      if (row.offset === offset) continue;
      row.offset = offset;
      row.number.value = text;
      if (Math.abs(Number(row.slider.value) - offset) > 0.025) row.slider.value = offset;
      row.slider.setAttribute("aria-valuetext", `${text}, ${describe(offset)}`);
      for (const { button, stop } of row.tiles) {
        button.classList.toggle("near", Math.abs(offset - stop) < 0.5);
      }
    }
    this.moving = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.moving = false;
      this.refresh();
    }, SETTLED);
  }

  /** Decode the strips that can be seen and are out of date, one after another. */
  async refresh() {
    if (this.busy) return;
    this.busy = true;
    try {
      while (!this.moving) {
        const row = this.rows.find((each) => each.visible && this.isStale(each));
        if (!row) break;
        await this.draw(row);
      }
    } finally {
      this.busy = false;
    }
  }

  /** A row's strip does not depend on the row's own slider. */
  isStale({ dim, drawn }) {
    return this.latent && !(drawn && drawn.every((value, d) => d === dim || value === this.latent[d]));
  }

  async draw(row) {
    const { encoder } = this;
    const { center, spread } = encoder.range(row.dim);
    row.drawn = this.latent.slice();
    const values = STOPS.map((stop) => center + stop * spread);
    const given = { latent: row.drawn, dim: row.dim, values };
    const { images, change } = await this.assistant.ask("strip", given);
    if (encoder !== this.encoder) return;
    row.tiles.forEach(({ canvas }, i) => paint(canvas, images[i]));
    paint(row.change, changePicture(images[STOPS.indexOf(0)], change));
    row.change.setAttribute("aria-label", `Where z${row.dim} changes the output: ${place(change)}`);
  }
}

/** A number of standard deviations, in words. */
function describe(offset) {
  if (Math.abs(offset) < 0.005) return "the mean";
  return `${offset > 0 ? "+" : "−"}${+Math.abs(offset).toFixed(2)} standard deviations`;
}

/** The image in dark grey, and on it in amber where it changes. */
function changePicture(image, change) {
  const rgba = new Uint8ClampedArray(image.length);
  const most = change.reduce((a, b) => Math.max(a, b), FAINT);
  for (let pixel = 0; pixel < change.length; pixel++) {
    const at = pixel * 4;
    const grey = 24 + 0.22 * (0.3 * image[at] + 0.6 * image[at + 1] + 0.1 * image[at + 2]);
    const heat = change[pixel] / most;
    rgba[at] = grey + heat * (255 - grey);
    rgba[at + 1] = grey + heat * (176 - grey);
    rgba[at + 2] = grey + heat * (40 - grey);
    rgba[at + 3] = 255;
  }
  return rgba;
}

/** Where in the image the changes are, in words, for those who cannot see them. */
function place(change) {
  let [total, across, down] = [0, 0, 0];
  change.forEach((value, pixel) => {
    total += value;
    across += value * (pixel % SIDE);
    down += value * Math.floor(pixel / SIDE);
  });
  if (total < change.length / 16) return "hardly anywhere";
  const third = (sum, names) => names[Math.min(Math.floor((3 * sum) / total / SIDE), 2)];
  const words = `${third(down, ["upper", "", "lower"])} ${third(across, ["left", "", "right"])}`.trim();
  return words ? `around the ${words}` : "around the middle";
}
