"use strict";
// The page: what is shown, and what a person can do with it.

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const assistant = new Assistant();
const moved = (latent) => {
  stopPlaying();
  setLatent(latent);
};
const rows = new Rows(assistant, { open: $("active"), more: $("more"), folded: $("inactive") }, moved);
const walks = new Rows(assistant, { open: $("walks-list") }, moved);
const directions = new Rows(assistant, { open: $("directions-list"), more: $("more-directions") }, moved);

/** What is shown. A source is a frame with its latent and label; `index` is its place in the gallery. */
const view = { encoder: null, latent: null, source: null, ends: [null, null] };
const frames = { gallery: [], episode: [] };

/** An encoder with what is known of its latents. */
class LoadedEncoder {
  constructor({ name, model, latents, crop, environment, metrics, labels }) {
    Object.assign(this, { name, model, latents, crop, environment, metrics, labels });
    this.network = new Network(readSafetensors(model));
  }

  /** The range of a slider: center and one standard deviation. An inactive dimension has the prior's. */
  range(dim) {
    const std = this.latents.std[dim];
    const active = std * std > about.active_variance;
    return active ? { active, center: this.latents.mean[dim], spread: std } : { active, center: 0, spread: 1 };
  }
}

async function start() {
  const model = fromBase64($("model").textContent);
  const encoder = new LoadedEncoder({ ...about, model });
  const bytes = await inflate(fromBase64($("frames").textContent));
  const all = Array.from({ length: bytes.length / FRAME_BYTES },
    (_, i) => bytes.subarray(i * FRAME_BYTES, (i + 1) * FRAME_BYTES));
  frames.gallery = all.slice(0, about.gallery.count);
  frames.episode = all.slice(about.gallery.count);
  await useEncoder(encoder, "", restore);
  setFrames(frames.gallery, all.slice(about.gallery.count), about.gallery.from, about.episode.from);
  connect();
  document.body.ariaBusy = "false";
}

/** Wait until the browser has shown what was drawn. */
function shown() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

// --- What is shown ---

/** Show another encoder: first a frame as it reconstructs it, chosen by `showFrame`, then its rows. */
async function useEncoder(encoder, note, showFrame) {
  view.encoder = encoder;
  rows.clear();
  walks.clear();
  directions.clear();
  const { latentDim, channels } = encoder.network;
  const { kl, psnr: quality } = encoder.metrics ?? {};
  $("name").textContent = encoder.name;
  document.title = `${encoder.name}: latent visualizer`;
  $("summary").textContent = [
    encoder.environment,
    `${latentDim} latent dimensions`,
    `convolutions ${channels.join("-")}`,
    Number.isFinite(kl) && `${kl.toFixed(1)} nats/frame`,
    Number.isFinite(quality) && `${quality.toFixed(1)} dB`,
  ].filter(Boolean).join(" · ");
  $("statistics-note").textContent = note;
  showFrame();
  await shown();
  if (view.encoder !== encoder) return; // another one was opened since
  assistant.ask("load", { model: encoder.model });
  const axes = dimensionAxes(encoder, (dim) => encoder.range(dim));
  $("order-note").textContent = encoder.labels ? "Dimensions that follow one variable come first."
    : "The most informative dimension comes first.";
  $("labels-note").textContent = describeLabels(encoder, axes);
  rows.build(axes);
  rows.show(view.latent);
  walks.build(walkAxes(encoder));
  walks.show(view.latent);
  $("walks-panel").hidden = !encoder.labels?.walks.length;
  // What does what it says comes first.
  $("dimensions-panel")[isMixed(encoder, axes) ? "before" : "after"]($("walks-panel"));
  directions.build(directionAxes(encoder));
  directions.show(view.latent);
  $("directions-panel").hidden = !encoder.labels;
  view.ends = [frames.gallery[0], frames.gallery.at(-1)].map((frame) => encode(frame));
  drawEnds();
}

function encode(frame) {
  return { frame, latent: view.encoder.network.encode(frame) };
}

function setFrames(gallery, episodeFrames, galleryFrom, episodeFrom) {
  Object.assign(frames, { gallery, episode: episodeFrames });
  $("gallery-note").textContent = galleryFrom;
  $("episode-note").textContent = episodeFrom;
  $("gallery").replaceChildren(...gallery.map((frame, i) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    canvas.className = "pixels";
    paint(canvas, toRgba(frame));
    button.type = "button";
    button.setAttribute("aria-label", `Frame ${i + 1}`);
    button.append(canvas);
    button.setAttribute("aria-pressed", String(i === view.source?.index));
    button.addEventListener("click", () => {
      stopPlaying();
      setSource(frame, `frame ${i + 1}`, i);
    });
    item.append(button);
    return item;
  }));
  $("episode").max = episodeFrames.length - 1;
  $("episode").value = 0;
  $("episode-player").hidden = episodeFrames.length < 2;
  showPosition();
}

