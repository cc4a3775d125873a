// The text, byte by byte, and what is selected of it, in words.
Object.assign(state, { byte: 0, mode: "activity" });
const usual = new Map(data.usual.map(([level, neuron, ...rest]) => [`${level}:${neuron}`, rest]));
const exact = new Map(bytes.flatMap((byte, at) => byte.strongest.map(([level, neuron, value]) => [`${at}:${level}:${neuron}`, value])));
const dark = matchMedia("(prefers-color-scheme: dark)");
const nameOf = (neuron) => `h${Math.floor(neuron / heads.size)}·${neuron % heads.size}`;
const short = (value) => String(+value.toPrecision(3));
const score = (z) => (z === null ? "–" : z.toFixed(1));

// colour: lightness moves one way only, from blue to yellow, which all kinds of sight tell apart
const ramps = {
  light: ["#efe3a4", "#dcc75f", "#b3a476", "#8a8678", "#5f6370", "#33476c", "#00224e"],
  dark: ["#1d3a6b", "#3b496c", "#575d6d", "#707173", "#8a8678", "#c3b369", "#fee838"],
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
function shade(share) { return colours[Math.round(255 * Math.sqrt(Math.min(1, Math.max(0, share))))]; }
function ink([r, g, b]) {
  const linear = [r, g, b].map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

// --- text strip -------------------------------------------------------------------------------------------
const strip = $$(".strip button");
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
const totals = bytes.map((byte) => mean(byte.activity));
const worst = Math.max(...bytes.map((byte) => byte.surprisal ?? 0)) || 1;
strip.forEach((cell, at) => {
  cell.style.setProperty("--surprisal", (bytes[at].surprisal ?? 0) / worst);
  cell.addEventListener("click", () => select({ byte: at, pinned: true }));
});

// one tab stop for the whole text; the arrow keys move inside it
$(".strip").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = strip[state.byte + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
  select({ byte: state.byte + by, pinned: true });
});

function shares() {
  if (state.mode === "surprisal") return bytes.map((byte) => (byte.surprisal ?? 0) / worst);
  if (state.mode === "neuron" && state.neuron !== null && cells.length) {
    const row = rowOfNeuron(state.neuron), values = bytes.map((_, byte) => activation(code(state.level ?? 0, row, byte)));
    const most = Math.max(...values) || 1;
    return values.map((value) => value / most);
  }
  const low = Math.min(...totals), span = Math.max(...totals) - low || 1;
  return totals.map((total) => (total - low) / span * 0.97 + 0.03);
}
function drawStrip() {
  shares().forEach((share, at) => {
    const colour = share > 0 ? shade(share) : null, glyph = strip[at].firstElementChild;
    glyph.style.setProperty("--cell", colour ? `rgb(${colour})` : "");
    glyph.style.setProperty("--cell-ink", colour ? ink(colour) : "");
    strip[at].setAttribute("aria-pressed", at === state.byte);
    strip[at].tabIndex = at === state.byte ? 0 : -1;
  });
}

const modes = $("#text .modes");
modes.hidden = false;
for (const mode of ["activity", "surprisal", "neuron"]) {
  const button = make("button");
  button.dataset.mode = mode;
  button.addEventListener("click", () => select({ mode }));
  modes.append(button);
}
function drawModes() {
  const labels = { activity: "share of neurons that fire", surprisal: "surprisal", neuron: "selected neuron" };
  if (state.neuron !== null) labels.neuron = `neuron ${nameOf(state.neuron)}, level ${state.level ?? 0}`;
  for (const button of modes.children) {
    button.textContent = labels[button.dataset.mode];
    button.disabled = button.dataset.mode === "neuron" && state.neuron === null;
    button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
  }
}

// --- the selected byte ------------------------------------------------------------------------------------
function chip(level, neuron, z, value, byte) {
  const button = make("button", `${nameOf(neuron)} `, "chip");
  Object.assign(button.dataset, { level, neuron, byte });
  button.append(make("small", `level ${level}, ${short(value)}, z ${score(z)}`));
  return button;
}
function drawByte() {
  const at = state.byte, byte = bytes[at], box = $("#byte");
  // the same byte again: keep the buttons, one of them may have the focus
  if (box.dataset.byte === String(at)) return;
  box.dataset.byte = at;
  box.hidden = false;
  const hexadecimal = `0x${byte.byte.toString(16).toUpperCase().padStart(2, "0")}`;
  const line = make("p");
  line.append(make("mark", byte.shown || "‥"));
  const surprise = byte.surprisal === null ? "nothing predicts it" : `surprisal ${short(byte.surprisal)} nats`;
  line.append(` byte ${at}, ${hexadecimal}, ${surprise}. The model then expects `, make("mark", byte.next));
  line.append(` with probability ${byte.p.toFixed(2)}.`);
  const chips = make("div", undefined, "chips");
  byte.strongest.forEach((f) => chips.append(chip(f[0], f[1], f[3], f[2], at)));
  box.replaceChildren(line, chips);
}

// --- the selected cell ------------------------------------------------------------------------------------
function say() {
  const out = $("#raster output");
  if (state.neuron === null) { out.textContent = "Move over the picture, or focus it and use the arrow keys."; return; }
  const level = state.level ?? 0, { neuron, byte } = state, first = rowOfNeuron(neuron) * raster.pooled;
  const value = exact.get(`${byte}:${level}:${neuron}`), known = usual.get(`${level}:${neuron}`);
  const who = raster.pooled === 1 ? `Neuron ${nameOf(neuron)} (#${neuron})` : `The largest of neurons #${first} to #${first + raster.pooled - 1}`;
  const seen = code(level, rowOfNeuron(neuron), byte);
  const strength = value !== undefined ? short(value) : seen ? `about ${activation(seen).toPrecision(2)}` : "silent";
  out.textContent = `${who}, level ${level}, byte ${byte} “${bytes[byte].shown}”: ${value === undefined && !seen ? "" : "activation "}${strength}`
    + `; turns once in ${short(raster.periods[rowOfNeuron(neuron) % rowsPerHead])} tokens`
    + (known ? `; usual mean ${short(known[0])}, fires at ${(100 * known[2]).toFixed(1)} % of validation bytes` : "")
    + (state.pinned ? ". Pinned." : ".");
}
/** An address can name what is not there. */
function bound() {
  state.byte = clamp(state.byte ?? 0, 0, bytes.length - 1);
  if (state.level !== null) state.level = clamp(state.level, 0, levels - 1);
  if (state.neuron !== null) state.neuron = clamp(state.neuron, 0, raster.rows * raster.pooled - 1);
}

function ramp() {
  const stops = Array.from({ length: 9 }, (_, i) => `rgb(${shade(i / 8)})`);
  $(".ramp i").style.setProperty("--ramp", `linear-gradient(90deg, ${stops.join(", ")})`);
  $(".ramp .most").textContent = short(raster.largest);
}
dark.addEventListener("change", () => {
  colours = table();
  tiles = new Map();
  ramp();
  select({});
});

painters.push(bound, drawStrip, drawModes, drawByte);
if (data.first.length) {
  const [level, neuron, byte] = data.first[0];
  Object.assign(state, { level, neuron, byte, mode: "neuron" });
}
Promise.all(raster.levels.map(inflate)).then((found) => {
  cells.push(...found);
  $(".plot").hidden = false;
  arrange("index");
  ramp();
  painters.push(drawRaster, say);
  new ResizeObserver(() => { if (grid && canvas.clientWidth !== grid.width) select({}); }).observe($(".plot"));
  paint();
  document.documentElement.dataset.report = "ready";
});
