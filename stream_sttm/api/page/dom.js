// Making elements and words. Whatever came from the service is set as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

export function button(words, className, act) {
  const made = make("button", className, words);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// An on/off switch; `throwIt(isOn)` may refuse, which puts it back.
export function toggle(label, throwIt) {
  const made = button("", "switch", async () => {
    const wanted = made.getAttribute("aria-checked") !== "true";
    made.disabled = true;
    await throwIt(wanted).then(() => set(made, wanted), () => {});
    made.disabled = false;
    if (document.activeElement === document.body) made.focus();
  });
  made.setAttribute("role", "switch");
  made.setAttribute("aria-label", label);
  return made;
}

export function set(made, isOn) { made.setAttribute("aria-checked", String(isOn)); }

// A box to tick for each name; keeps what was ticked, and ticks the first where nothing is.
export function tickBoxes(box, names) {
  const before = ticked(box);
  box.replaceChildren(...names.map((name) => {
    const input = make("input");
    input.type = "checkbox";
    input.value = name;
    input.checked = before.includes(name);
    return make("label", "chip", input, make("span", "", name));
  }));
  if (!ticked(box).length && names.length) box.querySelector("input").checked = true;
}

export const ticked = (box) => [...box.querySelectorAll("input:checked")].map((input) => input.value);

export function options(select, names, first) {
  const chosen = select.value;
  const given = names.map((name) => [name, name]);
  select.replaceChildren(...(first ? [["", first], ...given] : given).map(([value, words]) => {
    const option = make("option", "", words);
    option.value = value;
    return option;
  }));
  if (names.includes(chosen)) select.value = chosen;
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString();
export const count = (number) => number.toLocaleString("en");
export const percent = (share) => `${(share * 100).toFixed(share > 0.1 ? 0 : 1)} %`;
export const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : seconds(ms / 1000));

export function seconds(s) {
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  return s < 6000 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

export function fact(value, label, title) {
  const made = make("span", "", make("b", "", value), ` ${label}`);
  if (title) made.title = title;
  return made;
}

export const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
export const every = async (ms, work) => {
  for (;;) {
    if (!document.hidden) await work();
    await pause(typeof ms === "function" ? ms() : ms);
  }
};
