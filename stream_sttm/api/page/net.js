// Talking to the service: the access token, refusals as one line, server-sent events. They are read with fetch, not
// EventSource, so that the token can be sent along.

let token = sessionStorage.getItem("token") || "";
let whenLocked = () => {};

export class Refused extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

export function onLocked(callback) { whenLocked = callback; }

export function unlock(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const line = body.error || `the service answered ${response.status}`;
  if (response.status === 401) whenLocked(line);
  throw new Refused(response.status, line);
}

export async function load(path) {
  return (await call(path)).json();
}

export async function send(method, path, body, headers = {}) {
  const json = body === undefined ? {} : { body: JSON.stringify(body) };
  return call(path, { method, headers: { "Content-Type": "application/json", ...headers }, ...json });
}

export async function picture(path) {
  const response = await call(path);
  const address = URL.createObjectURL(await response.blob());
  return { address, capturedAt: Number(response.headers.get("X-Captured-At")) };
}

// The events of a response as {kind, content}, until it ends.
export async function* told(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const of = (field) => block.split("\n").find((line) => line.startsWith(field))?.slice(field.length);
        const content = of("data: ");
        if (content) yield { kind: of("event: "), content: JSON.parse(content) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// What the service can do, by its own description: whether a path takes a method, and a parameter.
let paths = {};
export async function learn() { ({ paths } = await load("/openapi.json")); }
export const can = (method, path) => Boolean(paths[path]?.[method.toLowerCase()]);
export const takes = (path, name) =>
  Boolean(paths[path]?.get?.parameters?.some((parameter) => parameter.name === name));
