// The page: begins once the service lets it in, then listens to what happens and tells each part of it.

import * as ask from "./ask.js";
import { byId, pause } from "./dom.js";
import * as mosaic from "./mosaic.js";
import { call, learn, onLocked, told, unlock } from "./net.js";
import * as queries from "./queries.js";
import { keepPictures, loadStreams, names, onMemory, onNames, showLatest, showStatus } from "./streams.js";
import * as timeline from "./timeline.js";

const RETRY = 2000;  // milliseconds
let isStarted = false;

function showLink(state) {
  const link = byId("link");
  if (link.dataset.state !== state) link.textContent = link.dataset.state = state;
}

function hear(event) {
  if (event.type === "status") {
    showStatus(event);
  } else if (event.type === "answer") {
    timeline.showAnswer(event);
    showLatest(event);
  } else {
    timeline.showEvent(event);
  }
}

// Events of one stream, or of all where none is named, for ever.
async function keepEvents(stream) {
  const path = stream ? `/api/v1/events?stream=${encodeURIComponent(stream)}` : "/api/v1/events";
  let last = "0";  // from the first event that is remembered, so that none falls between loading and listening
  for (;;) {
    try {
      const response = await call(path, { headers: { "Last-Event-ID": last } });
      showLink("live");
      for await (const { content } of told(response)) {
        last = String(content.event);
        try { hear(content); } catch (error) { reportError(error); }  // a defect of ours ends no listening
      }
    } catch { /* told below, by whether the streams can be had */ }
    try {
      showLink("connecting");
      await loadStreams();
    } catch { showLink("offline"); }
    await pause(RETRY);
  }
}

// A token for some streams hears of each by itself.
async function heard() {
  try {
    await timeline.loadLine();
    return [""];
  } catch (error) {
    if (error.status !== 403) throw error;
    timeline.limitTo(names());
    await timeline.loadLine();
    return names();
  }
}

async function start() {
  if (isStarted) return;
  await learn();
  await loadStreams();
  const wells = await heard();
  if (isStarted) return;
  isStarted = true;
  byId("login").hidden = true;
  document.querySelector("main").hidden = false;
  wells.forEach(keepEvents);
  keepPictures();
  mosaic.start();
  await queries.start();
}

async function keepStarting() {
  while (!isStarted) {
    try { await start(); } catch { showLink("offline"); }
    await pause(RETRY);
  }
}

onNames((known) => [ask, timeline, queries, mosaic].forEach((part) => part.showNames(known)));
onMemory(mosaic.look);
onLocked(() => {
  if (!isStarted) document.querySelector("main").hidden = true;
  byId("login").hidden = false;
});
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  unlock(byId("token").value);
  byId("login-error").textContent = "";
  start().catch((error) => { byId("login-error").textContent = error.message; });
});
ask.listen();
timeline.listen();
keepStarting();
