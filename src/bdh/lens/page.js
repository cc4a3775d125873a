"use strict";
// What every page has: one selection that lives in the address, links between panels, keys, copying.
window.onerror = (message) => { document.documentElement.dataset.error = String(message); };
window.onunhandledrejection = (event) => { document.documentElement.dataset.error = String(event.reason); };

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (query, root = document) => root.querySelector(query);
const $$ = (query, root = document) => [...root.querySelectorAll(query)];
const make = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};

// --- one selection ----------------------------------------------------------------------------------------
const state = { byte: null, level: null, neuron: null, pinned: false };
const inAddress = ["byte", "level", "neuron"];
const painters = [];
let waiting = false;
function select(change) {
  Object.assign(state, change);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}
function paint() {
  for (const painter of painters) painter();
  for (const node of $$("[data-neuron]")) node.classList.toggle("on", +node.dataset.neuron === state.neuron && state.neuron !== null);
  const parts = inAddress.filter((name) => state[name] !== null).map((name) => `${name}=${state[name]}`);
  // a frame of a notebook has no address to write to
  if (state.pinned && location.protocol !== "about:") history.replaceState(null, "", `#${parts.join("&")}`);
}
function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), change = {};
  for (const name of inAddress) if (/^\d+$/.test(asked.get(name) ?? "")) change[name] = +asked.get(name);
  if (Object.keys(change).length) select({ ...change, pinned: true });
}
addEventListener("hashchange", fromAddress);
document.addEventListener("click", (event) => {
  const chosen = event.target.closest("button[data-neuron]");
  if (!chosen) return;
  const change = { pinned: true };
  for (const name of inAddress) if (name in chosen.dataset) change[name] = +chosen.dataset[name];
  select({ ...change, mode: "neuron" });
});
// the address keeps the selection: going to a panel does not replace it
for (const link of $$("nav a")) link.addEventListener("click", (event) => {
  event.preventDefault();
  goTo($(link.getAttribute("href")));
});
function goTo(section) {
  const heading = $("h2", section);
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  section.scrollIntoView();
}

// --- keys -------------------------------------------------------------------------------------------------
const help = $("#help"), keys = [["?", "this list"], ["n / p", "next, previous panel"], ["Esc", "let go of the selection"]];
function openHelp() {
  $("dl", help).replaceChildren(...keys.flatMap(([key, does]) => [make("dt", key), make("dd", does)]));
  help.showModal();
}
function step(by) {
  const sections = $$("main > section"), focused = sections.indexOf(document.activeElement.closest("main > section"));
  const at = focused >= 0 ? focused : sections.findLastIndex((section) => section.getBoundingClientRect().top < 24);
  goTo(sections[Math.max(0, Math.min(sections.length - 1, at + by))]);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.closest("input, textarea, select")) return;
  if (event.key === "?") openHelp();
  else if (event.key === "n") step(1);
  else if (event.key === "p") step(-1);
  else if (event.key === "Escape") select({ pinned: false });
  else return;
  event.preventDefault();
});
const keysButton = make("button", "keys ?");
keysButton.addEventListener("click", openHelp);
$("nav").append(keysButton);

// --- copying ----------------------------------------------------------------------------------------------
async function copy(button, code, name) {
  let done = Boolean(navigator.clipboard) && await navigator.clipboard.writeText(code.textContent).then(() => true, () => false);
  if (!done) {
    // no clipboard in a frame or a page from disk: select the words, which any browser lets people copy
    for (let box = code.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    getSelection().selectAllChildren(code);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "copied" : "selected: press Ctrl+C";
  setTimeout(() => { button.textContent = name; }, 2500);
}
for (const code of $$("code[data-copy]")) {
  const name = `copy ${code.dataset.copy}`, button = make("button", name);
  button.title = code.textContent;
  button.addEventListener("click", () => copy(button, code, name));
  $(".tools", code.closest("section")).append(button);
}
addEventListener("load", () => {
  fromAddress();
  paint();
  document.documentElement.dataset.page = "ready";
});
