// The timeline: answers and events together, newest first, those of before and those that come.

import { factsOf } from "./ask.js";
import { byId, button, clock, fact, make, options, percent, seconds } from "./dom.js";
import { load, picture, takes } from "./net.js";

const PAGE = 40;      // of answers, and as many events, loaded at once
const SHOWN = 400;
const entries = new Map();  // id -> {at, box, stream, sort, words, address}
let cursors = [];     // [path, before] of what lies further back
let wells = [""];     // streams to ask for one by one, where a token knows only some
let isFull = false;

export function showNames(names) { options(byId("line-stream"), names, "all streams"); }

export function limitTo(names) { wells = names; }

const told = (state) => (state === true ? "yes" : state === false ? "no" : state === null ? "nobody knows" : String(state));

function drawAnswer(answer) {
  const from = answer.query ? `${answer.stream} · ${answer.query}` : answer.stream;
  return [make("div", "question", make("span", "who", from), " ", answer.question),
    make("div", "text", answer.answer || "(no words)"), factsOf(answer)];
}

function drawEvent(event) {
  const lasted = (event.ended_at ?? Date.now() / 1000) - event.started_at;
  const stands = event.ended_at === null ? (event.kind === "update" ? "goes on" : "began") : "over";
  const facts = make("div", "facts", make("span", "", clock(event.started_at)),
    event.confidence === null ? null : fact(percent(event.confidence), "sure"),
    event.ended_at === null ? null : fact(seconds(lasted), "long"),
    event.escalated ? make("b", "", "escalated") : null);
  const pill = make("span", "pill", stands);
  pill.dataset.state = event.ended_at === null ? "open" : "over";
  return [make("div", "question", make("span", "who", `${event.stream} · ${event.query}`), " ", pill),
    make("div", "text", told(event.state)), facts];
}

async function addPicture(entry, event) {
  const { address } = await picture(event.snapshot);
  entry.address = address;
  const small = make("img");
  small.src = address;
  small.alt = `when ${event.query} on ${event.stream} began`;
  const shows = button("", "snapshot", () => {
    byId("large").querySelector("img").src = address;
    byId("large").querySelector("img").alt = small.alt;
    byId("large").showModal();
  });
  shows.append(small);
  shows.setAttribute("aria-label", "show the picture large");
  entry.box.prepend(shows);
  entry.shows = shows;
}

function place(entry) {
  entry.box.dataset.at = entry.at;
  const line = byId("line");
  const next = [...line.children].find((box) => Number(box.dataset.at) <= entry.at);
  line.insertBefore(entry.box, next ?? null);
}

function show(id, at, item, sort, draw, isFresh) {
  let entry = entries.get(id);
  const isNew = !entry;
  if (isNew) {
    entry = { at, box: make("li", `entry ${sort}`), stream: item.stream, sort, told: 0 };
    entries.set(id, entry);
    place(entry);
  }
  if (item.updated_at !== undefined && item.updated_at < entry.told) return;  // an older telling of an event
  entry.told = item.updated_at ?? 0;
  entry.isNews = sort === "event" || item.news;
  entry.words = [item.query, item.question, item.answer, item.state].join(" ").toLowerCase();
  const body = make("div", "body", ...draw(item));
  entry.box.replaceChildren(...(entry.shows ? [entry.shows, body] : [body]));
  entry.box.classList.toggle("news", entry.isNews);
  entry.box.classList.toggle("fresh", isFresh);
  if (isNew && item.snapshot) addPicture(entry, item).catch(() => {});  // older ones have lost theirs
  entry.box.hidden = !fits(entry);
  trim();
  showEmpty();
}

export const showAnswer = (answer, isFresh = true) =>
  show(answer.id, answer.answered_at, answer, "answer", drawAnswer, isFresh);
export const showEvent = (event, isFresh = true) =>
  show(event.id, event.started_at, event, "event", drawEvent, isFresh);

function trim() {
  if (entries.size <= SHOWN) return;
  const oldest = [...entries].reduce((worst, one) => (one[1].at < worst[1].at ? one : worst));
  forget(...oldest);
  isFull = true;  // what lies further back no longer follows on what is shown
  byId("line-older").hidden = true;
}

function forget(id, entry) {
  entry.box.remove();
  if (entry.address) URL.revokeObjectURL(entry.address);
  entries.delete(id);
}

function fits(entry) {
  const [stream, sort, words] = ["line-stream", "line-sort", "line-words"].map((id) => byId(id).value);
  return (!stream || entry.stream === stream)
    && (!sort || (sort === "news" ? entry.isNews : entry.sort === sort))
    && words.toLowerCase().split(/\s+/).every((word) => entry.words.includes(word));
}

function showEmpty() {
  byId("no-line").hidden = [...entries.values()].some((entry) => !entry.box.hidden);
}

function filter() {
  for (const entry of entries.values()) entry.box.hidden = !fits(entry);
  showEmpty();
}

async function follow(path, before) {
  const page = await load(before === null ? path : `${path}&before=${before}`);
  for (const answer of page.answers ?? []) showAnswer(answer, false);
  for (const event of page.events ?? []) showEvent(event, false);
  return [path, page.next];
}

export async function loadLine() {
  const chosen = byId("line-stream").value;
  const words = byId("line-words").value.trim();
  const paths = (chosen ? [chosen] : wells).flatMap((stream) => ["answers", "events/history"].map((what) => {
    const wanted = new URLSearchParams({ limit: PAGE });
    if (stream) wanted.set("stream", stream);
    if (words && takes(`/api/v1/${what}`, "text")) wanted.set("text", words);
    return `/api/v1/${what}?${wanted}`;
  }));
  await turnTo(paths.map((path) => [path, null]));
}

async function turnTo(from) {
  const found = await Promise.all(from.map(([path, before]) => follow(path, before)));
  cursors = found.filter(([, next]) => next !== null);
  byId("line-older").hidden = isFull || !cursors.length;
}

export function listen() {
  let waits = 0;
  const anew = () => {
    filter();
    clearTimeout(waits);
    waits = setTimeout(() => loadLine().catch(() => {}), 300);
  };
  for (const id of ["line-stream", "line-sort", "line-words"]) byId(id).addEventListener("input", anew);
  byId("line-older").addEventListener("click", () => turnTo(cursors).catch(() => {}));
  byId("large").addEventListener("click", () => byId("large").close());
}
