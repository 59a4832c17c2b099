// Talk to the API. Every failure becomes a Problem, also when nothing answered.

const TIMEOUT_MS = 10_000;

export class Problem extends Error {
  constructor({ title, status = 0, detail, path = null }) {
    super(detail);
    Object.assign(this, { title, status, detail, path });
  }
}

// Return {body, worker, latencyMs}; throw a Problem otherwise.
export async function call(method, path, body) {
  const started = performance.now();
  const options = { method, signal: AbortSignal.timeout(TIMEOUT_MS) };
  if (body !== undefined) {
    options.body = typeof body === "string" ? body : JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  let response;
  let text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Problem({
      title: late ? "No answer in time" : "Hone cannot be reached",
      detail: late ? `nothing came back within ${TIMEOUT_MS / 1000} seconds` : "is the service still running?",
    });
  }
  const latencyMs = performance.now() - started;
  const parsed = parse(text);
  if (!response.ok) {
    const fallback = { title: response.statusText || "Error", detail: text.slice(0, 300) || "no detail was given" };
    throw new Problem({ ...fallback, ...(parsed !== null && typeof parsed === "object" ? parsed : {}), status: response.status });
  }
  return { body: parsed, text, status: response.status, worker: response.headers.get("X-Hone-Worker"), latencyMs };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// randomUUID exists in secure contexts only; the demo may be opened by an address on the local network.
export function randomId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const films = new Map();

// Return what the catalogue says about each id, asking only for those not seen before.
export async function fetchFilms(ids) {
  const missing = [...new Set(ids)].filter((id) => !films.has(id));
  if (missing.length > 0) {
    const { body } = await call("GET", `/v1/items?ids=${missing.map(encodeURIComponent).join(",")}`);
    for (const item of body) films.set(item.id, film(item));
  }
  return ids.map(knownFilm);
}

// An item may have left the catalogue since; it is then known by its id only.
export const knownFilm = (id) => films.get(id) ?? film({ id, title: id, attributes: {} });

function film({ id, title, attributes, creator }) {
  const { year, genres = [], runtime, directors = creator ? [creator] : [] } = attributes;
  return { id, title, genres, year: year ? String(Math.round(year)) : "", runtime: runtime ? `${Math.round(runtime)} min` : "", directors };
}
