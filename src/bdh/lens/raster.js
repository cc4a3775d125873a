// All neurons at all bytes: cells of one byte, read through an order of the rows, drawn from tiles that hold maxima.
const { raster, bytes, heads } = data;
const TILE = 256, gutter = 58, axis = 26, gap = 12;
const levels = raster.levels.length, rowsPerHead = raster.rows / heads.count;
const canvas = $("canvas"), pen = canvas.getContext("2d");
const view = { row: 0, rows: raster.rows, byte: 0, bytes: raster.columns, order: "index" };
const cells = []; // per level, codes by row
let places = []; // per level, row at each place of the order
let placeOf = []; // and back
let tiles = new Map();
let grid = null;

const rowOfNeuron = (neuron) => Math.floor(neuron / raster.pooled);
const code = (level, row, byte) => cells[level][row * raster.columns + byte];
const activation = (value) => (value / raster.steps) ** 2 * raster.largest;

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// --- orders -----------------------------------------------------------------------------------------------
const orders = {
  index: { name: "index", key: () => (row) => row },
  timescale: { name: "RoPE timescale", key: () => (row) => raster.periods[row % rowsPerHead] },
  first: {
    name: "first spike",
    key: (level) => (row) => {
      const at = cells[level].subarray(row * raster.columns, (row + 1) * raster.columns).findIndex((value) => value > 0);
      return at < 0 ? raster.columns : at;
    },
  },
  mean: {
    name: "mean activity",
    key: (level) => (row) => {
      let sum = 0;
      for (let byte = 0; byte < raster.columns; byte++) sum -= activation(code(level, row, byte));
      return sum;
    },
  },
};
function arrange(order) {
  view.order = order;
  places = cells.map((_, level) => {
    const key = Float64Array.from({ length: raster.rows }, (_, row) => orders[order].key(level)(row));
    return Uint16Array.from(Array.from({ length: raster.rows }, (_, row) => row).sort((a, b) => key[a] - key[b] || a - b));
  });
  placeOf = places.map((rows) => {
    const back = new Uint16Array(rows.length);
    rows.forEach((row, place) => { back[row] = place; });
    return back;
  });
  tiles = new Map();
}

// --- tiles ------------------------------------------------------------------------------------------------
/** Codes of 256 x 256 cells, each the maximum of 2**down places and 2**across bytes: a mean would hide a single spike. */
function tile(level, down, across, i, j) {
  const name = `${level}/${down}/${across}/${i}/${j}`;
  let out = tiles.get(name);
  if (out) return out;
  out = new Uint8Array(TILE * TILE);
  tiles.set(name, out);
  if (down || across) {
    for (const half of [0, 1]) {
      const part = across ? tile(level, down, across - 1, i, 2 * j + half) : tile(level, down - 1, 0, 2 * i + half, j);
      for (let y = 0; y < TILE; y++) for (let x = 0; x < TILE; x++) {
        const at = across ? y * TILE + 128 * half + (x >> 1) : (128 * half + (y >> 1)) * TILE + x;
        out[at] = Math.max(out[at], part[y * TILE + x]);
      }
    }
    return out;
  }
  const wide = Math.min(TILE, raster.columns - j * TILE), tall = Math.min(TILE, raster.rows - i * TILE);
  for (let y = 0; y < tall; y++) {
    const start = places[level][i * TILE + y] * raster.columns + j * TILE;
    out.set(cells[level].subarray(start, start + wide), y * TILE);
  }
  return out;
}
/** A tile in colours. */
function tileImage(level, down, across, i, j) {
  const name = `image/${level}/${down}/${across}/${i}/${j}`;
  let out = tiles.get(name);
  if (out) return out;
  const values = tile(level, down, across, i, j), image = new ImageData(TILE, TILE);
  for (let at = 0; at < values.length; at++) if (values[at]) image.data.set([...shade((values[at] / raster.steps) ** 2), 255], 4 * at);
  out = document.createElement("canvas");
  out.width = out.height = TILE;
  out.getContext("2d").putImageData(image, 0, 0);
  tiles.set(name, out);
  return out;
}
/** How often to halve so many cells that each has a pixel. */
const halvings = (count, pixels) => Math.max(0, Math.ceil(Math.log2(count / Math.max(1, Math.floor(pixels)))));

