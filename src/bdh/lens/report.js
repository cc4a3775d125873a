"use strict";
// The tables are in the page already; this adds the picture and links everything to one selection.
window.onerror = (message) => { document.documentElement.dataset.error = String(message); };

const data = JSON.parse(document.getElementById("data").textContent);
const { bytes, raster, heads, baseline } = data;
const $ = (query, root = document) => root.querySelector(query);
const $$ = (query, root = document) => [...root.querySelectorAll(query)];
const make = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};

const rowOf = new Map(raster.rows.map(([level, neuron], row) => [`${level}:${neuron}`, row]));
const largest = raster.values.reduce((most, row) => row.reduce((a, b) => Math.max(a, b), most), 0) || 1;
const state = { byte: 0, row: -1, mode: "activity", pinned: false };
const dark = matchMedia("(prefers-color-scheme: dark)");
const nameOf = (neuron) => `h${Math.floor(neuron / heads.size)}·${neuron % heads.size}`;
const short = (value) => String(+value.toPrecision(3));
const score = (z) => (z === null ? "–" : z.toFixed(1));

// colour: lightness moves one way only, so the ramps survive greyscale and colour blindness
const ramps = {
  light: ["#e3eee0", "#c0e0cc", "#82c9bf", "#45abc0", "#2a80b1", "#2a559a", "#17255c"],
  dark: ["#3a3a63", "#3c4f8a", "#2f6f8e", "#23918a", "#4fb873", "#a9d640", "#fde725"],
};
const hex = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
function table() {
  const stops = ramps[dark.matches ? "dark" : "light"].map(hex);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((c, k) => Math.round(c + (stops[low + 1][k] - c) * (at - low)));
  });
}
let colours = table();
// square root: weak activations stay visible beside strong ones
const shade = (share) => colours[Math.round(255 * Math.sqrt(Math.min(1, Math.max(0, share))))];
function ink([r, g, b]) {
  const linear = [r, g, b].map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

// --- text strip -------------------------------------------------------------------------------------------
const cells = $$(".strip button");
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
const totals = bytes.map((byte) => mean(byte.activity));
const worst = Math.max(...bytes.map((byte) => byte.surprisal ?? 0)) || 1;
cells.forEach((cell, at) => {
  cell.style.setProperty("--surprisal", (bytes[at].surprisal ?? 0) / worst);
  cell.addEventListener("click", () => select({ byte: at, pinned: true }));
});

// one tab stop for the whole text; the arrow keys move inside it
$(".strip").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = cells[state.byte + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
  select({ byte: state.byte + step, pinned: true });
});

function shares() {
  if (state.mode === "surprisal") return bytes.map((byte) => (byte.surprisal ?? 0) / worst);
  if (state.mode === "neuron" && state.row >= 0) {
    const row = raster.values[state.row], most = Math.max(...row) || 1;
    return row.map((value) => value / most);
  }
  const low = Math.min(...totals), span = Math.max(...totals) - low || 1;
  return totals.map((total) => (total - low) / span * 0.97 + 0.03);
}

function drawStrip() {
  shares().forEach((share, at) => {
    const colour = share > 0 ? shade(share) : null, glyph = cells[at].firstElementChild;
    glyph.style.setProperty("--cell", colour ? `rgb(${colour})` : "");
    glyph.style.setProperty("--cell-ink", colour ? ink(colour) : "");
    cells[at].setAttribute("aria-pressed", at === state.byte);
    cells[at].tabIndex = at === state.byte ? 0 : -1;
  });
}

const modes = $(".modes");
modes.hidden = false;
for (const mode of ["activity", "surprisal", "neuron"]) {
  const button = make("button");
  button.dataset.mode = mode;
  button.addEventListener("click", () => select({ mode }));
  modes.append(button);
}
function drawModes() {
  const labels = { activity: "share of neurons that fire", surprisal: "surprisal", neuron: "selected neuron" };
  if (state.row >= 0) {
    const [level, neuron] = raster.rows[state.row];
    labels.neuron = `neuron ${nameOf(neuron)}, level ${level}`;
  }
  for (const button of modes.children) {
    button.textContent = labels[button.dataset.mode];
    button.disabled = button.dataset.mode === "neuron" && state.row < 0;
    button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
  }
}

