// The film demo: shows slates, reports what the visitor does, shows what changed.

import { Problem, call, fetchFilms, knownFilm, randomId } from "./api.js";
import { buildCard, buildSkeleton } from "./cards.js";
import { byId, el, percent } from "./dom.js";
import { showCharts, showKnowledge } from "./knowledge.js";
import { openWhy } from "./why.js";

const N_SLOTS = 12;
const N_HISTORY = 20;
const SURFACES = { home: "Home", playlist: "Playlist", similar: "Similar" };
const MOVIELENS_USERS = ["ml-1", "ml-7", "ml-13", "ml-94", "ml-405"];
const STORAGE_KEY = "hone.visitor";
// The version is asked for often while a reward is on its way into the model.
const WATCH_MS = 600;
const WATCH_FOR_MS = 12_000;
const IDLE_MS = 5_000;

const state = {
  own: sessionStorage.getItem(STORAGE_KEY) ?? randomId("visitor-"),
  visitor: "",
  surface: "home",
  seed: null,
  declared: {},
  slate: null,
  liveVersion: 0,
  hidden: new Set(),
  history: [],
  turn: 0,
  watchUntil: 0,
};
state.visitor = state.own;
sessionStorage.setItem(STORAGE_KEY, state.own);

// Slates ---------------------------------------------------------------------------------------------------------

async function nextSlate(said = "") {
  const turn = ++state.turn;
  setBusy(true);
  try {
    const answer = await call("POST", "/v1/recommend", {
      surface: state.surface,
      user_id: state.visitor,
      context: { device: innerWidth < 700 ? "phone" : "desktop" },
      n: N_SLOTS,
      seed_item_id: state.seed,
      exclude: [...state.hidden],
    });
    await fetchFilms(answer.body.items.map((item) => item.item_id));
    if (turn !== state.turn) return;
    showSlate(answer, said);
    setBusy(false);
    await refreshKnowledge(turn);
  } catch (error) {
    if (turn === state.turn) showProblem(error, () => nextSlate(said));
  }
}

function showSlate({ body, worker, latencyMs }, said) {
  const previous = state.slate?.surface === body.surface ? state.slate.items.map((item) => item.item_id) : null;
  const changes = compare(previous, body.items.map((item) => item.item_id));
  state.slate = body;
  state.history.push({ version: body.model_version, genres: body.items.map((item) => knownFilm(item.item_id).genres) });
  state.history.splice(0, state.history.length - N_HISTORY);
  byId("problem").hidden = true;
  byId("explore-rate").textContent = percent(body.explore_rate);
  byId("worker").textContent = worker ?? "–";
  byId("latency").textContent = `${Math.round(latencyMs)} ms`;
  showVersion(body.model_version);
  showWallTitle();
  const degraded = body.degraded.length > 0 ? `Answered without: ${body.degraded.join(", ")}.` : "";
  byId("news").textContent = [said, previous ? summary(changes) : "", degraded].filter(Boolean).join(" ");
  showCards(body.items, changes);
}

// Return {kind: "new" | "up" | "same" | "first", by} of each film. Moves are counted among the films of both slates, or
// a film that left would move up everything below it.
function compare(previous, ids) {
  if (previous === null) return ids.map(() => ({ kind: "first", by: 0 }));
  const before = previous.filter((id) => ids.includes(id));
  const now = ids.filter((id) => previous.includes(id));
  return ids.map((id) => {
    const by = before.indexOf(id) - now.indexOf(id);
    return { kind: previous.includes(id) ? (by > 0 ? "up" : "same") : "new", by };
  });
}

function summary(changes) {
  const count = (kind) => changes.filter((c) => c.kind === kind).length;
  const [fresh, up] = [count("new"), count("up")];
  const said = [fresh > 0 ? `${fresh} new` : "", up > 0 ? `${up} moved up` : ""].filter(Boolean).join(", ");
  return said ? `${said}.` : "Nothing new, nothing moved up.";
}

function showCards(items, changes) {
  const wall = byId("wall");
  const focusedSlot = wall.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.slot : null;
  const before = new Map([...wall.children].map((card) => [card.dataset.itemId, card.getBoundingClientRect()]));
  if (items.length === 0) {
    wall.replaceChildren(el("li", { class: "empty" }, "Nothing left to recommend here. Try another surface, or start over as a new visitor."));
    return;
  }
  const declared = state.declared[state.surface]?.reward?.events ?? { skip: {}, dislike: {} };
  const actions = { choose, similar: openSimilar, dismiss, why: (slot) => openWhy(state.slate.event_id, slot) };
  wall.replaceChildren(...items.map((item, index) => buildCard(item, changes[index], Object.keys(declared), actions)));
  animate(wall, before);
  // The card that had the focus may be gone; whoever uses the keyboard stays in the same place of the wall.
  if (focusedSlot) wall.children[Math.min(focusedSlot, items.length - 1)].querySelector("button").focus({ preventScroll: true });
}

function animate(wall, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const card of wall.children) {
    const from = before.get(card.dataset.itemId);
    const to = card.getBoundingClientRect();
    const steps = from ? [{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }] : [{ opacity: 0 }, { opacity: 1 }];
    card.animate(steps, { duration: 320, easing: "cubic-bezier(.2, .7, .2, 1)" });
  }
}

// Events ---------------------------------------------------------------------------------------------------------

function act(type, { item_id, slot }, said) {
  if (byId("wall").getAttribute("aria-busy") === "true") return;
  report({ id: randomId(`${type}-`), type, event_id: state.slate.event_id, item_id, slot, user_id: state.visitor }, said);
}

