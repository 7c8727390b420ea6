// The picture that explains the method: the newest remembered frame under the tiles of its quadtree, each coloured by
// what stands for it: a new token, an older one in its place, or an older one that came from elsewhere.

import { byId, count, every, fact, make, options, percent, seconds } from "./dom.js";
import { load, picture } from "./net.js";

const LOOK_EVERY = 1000;  // milliseconds
const SVG = "http://www.w3.org/2000/svg";
const KINDS = ["new", "kept", "absorbed"];
let shown = { stream: "", capturedAt: 0, address: null };
let isInView = false;

export function showNames(names) {
  options(byId("mosaic-stream"), names);
  byId("mosaic-section").hidden = !names.length;
}

export function look(name) {
  byId("mosaic-stream").value = name;
  byId("mosaic-section").scrollIntoView({ block: "start" });
  byId("mosaic-stream").focus({ preventScroll: true });
  refresh();
}

function tile({ box: [top, left, bottom, right], token, age_s: age, size, kind }) {
  const rect = document.createElementNS(SVG, "rect");
  const places = { x: left, y: top, width: right - left, height: bottom - top };
  for (const [name, value] of Object.entries(places)) rect.setAttribute(name, value);
  rect.setAttribute("class", kind);
  rect.dataset.token = token;
  rect.setAttribute("fill-opacity", kind === "new" ? 0.6 : (0.1 + 0.35 * Math.exp(-age / 15)).toFixed(3));
  const title = document.createElementNS(SVG, "title");
  title.textContent = `token ${token}: ${kind}, ${seconds(age)} old, stands for ${count(size)} cells`;
  rect.append(title);
  return rect;
}

function draw(mosaic) {
  const { rows, columns, tokens, before, after } = mosaic;
  const of = Object.fromEntries(KINDS.map((kind) => [kind, tokens.filter((one) => one.kind === kind).length]));
  const svg = byId("tiles");
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.replaceChildren(...tokens.map(tile));
  svg.setAttribute("aria-label", `${tokens.length} tiles over ${rows} by ${columns} cells: `
    + KINDS.map((kind) => `${of[kind]} ${kind}`).join(", "));
  for (const kind of KINDS) byId(`count-${kind}`).textContent = count(of[kind]);
  byId("mosaic-facts").replaceChildren(
    fact(`${count(before)} → ${count(after)}`, `tokens (${percent(after / before)}) in memory`),
    fact(seconds(mosaic.span_s), "remembered"),
    fact(`${count(rows * columns)} → ${count(tokens.length)}`, "cells and tiles of this frame"));
}

async function refresh() {
  const stream = byId("mosaic-stream").value;
  if (!stream) return;
  const path = `/api/v1/streams/${encodeURIComponent(stream)}/mosaic`;
  try {
    const mosaic = await load(path);
    if (mosaic.captured_at === shown.capturedAt && stream === shown.stream) return;
    const under = await picture(`${path}.jpg`).catch(() => null);  // a memory from before the start has none
    if (under && under.capturedAt !== mosaic.captured_at && stream === shown.stream) {
      URL.revokeObjectURL(under.address);  // a window came between the two: once more, a little later
      return;
    }
    if (stream !== byId("mosaic-stream").value) return;
    draw(mosaic);
    byId("mosaic-picture").hidden = !under;
    if (under) byId("mosaic-picture").src = under.address;
    if (shown.address) URL.revokeObjectURL(shown.address);
    shown = { stream, capturedAt: mosaic.captured_at, address: under?.address ?? null };
    byId("mosaic-error").textContent = "";
  } catch (error) {
    byId("mosaic-error").textContent = error.message;
  }
}

function point(event) {
  const token = event.target.dataset?.token;
  for (const rect of byId("tiles").children) rect.classList.toggle("same", rect.dataset.token === token);
}

export function start() {
  new IntersectionObserver(([seen]) => { isInView = seen.isIntersecting; }).observe(byId("mosaic-section"));
  byId("mosaic-stream").addEventListener("change", refresh);
  const under = byId("mosaic-picture");
  under.addEventListener("load", () => {
    under.parentElement.style.aspectRatio = `${under.naturalWidth} / ${under.naturalHeight}`;
  });
  byId("mosaic-strength").addEventListener("input", (event) => { byId("tiles").style.opacity = event.target.value / 100; });
  byId("tiles").addEventListener("pointerover", point);
  byId("tiles").addEventListener("pointerleave", point);
  every(LOOK_EVERY, () => (isInView ? refresh() : null));
}