// --- the selected byte ------------------------------------------------------------------------------------
function chip(level, neuron, z, activation, byte) {
  const button = make("button", `${nameOf(neuron)} `, "chip");
  Object.assign(button.dataset, { level, neuron, byte });
  button.append(make("small", `level ${level}, ${short(activation)}, z ${score(z)}`));
  return button;
}
function drawByte() {
  const at = state.byte, byte = bytes[at], box = $("#byte");
  // the same byte again: keep the buttons, one of them may have the focus
  if (box.dataset.byte === String(at)) return;
  box.dataset.byte = at;
  box.hidden = false;
  const code = `0x${byte.byte.toString(16).toUpperCase().padStart(2, "0")}`;
  const line = make("p");
  line.append(make("mark", byte.shown || "‥"));
  const surprise = byte.surprisal === null ? "nothing predicts it" : `surprisal ${short(byte.surprisal)} nats`;
  line.append(` byte ${at}, ${code}, ${surprise}. The model then expects `, make("mark", byte.next));
  line.append(` with probability ${byte.p.toFixed(2)}.`);
  const chips = make("div", undefined, "chips");
  byte.strongest.forEach((f) => chips.append(chip(f[0], f[1], f[3], f[2], at)));
  box.replaceChildren(line, chips);
}

// --- raster -----------------------------------------------------------------------------------------------
const canvas = $("canvas"), pen = canvas.getContext("2d"), gutter = 58, axis = 26, gap = 10;
const groups = [];
raster.rows.forEach(([level], row) => {
  const last = groups[groups.length - 1];
  if (last && last.level === level) last.stop = row + 1;
  else groups.push({ level, start: row, stop: row + 1 });
});
let grid = null;

function layout() {
  const width = Math.max(1, canvas.clientWidth), rows = raster.rows.length, columns = bytes.length;
  const cell = Math.min(64, (width - gutter) / columns);
  const height = Math.max(1, Math.min(14, Math.max(3, Math.floor(560 / Math.max(1, rows)))));
  let top = axis;
  for (const group of groups) { group.top = top; top += (group.stop - group.start) * height + gap; }
  grid = { width, height, cell, total: top };
}

/** One level's rows, max-pooled where there are fewer pixels than cells: a mean would hide a single spike. */
function picture({ start, stop }, across, down) {
  const image = new ImageData(across, down), rows = stop - start, columns = bytes.length;
  for (let y = 0; y < down; y++) for (let x = 0; x < across; x++) {
    let most = 0;
    const lastRow = Math.max(Math.ceil((y + 1) * rows / down), Math.floor(y * rows / down) + 1);
    const lastColumn = Math.max(Math.ceil((x + 1) * columns / across), Math.floor(x * columns / across) + 1);
    for (let r = Math.floor(y * rows / down); r < lastRow; r++)
      for (let c = Math.floor(x * columns / across); c < lastColumn; c++) most = Math.max(most, raster.values[start + r][c]);
    if (most > 0) image.data.set([...shade(most / largest), 255], 4 * (y * across + x));
  }
  const buffer = document.createElement("canvas");
  [buffer.width, buffer.height] = [across, down];
  buffer.getContext("2d").putImageData(image, 0, 0);
  return buffer;
}

function drawRaster() {
  layout();
  const scale = devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  canvas.style.height = `${grid.total}px`;
  [canvas.width, canvas.height] = [Math.round(grid.width * scale), Math.round(grid.total * scale)];
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingEnabled = false;
  const across = bytes.length * grid.cell;
  for (const group of groups) {
    const tall = (group.stop - group.start) * grid.height;
    pen.fillStyle = colour("--fill");
    pen.fillRect(gutter, group.top, across, tall);
    const pixels = Math.min(bytes.length, Math.max(1, Math.floor(across * scale)));
    if (group.pixels !== pixels) Object.assign(group, { pixels, image: picture(group, pixels, group.stop - group.start) });
    pen.drawImage(group.image, gutter, group.top, across, tall);
    pen.fillStyle = colour("--soft");
    pen.font = `12.5px ${colour("--sans")}`;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillText(`level ${group.level}`, 0, group.top);
  }
  drawGlyphs(colour);
  drawCursor(colour);
}
function drawGlyphs(colour) {
  if (grid.cell < 9) return;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  bytes.forEach((byte, at) => {
    const chosen = at === state.byte;
    pen.fillStyle = colour(chosen ? "--ink" : "--soft");
    const glyph = byte.shown.length > 2 ? "·" : byte.shown;
    pen.font = `${chosen ? "700 " : ""}${Math.min(15, grid.cell + 2)}px ${colour("--mono")}`;
    pen.fillText(glyph, gutter + (at + 0.5) * grid.cell, axis / 2 - 1);
  });
}
function drawCursor(colour) {
  const x = gutter + state.byte * grid.cell, group = groups.find((g) => g.start <= state.row && state.row < g.stop);
  pen.strokeStyle = colour("--ink");
  pen.lineWidth = 1;
  if (group) {
    const y = group.top + (state.row - group.start) * grid.height;
    pen.globalAlpha = 0.55;
    pen.strokeRect(gutter + 0.5, y - 0.5, bytes.length * grid.cell - 1, grid.height + 1);
    pen.globalAlpha = 1;
    pen.lineWidth = 2;
    pen.strokeRect(x - 1, y - 1, grid.cell + 2, grid.height + 2);
  } else {
    pen.globalAlpha = 0.55;
    pen.strokeRect(x + 0.5, axis + 0.5, grid.cell - 1, grid.total - axis - gap);
    pen.globalAlpha = 1;
  }
}