// A second try sends the same event with the same id, so that it counts once whatever became of the first.
async function report(event, said) {
  setBusy(true);
  try {
    await call("POST", "/v1/events", event);
  } catch (error) {
    showProblem(error, () => report(event, said));
    return;
  }
  state.watchUntil = Date.now() + WATCH_FOR_MS;
  watch();
  await nextSlate(said);
}

const choose = (item) => act("click", item, `You chose ${knownFilm(item.item_id).title}.`);

function dismiss(type, item) {
  state.hidden.add(item.item_id);
  act(type, item, `${type === "skip" ? "Skipped" : "Disliked"} ${knownFilm(item.item_id).title}.`);
}

function openSimilar({ item_id }) {
  state.seed = item_id;
  setSurface("similar");
  byId("wall-title").scrollIntoView({ block: "nearest" });
}

function setSurface(surface) {
  state.surface = surface;
  if (surface !== "similar") state.seed = null;
  showSurfaces();
  return nextSlate();
}

// What Hone knows, and the version that learns ------------------------------------------------------------------

async function refreshKnowledge(turn) {
  const { body: user } = await call("GET", `/v1/users/${encodeURIComponent(state.visitor)}`);
  await fetchFilms(user.recent.map((interaction) => interaction.item_id));
  if (turn !== state.turn) return;
  for (const { item_id, reward } of user.recent) if (reward < 0) state.hidden.add(item_id);
  const topGenres = showKnowledge(user);
  showCharts(state.history, topGenres);
}

let timer = 0;

async function watch() {
  clearTimeout(timer);
  const model = state.declared[state.surface]?.model;
  if (model && !document.hidden) {
    try {
      const { body } = await call("GET", "/readyz");
      showVersion(body.models[model] ?? 0);
    } catch {
      state.liveVersion = 0;
    }
  }
  clearTimeout(timer);
  timer = setTimeout(watch, Date.now() < state.watchUntil ? WATCH_MS : IDLE_MS);
}

// Workers apply a new version within a moment of each other: the newest one seen is the model's.
function showVersion(version) {
  state.liveVersion = Math.max(state.liveVersion, version);
  const shown = byId("model-version");
  if (shown.textContent !== String(state.liveVersion)) {
    shown.textContent = state.liveVersion;
    shown.animate?.([{ color: "var(--accent)" }, {}], { duration: 1200 });
  }
  const ranked = state.slate?.model_version ?? version;
  byId("model-note").textContent = ranked < state.liveVersion ? `slate by ${ranked}` : "";
}

// Controls and states --------------------------------------------------------------------------------------------

function setBusy(busy) {
  byId("wall").setAttribute("aria-busy", busy);
}

function showProblem(error, retry) {
  if (!(error instanceof Problem)) console.error(error);
  setBusy(false);
  const { title = "The page failed", detail = String(error), path = null } = error;
  byId("problem").replaceChildren(
    el("strong", {}, title),
    el("span", {}, path && path !== "$" ? `${detail} (${path})` : detail),
    el("button", { type: "button", onclick: retry }, "Try again"),
  );
  byId("problem").hidden = false;
  if (byId("wall").querySelector(".skeleton")) byId("wall").replaceChildren();
}

function showWallTitle() {
  const titles = { home: "For you", playlist: "Your playlist" };
  byId("wall-title").textContent = titles[state.surface] ?? `More like ${knownFilm(state.seed).title}`;
}

function showSurfaces() {
  const buttons = Object.entries(SURFACES).map(([name, label]) =>
    el("button", {
      type: "button",
      "aria-pressed": String(name === state.surface),
      disabled: name === "similar" && state.seed === null,
      title: name === "similar" && state.seed === null ? "Choose “More like this” on a film" : null,
      onclick: () => setSurface(name),
    }, label));
  byId("surfaces").replaceChildren(...buttons);
}

function showVisitors() {
  const option = (id, label) => el("option", { value: id, selected: id === state.visitor }, label);
  const users = MOVIELENS_USERS.map((id) => option(id, `MovieLens ${id}`));
  byId("visitor").replaceChildren(option(state.own, `You (${state.own.slice(-6)})`), ...users);
}

function becomeVisitor(id) {
  Object.assign(state, { visitor: id, slate: null, history: [], hidden: new Set() });
  showVisitors();
  return start();
}

byId("visitor").addEventListener("change", (event) => becomeVisitor(event.target.value));
byId("new-visitor").addEventListener("click", () => {
  state.own = randomId("visitor-");
  sessionStorage.setItem(STORAGE_KEY, state.own);
  becomeVisitor(state.own);
});
byId("refresh").addEventListener("click", () => nextSlate());
document.addEventListener("visibilitychange", watch);

async function start() {
  const turn = ++state.turn;
  byId("news").textContent = "";
  byId("problem").hidden = true;
  byId("wall").replaceChildren(...Array.from({ length: N_SLOTS }, buildSkeleton));
  setBusy(true);
  try {
    if (Object.keys(state.declared).length === 0) state.declared = (await call("GET", "/v1/surfaces")).body;
    // What the visitor turned away in an earlier visit is known only after this.
    await refreshKnowledge(turn);
  } catch (error) {
    if (turn === state.turn) showProblem(error, start);
    return;
  }
  if (turn === state.turn) await nextSlate();
}

showVisitors();
showSurfaces();
await start();
watch();
