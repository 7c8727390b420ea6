// Asking: of one stream the answer is shown as it is written, and what was said before goes along; of several, each
// answers for itself.

import { byId, clock, count, fact, make, milliseconds, percent, ticked, tickBoxes } from "./dom.js";
import { send, told } from "./net.js";

const MAX_TURNS = 8;   // the service takes more, but every turn costs tokens
let turns = [];        // of the conversation with `partner`
let partner = "";

export function showNames(names) { tickBoxes(byId("ask-streams"), names); }

export function certainty(answer) {
  return answer.confidence === null ? null : fact(percent(answer.confidence), "sure");
}

export function factsOf(answer) {
  const { visual, visual_before_merge: before, recalled } = answer.tokens;
  return make("div", "facts",
    make("span", "", clock(answer.answered_at)),
    certainty(answer),
    fact(milliseconds(answer.event_to_answer_ms), "event to answer", "from the newest frame's capture"),
    fact(`${count(before)} → ${count(visual)}`, "tokens", "visual tokens before and after merging"),
    recalled ? fact(count(recalled), "recalled", `brought back in ${milliseconds(answer.seconds.recall * 1000)}`) : null);
}

function asked() {
  const type = byId("ask-type").value;
  const span = byId("ask-window").valueAsNumber;
  const choices = byId("ask-choices").value.split(",").map((word) => word.trim()).filter(Boolean);
  return {
    question: byId("ask-question").value.trim(),
    type,
    ...(type === "choice" ? { choices } : {}),
    ...(span > 0 ? { window_s: span } : {}),
  };
}

async function askOne(stream, body, box) {
  const words = make("div", "text", "");
  box.append(words);
  const response = await send("POST", "/api/v1/ask", { ...body, stream, turns }, { Accept: "text/event-stream" });
  for await (const { kind, content } of told(response)) {
    if (kind === "error") throw new Error(content.error);
    if (kind === "text") words.textContent += content.text;
    if (kind !== "answer") continue;
    words.textContent = content.answer || "(no words)";
    box.append(factsOf(content));
    turns = [...turns, { question: body.question, answer: content.answer }].slice(-MAX_TURNS);
    return;
  }
  throw new Error("the answer broke off; ask again");
}

async function askAll(streams, body, box) {
  const { answers } = await (await send("POST", "/api/v1/ask", { ...body, streams })).json();
  for (const answer of answers) {
    const said = answer.error
      ? [make("div", "error", answer.error)]
      : [make("div", "text", answer.answer || "(no words)"), factsOf(answer)];
    box.append(make("div", "said", make("div", "who", answer.stream), ...said));
  }
}

function begin(streams) {
  const now = streams.join(", ");
  if (now !== partner) turns = [];
  partner = now;
}

async function ask(event) {
  event.preventDefault();
  const streams = ticked(byId("ask-streams"));
  const body = asked();
  if (!streams.length || !body.question) return;
  begin(streams);
  const said = make("div", "answer");
  const turn = make("li", "turn", make("div", "question", `${partner}: ${body.question}`), said);
  turn.setAttribute("aria-busy", "true");
  byId("talk").append(turn);
  byId("ask-button").disabled = true;
  try {
    await (streams.length === 1 ? askOne(streams[0], body, said) : askAll(streams, body, said));
    byId("ask-question").value = "";
  } catch (error) {
    said.append(make("div", "error", error.message));
  } finally {
    byId("ask-button").disabled = false;
    turn.removeAttribute("aria-busy");
    byId("ask-anew").hidden = false;
    byId("ask-question").placeholder = streams.length === 1 ? "Ask on, or something else" : "What is happening?";
    byId("talk").scrollTop = byId("talk").scrollHeight;
  }
}

export function listen() {
  byId("ask").addEventListener("submit", ask);
  byId("ask-type").addEventListener("change", () => {
    byId("ask-choices-field").hidden = byId("ask-type").value !== "choice";
    byId("ask-choices").required = byId("ask-type").value === "choice";
  });
  byId("ask-anew").addEventListener("click", () => {
    turns = [];
    byId("talk").replaceChildren();
    byId("ask-anew").hidden = true;
    byId("ask-question").focus();
  });
}