function say() {
  const out = $("#raster output");
  if (state.row < 0) { out.textContent = "Move over the picture, or focus it and use the arrow keys."; return; }
  const [level, neuron] = raster.rows[state.row], [mu, sigma, rate] = baseline[state.row], byte = bytes[state.byte];
  const value = raster.values[state.row][state.byte], z = sigma > 0 ? (value - mu) / sigma : null;
  out.textContent = `Neuron ${nameOf(neuron)} (#${neuron}), level ${level}, byte ${state.byte} “${byte.shown}”: `
    + `activation ${short(value)}, z ${score(z)}; fires at ${(100 * rate).toFixed(1)} % of validation bytes`
    + (state.pinned ? ". Pinned." : ".");
}

function at(event) {
  const box = canvas.getBoundingClientRect(), y = event.clientY - box.top;
  const byte = Math.floor((event.clientX - box.left - gutter) / grid.cell);
  const group = groups.find((g) => y >= g.top && y < g.top + (g.stop - g.start) * grid.height);
  if (!group || byte < 0 || byte >= bytes.length) return null;
  return { byte, row: group.start + Math.floor((y - group.top) / grid.height) };
}
canvas.addEventListener("pointermove", (event) => {
  const place = at(event);
  if (place && !state.pinned) select(place);
});
canvas.addEventListener("click", (event) => {
  const place = at(event);
  if (place) select({ ...place, mode: "neuron", pinned: true });
});
const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (steps[event.key]) {
    const [dx, dy] = steps[event.key], clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
    const row = raster.rows.length ? clamp(state.row + dy, raster.rows.length) : -1;
    select({ byte: clamp(state.byte + dx, bytes.length), row });
  } else if (event.key === "Enter" || event.key === " ") select({ mode: state.row < 0 ? state.mode : "neuron", pinned: true });
  else if (event.key === "Escape") select({ pinned: false });
  else return;
  event.preventDefault();
});

// --- one selection ----------------------------------------------------------------------------------------
let waiting = false;
function select(change) {
  Object.assign(state, change);
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }
}
function draw() {
  drawStrip();
  drawModes();
  drawByte();
  drawRaster();
  say();
  const chosen = state.row < 0 ? "" : String(raster.rows[state.row][1]);
  for (const node of $$("[data-neuron]")) node.classList.toggle("on", chosen !== "" && node.dataset.neuron === chosen);
}
document.addEventListener("click", (event) => {
  const chosen = event.target.closest("button[data-neuron]");
  if (!chosen) return;
  const { level, neuron, byte } = chosen.dataset, row = rowOf.get(`${level}:${neuron}`);
  select({ byte: +byte, pinned: true, ...(row === undefined ? {} : { row, mode: "neuron" }) });
});

// --- copy command -----------------------------------------------------------------------------------------
async function copy(button) {
  const ok = await navigator.clipboard.writeText(data.command).then(() => true, () => false);
  button.textContent = ok ? "copied" : "see the foot of the page";
  setTimeout(() => { button.textContent = "copy command"; }, 2000);
}
if (data.command && navigator.clipboard) for (const tools of $$(".tools")) {
  const button = make("button", "copy command");
  button.title = data.command;
  button.addEventListener("click", () => copy(button));
  tools.append(button);
}

function ramp() {
  const stops = Array.from({ length: 9 }, (_, i) => `rgb(${shade(i / 8)})`);
  $(".ramp i").style.setProperty("--ramp", `linear-gradient(90deg, ${stops.join(", ")})`);
  $(".ramp .most").textContent = short(largest);
}
dark.addEventListener("change", () => {
  colours = table();
  for (const group of groups) group.pixels = 0;
  ramp();
  draw();
});
new ResizeObserver(() => { if (grid && canvas.clientWidth !== grid.width) select({}); }).observe($(".plot"));
$(".plot").hidden = false;
if (data.telling.length) state.row = rowOf.get(data.telling[0].slice(0, 2).join(":")) ?? -1;
if (state.row >= 0) Object.assign(state, { byte: data.telling[0][2], mode: "neuron" });
ramp();
draw();
document.documentElement.dataset.report = "ready";
