// The wall: every stream with its newest picture, its state and a switch.

import { byId, button, every, make, set, toggle } from "./dom.js";
import { can, load, picture, send } from "./net.js";

const PICTURE_EVERY = 1000;  // milliseconds
const PICTURES_PER_SECOND = 5;  // of all streams together, for a token may ask only so often
const cards = new Map();     // stream name -> its card's elements
const inView = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) target.dataset.inView = isIntersecting ? "yes" : "";
});
let whenNamed = () => {};
let whenWanted = () => {};

export const names = () => [...cards.keys()];
export function onNames(callback) { whenNamed = callback; }
export function onMemory(callback) { whenWanted = callback; }

export async function loadStreams() {
  const { model, model_note: note, streams } = await load("/api/v1/streams");
  byId("model").textContent = model;
  byId("model-note").textContent = note || "";
  byId("model-note").hidden = !note;
  byId("no-streams").hidden = streams.length > 0;
  const before = names().join();
  for (const name of names()) {
    if (streams.some((status) => status.stream === name)) continue;
    cards.get(name).box.remove();
    cards.delete(name);
  }
  streams.forEach(showStatus);
  if (names().join() !== before) whenNamed(names());
}

export function showStatus(status) {
  const isNew = !cards.has(status.stream);
  const card = cards.get(status.stream) || addCard(status.stream);
  const isOnline = status.state === "online";
  card.isShowing = isOnline || Boolean(status.last_frame_at);
  card.state.textContent = card.state.dataset.state = status.state;
  card.reason.textContent = status.reason || `${status.state} since ${new Date(status.since * 1000).toLocaleString()}`;
  card.trouble.textContent = isOnline ? "" : status.reason || status.state;
  card.trouble.hidden = isOnline;
  card.picture.classList.toggle("stale", !isOnline);
  set(card.toggle, status.state !== "disabled");
  byId("no-streams").hidden = true;
  if (isNew) whenNamed(names());
}

export function showLatest(answer) {
  const card = cards.get(answer.stream);
  if (!card) return;
  card.latest.replaceChildren(make("span", "quiet", answer.query ? `${answer.query} ` : "asked "), answer.answer);
}

function addCard(name) {
  const reason = make("span", "tip");
  reason.id = `reason-${name}`;
  reason.setAttribute("role", "tooltip");
  const state = make("span", "pill");
  state.tabIndex = 0;
  state.setAttribute("aria-describedby", reason.id);
  const card = {
    state, reason, image: null, address: null, isShowing: false,
    trouble: make("p", "trouble"), latest: make("p", "latest"),
    toggle: toggle(`Watch ${name}`, (isOn) => watch(name, isOn)),
  };
  card.toggle.hidden = !can("PUT", "/api/v1/streams/{name}/enabled");
  card.picture = make("div", "picture", make("span", "quiet", "no picture yet"), card.trouble);
  const memory = button("Memory", "plain", () => whenWanted(name));
  memory.setAttribute("aria-label", `Show what is remembered of ${name}`);
  card.box = make("article", "stream", card.picture,
    make("div", "head", make("h3", "", name), make("span", "state", state, reason), card.toggle),
    make("div", "foot", card.latest, memory));
  card.box.setAttribute("aria-label", name);
  inView.observe(card.box);
  cards.set(name, card);
  byId("streams").append(card.box);
  return card;
}

async function watch(name, isOn) {
  try {
    await send("PUT", `/api/v1/streams/${encodeURIComponent(name)}/enabled`, { enabled: isOn });
    byId("streams-error").textContent = "";
  } catch (error) {
    if (error.status === 403) for (const card of cards.values()) card.toggle.hidden = true;
    byId("streams-error").textContent = error.message;
    throw error;
  }
}

async function refreshPicture(name, card) {
  if (!card.isShowing || (card.image && card.picture.classList.contains("stale"))) return;
  try {
    const { address } = await picture(`/api/v1/streams/${encodeURIComponent(name)}/snapshot.jpg`);
    if (!card.image) {
      card.image = make("img");
      card.image.alt = `newest picture of ${name}`;
      card.picture.replaceChildren(card.image, card.trouble);
    }
    card.image.src = address;
    if (card.address) URL.revokeObjectURL(card.address);
    card.address = address;
  } catch { /* the card's state says what is wrong */ }
}

export function keepPictures() {
  const seen = () => [...cards].filter(([, card]) => card.box.dataset.inView);
  const pace = () => Math.max(PICTURE_EVERY, (1000 / PICTURES_PER_SECOND) * seen().length);
  return every(pace, () => Promise.all(seen().map(([name, card]) => refreshPicture(name, card))));
}
