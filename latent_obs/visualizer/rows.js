"use strict";
// The rows of the sliders: what an axis does, strip of thumbnails, slider and number.

const STOPS = [-3, -2, -1, 0, 1, 2, 3]; // thumbnails of a strip, in standard deviations
const FAINT = 32; // levels: weaker changes than this are drawn weaker
const OPEN = 8; // rows in sight at first
const ZOOMED = 0.25; // a strip shows what changes by more than this share of the largest change
const SMALLEST = 16; // pixels of a frame that a strip shows at least, each way
const SETTLED = 150; // ms without a change before strips are decoded again

class Rows {
  /**
   * @param {Assistant} assistant decodes the strips
   * @param {{open: Element, more?: HTMLDetailsElement, folded?: HTMLDetailsElement}} places lists to fill: the first
   *   rows, those that follow, and those of axes that change nothing
   * @param {(latent: Float32Array) => void} onInput called when a person moves an axis
   */
  constructor(assistant, places, onInput) {
    this.assistant = assistant;
    this.places = places;
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
    this.latent = null;
    this.observer.disconnect();
  }

  /** Make the rows of axes, in their order. */
  build(axes) {
    this.rows = axes.map((axis) => this.makeRow(axis));
    const seen = this.rows.filter(({ axis }) => axis.visible);
    const unseen = this.rows.filter(({ axis }) => !axis.visible);
    const { open, more, folded } = this.places;
    open.replaceChildren(...seen.slice(0, OPEN).map(({ element }) => element));
    const unmoved = unseen.some(({ axis }) => axis.active);
    if (more) fill(more, seen.slice(OPEN), (count) => `${count} more`);
    if (folded) {
      fill(folded, unseen, (count, dimensions) => (unmoved
        ? `${count} ${dimensions} ${count === 1 ? "that changes" : "that change"} nothing visible`
        : `${count} inactive ${dimensions}`));
    }
    for (const { element } of this.rows) this.observer.observe(element);
  }

  makeRow(axis) {
    const element = document.getElementById("row-template").content.firstElementChild.cloneNode(true);
    const find = (selector) => element.querySelector(selector);
    const { name, title, note, share, kl } = axis;
    const row = { axis, dim: axis.dim, element, active: axis.active, visible: false, drawn: null };
    row.slider = find("input[type=range]");
    row.number = find("input[type=number]");
    row.change = find(".change");
    if (axis.dim !== undefined) element.dataset.dim = axis.dim;
    find(".dim").textContent = title;
    find(".note").textContent = note;
    if (kl !== undefined) {
      find(".kl").textContent = kl.toFixed(2);
      find(".kl").setAttribute("aria-label", `mean KL ${kl.toFixed(2)} nats`);
    }
    find(".bar span").style.inlineSize = `${100 * share}%`;
    find(".strip").setAttribute("aria-label", `${name} in steps`);
    row.change.setAttribute("aria-label", `Where ${name} changes the output`);
    row.slider.setAttribute("aria-label", title === name ? name : `${name}: ${title}`);
    row.number.setAttribute("aria-label", `Value of ${name}`);
    row.describe = axis.describe ?? describe;
    row.stops = axis.tiles ?? STOPS;
    if (axis.step) row.slider.step = axis.step;
    row.tiles = row.stops.map((stop) => {
      const button = document.createElement("button");
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = SIDE;
      canvas.className = "pixels";
      button.type = "button";
      button.tabIndex = -1; // the slider below does the same with the keyboard
      button.setAttribute("aria-label", `${name} at ${row.describe(stop)}`);
      button.append(canvas);
      button.addEventListener("click", () => this.onInput(axis.move(this.latent, stop)));
      find(".strip").append(button);
      return { button, canvas, stop };
    });
    row.slider.addEventListener("input", () => this.onInput(axis.move(this.latent, Number(row.slider.value))));
    row.number.addEventListener("change", () => {
      const value = row.number.valueAsNumber;
      if (Number.isFinite(value) && Math.abs(value) < 1e4) this.onInput(axis.set(this.latent, value));
      else this.show(this.latent);
    });
    return row;
  }

  /** Move the sliders and numbers to a latent; the strips follow once it rests. */
  show(latent) {
    this.latent = latent;
    for (const row of this.rows) {
      const offset = row.axis.read(latent);
      const text = row.axis.value(latent);
      if (row.number.value !== text && row.number !== document.activeElement) row.number.value = text;
      if (row.offset === offset) continue;
      row.offset = offset;
      row.number.value = text;
      if (Math.abs(Number(row.slider.value) - offset) > 0.025) row.slider.value = offset;
      row.slider.setAttribute("aria-valuetext", `${text}, ${row.describe(offset)}`);
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
  isStale({ axis, drawn }) {
    if (!this.latent) return false;
    const wanted = axis.move(this.latent, 0);
    return !(drawn && drawn.every((value, d) => Math.abs(value - wanted[d]) < 1e-4));
  }

  async draw(row) {
    const { rows } = this;
    row.drawn = row.axis.move(this.latent, 0);
    const latents = row.stops.map((stop) => row.axis.move(row.drawn, stop));
    const { images, change } = await this.assistant.ask("strip", { latents });
    if (rows !== this.rows) return; // of another encoder by now
    const region = (row.region = changedRegion(change));
    row.tiles.forEach(({ canvas }, i) => paint(canvas, images[i], region));
    paint(row.change, changePicture(images[images.length >> 1], change, region));
    row.change.setAttribute("aria-label", `Where ${row.axis.name} changes the output: ${place(change)}`);
  }
}

/** Fill a list that is folded; `text` makes its summary. */
function fill(details, rows, text) {
  details.querySelector("ol").replaceChildren(...rows.map(({ element }) => element));
  details.querySelector("summary").textContent = text(rows.length, rows.length === 1 ? "dimension" : "dimensions");
  details.hidden = !rows.length;
  details.open = false;
}

/** The square around what changes most, with a margin; the whole frame where changes are all over it. */
function changedRegion(change) {
  const most = change.reduce((a, b) => Math.max(a, b), FAINT);
  let [top, bottom, left, right] = [SIDE, -1, SIDE, -1];
  change.forEach((value, pixel) => {
    if (value < ZOOMED * most) return;
    const [x, y] = [pixel % SIDE, Math.floor(pixel / SIDE)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    [left, right] = [Math.min(left, x), Math.max(right, x)];
  });
  const side = Math.max(bottom - top, right - left) + 5;
  if (bottom < 0 || side > 0.75 * SIDE) return { left: 0, top: 0, side: SIDE };
  const size = Math.max(side, SMALLEST);
  const begin = (low, high) => Math.max(0, Math.min(SIDE - size, Math.round((low + high + 1 - size) / 2)));
  return { left: begin(left, right), top: begin(top, bottom), side: size };
}

/** A number of standard deviations, in words. */
function describe(offset) {
  if (Math.abs(offset) < 0.005) return "the mean";
  return `${offset > 0 ? "+" : "−"}${+Math.abs(offset).toFixed(2)} standard deviations`;
}

/** The image in dark grey, and on it in amber where it changes; a frame shows what the strip zooms into. */
function changePicture(image, change, { left, top, side }) {
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
  for (let i = 0; side < SIDE && i < side; i++) {
    for (const [x, y] of [[i, 0], [i, side - 1], [0, i], [side - 1, i]]) {
      rgba.set([140, 170, 255], ((top + y) * SIDE + left + x) * 4);
    }
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