// --- drawing ----------------------------------------------------------------------------------------------
function layout() {
  const width = Math.max(1, canvas.clientWidth), across = Math.min(width - gutter, 64 * view.bytes);
  const tall = Math.max(24, Math.min(12 * raster.rows, levels > 3 ? 110 : 190));
  grid = { width, across, tall, cell: across / view.bytes, row: tall / view.rows, total: axis + levels * (tall + gap) };
}
const bandTop = (level) => axis + level * (grid.tall + gap);
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawRaster() {
  if (!cells.length) return;
  layout();
  const scale = devicePixelRatio || 1;
  canvas.style.height = `${grid.total}px`;
  [canvas.width, canvas.height] = [Math.round(grid.width * scale), Math.round(grid.total * scale)];
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingEnabled = false;
  const down = halvings(view.rows, grid.tall * scale), across = halvings(view.bytes, grid.across * scale);
  const high = TILE * 2 ** down, wide = TILE * 2 ** across;
  for (let level = 0; level < levels; level++) {
    const top = bandTop(level);
    pen.fillStyle = colourOf("--fill");
    pen.fillRect(gutter, top, grid.across, grid.tall);
    pen.save();
    pen.beginPath();
    pen.rect(gutter, top, grid.across, grid.tall);
    pen.clip();
    for (let i = Math.floor(view.row / high); i * high < view.row + view.rows; i++)
      for (let j = Math.floor(view.byte / wide); j * wide < view.byte + view.bytes; j++) {
        const x = gutter + (j * wide - view.byte) * grid.cell, y = top + (i * high - view.row) * grid.row;
        pen.drawImage(tileImage(level, down, across, i, j), x, y, wide * grid.cell, high * grid.row);
      }
    pen.restore();
    pen.fillStyle = colourOf("--soft");
    pen.font = `12.5px ${colourOf("--sans")}`;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillText(`level ${level}`, 0, top);
  }
  drawAxis();
  drawCursor();
}
function drawAxis() {
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const few = Math.max(1, 2 ** Math.ceil(Math.log2(40 / grid.cell)));
  for (let at = Math.ceil(view.byte); at < view.byte + view.bytes; at++) {
    if (grid.cell < 9 && at % few) continue;
    const chosen = at === state.byte, shown = bytes[at].shown;
    pen.fillStyle = colourOf(chosen ? "--ink" : "--soft");
    pen.font = grid.cell < 9 ? `11px ${colourOf("--sans")}` : `${chosen ? "700 " : ""}${Math.min(15, grid.cell + 2)}px ${colourOf("--mono")}`;
    pen.fillText(grid.cell < 9 ? String(at) : shown.length > 2 ? "·" : shown, gutter + (at - view.byte + 0.5) * grid.cell, axis / 2 - 1);
  }
}
function drawCursor() {
  pen.save();
  pen.beginPath();
  pen.rect(gutter - 2, axis - 2, grid.across + 4, grid.total);
  pen.clip();
  pen.strokeStyle = colourOf("--ink");
  const x = gutter + ((state.byte ?? -9) - view.byte) * grid.cell, wide = Math.max(grid.cell, 2);
  if (state.byte !== null) for (let level = 0; level < levels; level++) outline(x, bandTop(level), wide, grid.tall, 1, 0.5);
  if (state.neuron !== null) for (let level = 0; level < levels; level++) {
    const place = placeOf[level][rowOfNeuron(state.neuron)], tall = Math.max(grid.row, 2);
    if (place < Math.floor(view.row) || place >= view.row + view.rows) continue;
    const y = bandTop(level) + (place - view.row) * grid.row;
    outline(gutter, y, grid.across, tall, 1, level === state.level ? 0.75 : 0.35);
    if (level === state.level && state.byte !== null) outline(x - 2, y - 2, wide + 4, tall + 4, 2, 1);
  }
  pen.restore();
}
function outline(x, y, wide, tall, line, alpha) {
  pen.globalAlpha = alpha;
  pen.lineWidth = line;
  pen.strokeRect(x + 0.5, y + 0.5, wide - 1, tall - 1);
  pen.globalAlpha = 1;
}

