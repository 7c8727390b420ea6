// Standing queries: what is asked by itself, how it stands, and changing that where the service lets one.

import { byId, button, every, make, set, ticked, tickBoxes, toggle } from "./dom.js";
import { can, load, send } from "./net.js";

const LOOK_EVERY = 5000;  // milliseconds
const KINDS = { text: "in words", yes_no: "yes or no", choice: "one of", number: "a number", json: "JSON" };
const rows = new Map();
let mayChange = true;

export function showNames(names) { tickBoxes(byId("query-streams"), names); }

const path = (name, rest = "") => `/api/v1/queries/${encodeURIComponent(name)}${rest}`;

function tell(line) { byId("queries-error").textContent = line; }

async function change(work) {
  try {
    await work();
    tell("");
    await loadQueries();
  } catch (error) {
    if (error.status === 403) {
      mayChange = false;
      showForm();
      for (const row of rows.values()) row.acts.hidden = true;
    }
    tell(error.message);
    throw error;
  }
}

const quietly = (work) => change(work).catch(() => {});

function addRow(name) {
  const row = { words: make("p", "text"), facts: make("p", "facts"), name };
  row.toggle = toggle(`Ask ${name}`, (enabled) => change(() => send("PUT", path(name, "/enabled"), { enabled })));
  row.toggle.hidden = !can("PUT", "/api/v1/queries/{name}/enabled");
  row.now = button("Ask now", "plain", () => quietly(() => send("POST", path(name, "/trigger"), {})));
  row.now.setAttribute("aria-label", `Ask ${name} now`);
  row.gone = button("Delete", "plain", () => {
    if (window.confirm(`Delete the standing query ${name}?`)) quietly(() => send("DELETE", path(name)));
  });
  row.gone.setAttribute("aria-label", `Delete ${name}`);
  row.acts = make("div", "acts", row.now, row.gone, row.toggle);
  row.acts.hidden = !mayChange;
  row.box = make("li", "query", make("div", "head", make("h3", "", name), row.acts), row.words, row.facts);
  rows.set(name, row);
  byId("queries").append(row.box);
  return row;
}

function showQuery(query) {
  const row = rows.get(query.name) || addRow(query.name);
  const on = query.asked_of ?? query.streams;
  const off = query.streams.filter((stream) => !on.includes(stream));
  const kind = KINDS[query.type] ?? "in words";
  set(row.toggle, query.enabled !== false);
  row.box.classList.toggle("off", query.enabled === false);
  row.now.hidden = !(query.on_event ?? []).includes("manual") || !can("POST", "/api/v1/queries/{name}/trigger");
  // the configuration file's own can be paused only
  row.gone.hidden = !query.added || !can("DELETE", "/api/v1/queries/{name}");
  row.words.textContent = query.ask;
  const facts = [
    query.enabled === false ? "paused" : query.every ? `every ${query.every} s` : "when called for",
    query.type === "choice" ? `${kind} ${query.choices.join(", ")}` : kind,
    on.length ? `of ${on.join(", ")}` : "",
    off.length ? `not of ${off.join(", ")}` : "",
  ];
  row.facts.replaceChildren(...facts.filter(Boolean).map((words) => make("span", "", words)));
}

export async function loadQueries() {
  const { queries } = await load("/api/v1/queries");
  for (const name of [...rows.keys()]) {
    if (queries.some((query) => query.name === name)) continue;
    rows.get(name).box.remove();
    rows.delete(name);
  }
  queries.forEach(showQuery);
  byId("no-queries").hidden = queries.length > 0;
}

function showForm() { byId("add-query").hidden = !mayChange || !can("POST", "/api/v1/queries"); }

async function add(event) {
  event.preventDefault();
  const type = byId("query-type").value;
  const choices = byId("query-choices").value.split(",").map((word) => word.trim()).filter(Boolean);
  const query = {
    name: byId("query-name").value.trim(),
    ask: byId("query-ask").value.trim(),
    streams: ticked(byId("query-streams")),
    type,
    every: byId("query-every").valueAsNumber,
    ...(type === "choice" ? { choices } : {}),
  };
  try {
    await change(() => send("POST", "/api/v1/queries", query));
    byId("query-form").reset();
    byId("add-query").open = false;
  } catch (error) {
    if (error.status === 404 || error.status === 405) byId("add-query").hidden = true;
  }
}

// Hidden where the token may not see them.
export async function start() {
  try {
    await loadQueries();
  } catch (error) {
    if (error.status !== 403) throw error;
    byId("queries-section").hidden = true;
    return;
  }
  showForm();
  byId("query-form").addEventListener("submit", add);
  byId("query-type").addEventListener("change", () => {
    byId("query-choices-field").hidden = byId("query-type").value !== "choice";
    byId("query-choices").required = byId("query-type").value === "choice";
  });
  every(LOOK_EVERY, () => loadQueries().catch(() => {}));
}
