"use strict";
// The page: streams with their newest picture, an ask box, answers as they come. Everything shown is set as text,
// never as markup. Events are read with fetch, not EventSource, so that the access token can be sent along.

const SHOWN = 60;            // answers kept on the page
const PICTURE_EVERY = 1000;  // milliseconds
const RETRY = 2000;
const byId = (id) => document.getElementById(id);
const cards = new Map();     // stream name -> its card's elements
const seen = new Set();      // ids of the answers shown, for the first events repeat what was loaded
let token = sessionStorage.getItem("token") || "";
let isStarted = false;

function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) byId("login").hidden = false;
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error(body.error || `the service answered ${response.status}`);
  }
  return response;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`);
const clock = (at) => new Date(at * 1000).toLocaleTimeString();

function fact(value, label) {
  return make("span", "", make("b", "", value), ` ${label}`);
}

function answerBox(tag, answer) {
  const { visual, visual_before_merge: before } = answer.tokens;
  const facts = make("div", "facts",
    make("span", "", clock(answer.answered_at)),
    make("span", "", answer.query ? `${answer.stream} · ${answer.query}` : answer.stream),
    fact(seconds(answer.event_to_answer_ms), "event to answer"),
    fact(`${before} → ${visual}`, "tokens merged"));
  facts.lastChild.title = "visual tokens before and after merging";
  return make(tag, answer.news ? "answer news" : "answer",
    make("div", "question", answer.question), make("div", "text", answer.answer || "(no words)"), facts);
}

function showAnswer(answer, isFresh) {
  if (seen.has(answer.id)) return;
  seen.add(answer.id);
  const box = answerBox("li", answer);
  if (isFresh) box.classList.add("fresh");
  const list = byId("answers");
  list.prepend(box);
  while (list.children.length > SHOWN) list.lastChild.remove();
  byId("no-answers").hidden = true;
  const card = cards.get(answer.stream);
  if (card) card.latest.textContent = answer.answer;
}

function addCard(name) {
  const card = {
    picture: make("div", "picture", "no picture yet"), image: null, address: null,
    state: make("span", "pill"), reason: make("div", "reason"), latest: make("div", "latest"),
  };
  card.box = make("article", "stream", card.picture,
    make("div", "head", make("span", "", name), card.state), card.reason, card.latest);
  cards.set(name, card);
  byId("streams").append(card.box);
  const option = make("option", "", name);
  option.value = name;
  byId("ask-stream").append(option);
  return card;
}

function showStatus(status) {
  const card = cards.get(status.stream) || addCard(status.stream);
  card.state.textContent = card.state.dataset.state = status.state;
  card.reason.textContent = status.reason;
  if (card.image) card.image.classList.toggle("stale", status.state !== "online");
  byId("no-streams").hidden = true;
}

async function refreshPicture(name, card) {
  try {
    const response = await call(`/api/v1/streams/${encodeURIComponent(name)}/snapshot.jpg`);
    const address = URL.createObjectURL(await response.blob());
    if (!card.image) {
      card.image = make("img");
      card.image.alt = `newest picture of ${name}`;
      card.picture.replaceChildren(card.image);
    }
    card.image.src = address;
    if (card.address) URL.revokeObjectURL(card.address);
    card.address = address;
  } catch { /* the card's state says what is wrong */ }
}

async function keepPictures() {
  for (;;) {
    if (!document.hidden) await Promise.all([...cards].map(([name, card]) => refreshPicture(name, card)));
    await new Promise((done) => setTimeout(done, PICTURE_EVERY));
  }
}

function showLink(state) {
  const link = byId("link");
  link.textContent = link.dataset.state = state;
}

async function readEvents(last) {
  const response = await call("/api/v1/events", { headers: { "Last-Event-ID": last } });
  showLink("live");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return last;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const line = block.split("\n").find((part) => part.startsWith("data: "));
        if (!line) continue;
        const event = JSON.parse(line.slice(6));
        last = String(event.event);
        if (event.type === "answer") showAnswer(event, true);
        else showStatus(event);
      }
    }
  } catch { return last; }
}

async function keepEvents() {
  let last = "0";  // from the first event that is remembered, so that none falls between loading and listening
  for (;;) {
    try {
      last = await readEvents(last);
      showLink("connecting");
      await loadStreams();
    } catch { showLink("offline"); }
    await new Promise((done) => setTimeout(done, RETRY));
  }
}

async function loadStreams() {
  const { model, streams } = await (await call("/api/v1/streams")).json();
  byId("model").textContent = model;
  byId("no-streams").hidden = streams.length > 0;
  streams.forEach(showStatus);
}

async function start() {
  if (isStarted) return;
  await loadStreams();
  isStarted = true;
  byId("login").hidden = true;
  const { answers } = await (await call(`/api/v1/answers?limit=${SHOWN}`)).json();
  answers.reverse().forEach((answer) => showAnswer(answer, false));
  keepPictures();
  keepEvents();
}

async function keepStarting() {
  while (!isStarted) {
    try { await start(); } catch { showLink("offline"); }
    await new Promise((done) => setTimeout(done, RETRY));
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  sessionStorage.setItem("token", token);
  start().catch((error) => { byId("login").querySelector("label").textContent = error.message; });
});

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("ask-button");
  const shown = byId("ask-answer");
  button.disabled = true;
  shown.replaceChildren(make("div", "quiet", "thinking …"));
  try {
    const body = JSON.stringify({ stream: byId("ask-stream").value, question: byId("ask-question").value });
    const response = await call("/api/v1/ask", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    shown.replaceChildren(answerBox("div", await response.json()));
  } catch (error) {
    shown.replaceChildren(make("div", "answer error", error.message));
  } finally {
    button.disabled = false;
  }
});

keepStarting();