// --- moving about -----------------------------------------------------------------------------------------
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
function look(change) {
  Object.assign(view, change);
  view.rows = clamp(view.rows, Math.min(8, raster.rows), raster.rows);
  view.bytes = clamp(view.bytes, Math.min(8, raster.columns), raster.columns);
  view.row = clamp(view.row, 0, raster.rows - view.rows);
  view.byte = clamp(view.byte, 0, raster.columns - view.bytes);
  select({});
}
/** Zoom by a factor, the middle (or what is selected, or the pointer) staying where it is. */
function zoom(factor, place, byte) {
  const chosen = state.neuron === null ? null : placeOf[state.level ?? 0][rowOfNeuron(state.neuron)];
  const y = place ?? chosen ?? view.row + view.rows / 2, x = byte ?? state.byte ?? view.byte + view.bytes / 2;
  const rows = clamp(view.rows / factor, Math.min(8, raster.rows), raster.rows);
  const columns = clamp(view.bytes / factor, Math.min(8, raster.columns), raster.columns);
  look({
    row: y + 0.5 - (y + 0.5 - view.row) * rows / view.rows, rows,
    byte: x + 0.5 - (x + 0.5 - view.byte) * columns / view.bytes, bytes: columns,
  });
}
/** Bring what is selected into sight. */
function follow() {
  const place = placeOf[state.level ?? 0][rowOfNeuron(state.neuron ?? 0)], change = {};
  if (state.neuron !== null && (place < view.row || place >= view.row + view.rows)) change.row = place - view.rows / 2;
  if (state.byte !== null && (state.byte < view.byte || state.byte >= view.byte + view.bytes)) change.byte = state.byte - view.bytes / 2;
  if (Object.keys(change).length) look(change);
}
function at(event) {
  const box = canvas.getBoundingClientRect(), y = event.clientY - box.top - axis, x = event.clientX - box.left - gutter;
  const level = Math.floor(y / (grid.tall + gap)), inside = y - level * (grid.tall + gap);
  if (level < 0 || level >= levels || inside >= grid.tall || x < 0 || x >= grid.across) return null;
  return { level, place: Math.floor(view.row + inside / grid.row), byte: Math.floor(view.byte + x / grid.cell) };
}
const found = ({ level, place, byte }) => ({ level, byte, neuron: places[level][Math.min(place, raster.rows - 1)] * raster.pooled });

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, row: view.row, byte: view.byte, moved: false };
});
canvas.addEventListener("pointermove", (event) => {
  if (drag && event.buttons) {
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    drag.moved ||= Math.hypot(dx, dy) > 4;
    if (drag.moved) look({ row: drag.row - dy / grid.row, byte: drag.byte - dx / grid.cell });
    return;
  }
  const place = at(event);
  if (place && !state.pinned) select(found(place));
});
canvas.addEventListener("click", (event) => {
  const place = at(event);
  if (place && !drag?.moved) select({ ...found(place), mode: "neuron", pinned: true });
  drag = null;
});
canvas.addEventListener("dblclick", (event) => { const place = at(event); if (place) zoom(2, place.place, place.byte); });
canvas.addEventListener("wheel", (event) => {
  // a plain wheel scrolls the page
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  const place = at(event);
  zoom(event.deltaY < 0 ? 1.25 : 0.8, place?.place, place?.byte);
}, { passive: false });

function move(dx, dy, dl = 0) {
  const level = clamp((state.level ?? 0) + dl, 0, levels - 1), row = rowOfNeuron(state.neuron ?? places[level][0] * raster.pooled);
  const place = clamp(placeOf[level][row] + dy, 0, raster.rows - 1);
  select({ level, neuron: dy ? places[level][place] * raster.pooled : state.neuron ?? row * raster.pooled, byte: clamp((state.byte ?? 0) + dx, 0, raster.columns - 1) });
  follow();
}
const acts = {
  ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
  Home: () => move(-raster.columns, 0), End: () => move(raster.columns, 0),
  PageUp: () => move(0, -Math.ceil(view.rows / 4)), PageDown: () => move(0, Math.ceil(view.rows / 4)),
  "[": () => move(0, 0, -1), "]": () => move(0, 0, 1),
  "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 0: () => look({ row: 0, rows: raster.rows, byte: 0, bytes: raster.columns }),
  Enter: () => select({ pinned: true, mode: state.neuron === null ? state.mode : "neuron" }),
};
acts[" "] = acts.Enter;
canvas.addEventListener("keydown", (event) => {
  if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  acts[event.key]();
});
keys.push(
  ["arrows", "in the raster: next byte, next row; in the text: next byte"], ["[ ]", "the same neuron one level lower, higher"],
  ["Enter", "keep the selection, and colour the text by the neuron"], ["+ − 0", "zoom in, out, show all"],
  ["Page Up / Down", "a quarter of the rows"], ["Home / End", "first, last byte"], ["Ctrl + wheel, drag", "zoom, move"],
);

const bar = $(".plot .modes"), picker = make("select"), label = make("label", "rows by ");
for (const [key, { name }] of Object.entries(orders)) picker.append(Object.assign(make("option", name), { value: key }));
picker.addEventListener("change", () => { arrange(picker.value); look({ row: 0, rows: raster.rows }); });
label.append(picker);
bar.append(label);
for (const [name, key] of [["zoom in", "+"], ["zoom out", "-"], ["show all", "0"]]) {
  const button = make("button", name);
  button.addEventListener("click", acts[key]);
  bar.append(button);
}
