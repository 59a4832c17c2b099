// Why a slot holds what it holds: the explanation of a decision, in words and numbers.

import { call, fetchFilms, knownFilm } from "./api.js";
import { byId, decimal, el, signed } from "./dom.js";

const PARTS = { greedy: "for being best", shortlist: "for being near the best", uniform: "what every film has" };
const SOURCES = {
  als: "chosen by visitors with a similar history",
  popular: "chosen most often",
  fresh: "newest",
  similar: "closest to the film you opened",
  random: "drawn at random, so that every film has a chance",
};
const DIGITS = 6;
// A decision reaches the journal a moment after its answer has left.
const RETRIES = 4;
const RETRY_MS = 250;

export async function openWhy(eventId, slot) {
  const dialog = byId("why");
  const title = el("h2", { id: "why-title" }, "Why this film?");
  const content = el("div", {}, el("p", { class: "none" }, "Reading the decision…"));
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(el("header", {}, title, close), content);
  dialog.showModal();
  try {
    const decision = await fetchDecision(eventId);
    const explained = decision.slots[slot];
    await fetchFilms([explained.item_id, explained.greedy_item_id]);
    title.textContent = knownFilm(explained.item_id).title;
    content.replaceChildren(...body(decision, explained));
  } catch (error) {
    title.textContent = error.title ?? "No explanation";
    content.replaceChildren(el("p", { role: "alert" }, error.detail ?? String(error)));
  }
}

async function fetchDecision(eventId) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return (await call("GET", `/v1/decisions/${encodeURIComponent(eventId)}`)).body;
    } catch (error) {
      if (error.status !== 404 || attempt === RETRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

byId("why").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close();
});

function body(decision, slot) {
  const { item: itemFeatures = {}, ...otherFeatures } = slot.features;
  return [
    el("p", { class: "lead" }, inWords(decision, slot)),
    arithmetic(slot),
    draw(slot),
    section("Score", scores(decision, slot)),
    section("Features of the film", features(itemFeatures)),
    ...Object.entries({ ...decision.features, ...otherFeatures }).map(([name, values]) => section(`Features: ${name}`, features(values))),
    section("Made with", facts(decision, slot)),
  ];
}

function inWords(decision, slot) {
  const title = knownFilm(slot.item_id).title;
  const greedy = slot.arithmetic.greedy;
  const nTied = greedy > 0 ? Math.round((1 - decision.exploration.rate) / greedy) : 0;
  const place = `slot ${slot.slot + 1}`;
  const best = nTied > 1 ? `tied with ${nTied - 1} other${nTied > 2 ? "s" : ""} for best in ${place}` : `the best choice for ${place}`;
  const start = {
    greedy: `${title} was ${best}.`,
    explore: greedy > 0 ? `${title} was ${best}, and the draw to explore fell on it too.` : `${title} was drawn to explore; the best choice for ${place} was ${knownFilm(slot.greedy_item_id).title}.`,
    discovery: `${place[0].toUpperCase()}${place.slice(1)} was kept for discovery: only films with little feedback could be drawn. ${greedy > 0 ? `${title} was ${best} among them.` : `The best of them was ${knownFilm(slot.greedy_item_id).title}.`}`,
  };
  const gaveWay = slot.rules_that_gave_way.length > 0 ? ` No film was left under every rule, so these gave way: ${slot.rules_that_gave_way.join(", ")}.` : "";
  return `${start[slot.reason] ?? `${title} was placed: ${slot.reason}.`} ${slot.in_words.replace(slot.item_id, "It")}${gaveWay}`;
}

function arithmetic(slot) {
  const rows = Object.entries(slot.arithmetic).map(([part, value]) =>
    el("tr", {}, el("th", { scope: "row" }, part), el("td", { class: "number", "data-part": part }, value.toFixed(DIGITS)), el("td", {}, PARTS[part] ?? "")));
  return el("table", { class: "sum" },
    el("caption", {}, "How the propensity adds up"),
    el("tbody", {}, rows),
    el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "propensity"), el("td", { class: "number", "data-part": "propensity" }, slot.propensity.toFixed(DIGITS)), el("td", {}, "as logged"))),
  );
}

// The unit interval: the film's share of it, and the number that was drawn.
function draw(slot) {
  const share = el("i", { class: "share" });
  share.style.setProperty("--from", `${slot.cumulative_before * 100}%`);
  share.style.setProperty("--p", `${Math.max(slot.propensity * 100, 0.5)}%`);
  const drawn = el("i", { class: "drawn" });
  drawn.style.setProperty("--from", `${slot.uniform_drawn * 100}%`);
  const end = slot.cumulative_before + slot.propensity;
  return el("figure", { class: "draw" },
    el("div", { class: "interval", "aria-hidden": "true" }, share, drawn),
    el("figcaption", {}, `The number drawn was ${slot.uniform_drawn.toFixed(4)}; this film holds ${slot.cumulative_before.toFixed(4)} to ${end.toFixed(4)}.`),
  );
}

function scores(decision, slot) {
  const boosts = decision.rules.filter((rule) => "boost" in rule || "weight" in rule).map((rule) => rule.kind);
  const from = slot.boost !== 0 && boosts.length > 0 ? ` (${boosts.join(", ")})` : "";
  return pairs([
    ["Expected reward", decimal(slot.score, DIGITS)],
    ["Boosts of rules", `${signed(slot.boost, DIGITS)}${from}`],
    ["Drawn by", decimal(slot.boosted_score, DIGITS)],
    ["Best for this slot", knownFilm(slot.greedy_item_id).title],
  ]);
}

function features(values) {
  const entries = Object.entries(values);
  if (entries.length === 0) return el("p", { class: "none" }, "none");
  return el("ul", { class: "features" }, entries.map(([name, value]) => el("li", {}, value === 1 ? name : `${name} × ${Number(value.toFixed(3))}`)));
}

function facts(decision, slot) {
  const { exploration, versions } = decision;
  return pairs([
    ["Source", SOURCES[slot.source] ? `${slot.source}: ${SOURCES[slot.source]}` : slot.source],
    ["Candidates", decision.n_candidates],
    ["Exploration", `${exploration.kind}, rate ${exploration.rate}, uniform share ${exploration.uniform_share}, shortlist ${exploration.shortlist}`],
    ["Rules", decision.rules.map((rule) => rule.kind).join(", ") || "none"],
    ["Model", versions.model],
    ["Index", versions.index],
    ["Catalogue", versions.catalogue],
    ["Decision", decision.event_id],
    ["Decided", new Date(decision.decided_at_unix_ms).toLocaleString()],
  ]);
}

function pairs(entries) {
  return el("dl", { class: "pairs" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}

function section(title, content) {
  return el("section", {}, el("h3", {}, title), content);
}