/** Encode a frame and show it: one of the gallery has its `index`, one of the episode its `position`. */
function setSource(frame, label, index = -1, position = -1) {
  view.source = { ...encode(frame), label, index, position };
  view.source.reconstruction = view.encoder.network.decode(view.source.latent);
  paint($("source"), toRgba(frame));
  paint($("reconstruction"), view.source.reconstruction);
  $("source-note").textContent = label;
  const quality = psnr(frame, view.source.reconstruction);
  $("reconstruction-note").textContent = Number.isFinite(quality) ? `${quality.toFixed(1)} dB` : "exact";
  $("gallery").querySelectorAll("button").forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === index));
  });
  showPosition();
  setLatent(view.source.latent);
}

/** Show a latent: the output is decoded once for every picture that the browser draws. */
function setLatent(latent) {
  view.latent = latent;
  scheduled ||= requestAnimationFrame(draw);
}

let scheduled = 0;
let saving = 0;

function draw() {
  scheduled = 0;
  const { latent, source, encoder } = view;
  const isSource = latent === source.latent;
  paint($("output"), isSource ? source.reconstruction : encoder.network.decode(latent));
  $("output-note").textContent = isSource ? "the reconstruction" : describeChange();
  rows.show(latent);
  walks.show(latent);
  directions.show(latent);
  showDistance();
  clearTimeout(saving);
  saving = setTimeout(save, 300);
}

/** Say how far the latent lies from those of the data. */
function showDistance() {
  const found = distanceFromData(view.encoder.labels, view.latent);
  $("distance").hidden = !found;
  if (!found) return;
  $("distance-bar").style.inlineSize = `${100 * found.share}%`;
  $("distance").classList.toggle("far", found.text.startsWith("unlike"));
  $("distance-note").textContent = found.text;
}

/** Name the dimensions that differ from those of the source; count them if they are many. */
function describeChange() {
  const moved = Array.from(view.latent.keys()).filter((d) => view.latent[d] !== view.source.latent[d]);
  const names = moved.slice(0, 3).map((d) => `z${d}`).join(", ");
  if (!moved.length) return "the reconstruction";
  return moved.length > 3 ? `${moved.length} dimensions moved` : `${names} moved`;
}

function say(message, isError = false) {
  $("message").textContent = message;
  $("message").classList.toggle("error", isError);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => ($("message").textContent = ""), isError ? 12000 : 4000);
}

// --- The view in the address: #frame=3&z=..., z in sixteenths of a standard deviation ---

const HASH_STEPS = 16;

function hash() {
  const { encoder, latent, source } = view;
  const parts = new URLSearchParams();
  if (source.index >= 0) parts.set("frame", source.index + 1);
  if (source.position >= 0) parts.set("episode", source.position + 1);
  if (latent !== source.latent || (source.index < 0 && source.position < 0)) {
    const steps = Int8Array.from(latent, (value, dim) => {
      const { center, spread } = encoder.range(dim);
      return Math.max(-128, Math.min(127, Math.round((HASH_STEPS * (value - center)) / spread)));
    });
    const text = btoa(String.fromCharCode(...new Uint8Array(steps.buffer)));
    parts.set("z", text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
  }
  return `#${parts}`;
}

function save() {
  if (!Player.current?.playing) history.replaceState(null, "", hash());
}

/** Show what the address says, as far as it makes sense for this encoder. */
function restore() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const place = (name, list) => {
    const index = Number(parts.get(name) ?? 0) - 1;
    return Number.isInteger(index) && index >= 0 && index < list.length ? index : -1;
  };
  const position = parts.has("frame") ? -1 : place("episode", frames.episode);
  if (position >= 0) {
    $("episode").value = position;
    setSource(frames.episode[position], `episode, ${position + 1}`, -1, position);
  } else {
    const known = Math.max(place("frame", frames.gallery), 0);
    setSource(frames.gallery[known], `frame ${known + 1}`, known);
  }
  const steps = readSteps(parts.get("z") ?? "");
  if (steps.length !== view.latent.length) return;
  setLatent(Float32Array.from(steps, (step, dim) => {
    const { center, spread } = view.encoder.range(dim);
    return center + (step * spread) / HASH_STEPS;
  }));
}

function readSteps(text) {
  try {
    return new Int8Array(fromBase64(text.replaceAll("-", "+").replaceAll("_", "/")).buffer);
  } catch {
    return []; // a mistyped address shows the frame
  }
}

// --- What a person can do ---

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

const choices = {
  source: () => view.source.latent,
  zero: () => new Float32Array(view.latent.length),
  mean: () => Float32Array.from(view.encoder.latents.mean),
  prior: () => view.latent.map(normal),
  data: () => view.latent.map((_, d) => view.encoder.latents.mean[d] + view.encoder.latents.std[d] * normal()),
};

function connect() {
  for (const button of document.querySelectorAll("[data-set]")) {
    button.addEventListener("click", () => {
      stopPlaying();
      setLatent(choices[button.dataset.set]());
    });
  }

  new Player({
    button: $("interpolation-play"), slider: $("interpolation"), name: "Interpolate", rate: 30, turns: true,
    onStep: (position) => {
      const share = position / $("interpolation").max;
      $("interpolation").setAttribute("aria-valuetext", `${Math.round(100 * share)}% of the way from A to B`);
      const [a, b] = view.ends.map(({ latent }) => latent);
      setLatent(a.map((value, d) => (1 - share) * value + share * b[d]));
    },
  });
  new Player({
    button: $("episode-play"), slider: $("episode"), name: "Play episode", rate: 15, turns: false,
    onStep: (position) => setSource(frames.episode[position], `episode, ${position + 1}`, -1, position),
  });
  ["end-a", "end-b"].forEach((id, which) => {
    $(id).addEventListener("click", () => {
      view.ends[which] = view.source;
      drawEnds();
    });
  });

  $("open").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    open(Array.from($("files").files));
    $("files").value = ""; // the same file may be opened again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files.length) open(Array.from(event.dataTransfer.files));
  });

  $("theme").addEventListener("click", () => setTheme(!isDark()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();
  $("copy").addEventListener("click", copyLink);
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the view
    $("dimensions").focus();
  });
  addEventListener("hashchange", () => {
    stopPlaying();
    restore();
  });
}

function stopPlaying() {
  Player.current?.stop();
}

/** Say which frame of the episode is the source, if any is. */
function showPosition() {
  const position = view.source?.position ?? -1;
  $("episode-position").textContent = `${position < 0 ? "–" : position + 1} / ${frames.episode.length}`;
}

function drawEnds() {
  ["end-a", "end-b"].forEach((id, which) => {
    paint($(id).querySelector("canvas"), toRgba(view.ends[which].frame));
    $(id).setAttribute("aria-label", `${which ? "B" : "A"}: put the source frame here`);
  });
}

let openings = 0;

/** Open an image or an encoder; whatever is wrong with it is said, and changes nothing. The last opened is shown. */
async function open(files) {
  const opening = ++openings;
  try {
    const opened = await readFiles(files);
    if (opening !== openings) return;
    stopPlaying();
    if (opened.model) {
      await openEncoder(opened, opening);
    } else {
      setSource(toFrame(opened.image, view.encoder.crop), brief(opened.name));
      say(`Encoded ${brief(opened.name)}.`);
    }
  } catch (error) {
    say(error.message, true);
  }
}

async function openEncoder({ model, name, config, labels, sheet }, opening) {
  const called = { name: brief(name.replace(/\.safetensors$/, "")), crop: null, environment: "" };
  const encoder = new LoadedEncoder({ ...called, ...config, model, labels });
  const { latentDim } = encoder.network;
  let note = "";
  if (!config) {
    const known = sheet ?? [...frames.gallery, ...frames.episode];
    encoder.latents = await assistant.ask("statistics", { model, frames: known });
    if (opening !== openings) return;
    note = "Statistics are over the frames in this page, because the encoder came without its config.json.";
  } else if (["mean", "std", "kl"].some((key) => config.latents[key].length !== latentDim)) {
    throw new Error(`config.json does not belong to this encoder of ${latentDim} dimensions.`);
  }
  if (labels && labels.mean.length !== latentDim) {
    throw new Error(`labels.json does not belong to this encoder of ${latentDim} dimensions.`);
  }
  if (sheet) setFrames(sheet.slice(0, 24), [], "These are its calibration frames.", "");
  await useEncoder(encoder, note, () => {
    if (sheet) setSource(sheet[0], "frame 1", 0);
    else setSource(view.source.frame, view.source.label, view.source.index);
  });
  if (opening === openings) say(`Opened ${encoder.name}.`);
}

async function copyLink() {
  save();
  try {
    await navigator.clipboard.writeText(location.href);
    say("Copied a link to this view.");
  } catch {
    say("The browser does not let this page copy. The link is in the address bar.");
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  showTheme();
}

function showTheme() {
  $("theme").setAttribute("aria-pressed", String(isDark()));
}

// --- Data in the page ---

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // browsers since 2025
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

start().catch((error) => say(error.message, true));
