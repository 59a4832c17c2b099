// One film on the wall.

import { knownFilm } from "./api.js";
import { decimal, el, percent, probability, signed } from "./dom.js";

const REASONS = { greedy: "greedy", explore: "explore", discovery: "discovery", sponsored: "sponsored", pinned: "pinned" };

// actions: {choose(item), similar(item), dismiss(type, item), why(slot)}; eventTypes: what the surface can learn from.
export function buildCard(item, change, eventTypes, actions) {
  const film = knownFilm(item.item_id);
  const line = el("span", { class: "line", "aria-hidden": "true" });
  // Set from script, since the page's policy refuses style attributes.
  line.style.setProperty("--p", percent(Math.max(item.propensity, 0.005)));
  const facts = [film.year, film.runtime].filter(Boolean).join(" · ");
  const choose = el("button", { class: "film", type: "button", onclick: () => actions.choose(item) },
    el("span", { class: "title" }, film.title),
    el("span", { class: "meta" }, facts),
    el("span", { class: "meta" }, film.directors.slice(0, 2).join(", ")),
    el("span", { class: "tags" }, film.genres.slice(0, 3).join(" / ")),
  );
  const turnAway = ["skip", "dislike"].filter((type) => eventTypes.includes(type));
  return el("li", { class: `card ${change.kind}`, "data-item-id": item.item_id, "data-slot": item.slot, "data-reason": item.reason },
    el("div", { class: "over" },
      el("span", { class: "slot" }, String(item.slot + 1)),
      changeMark(change),
      el("span", { class: `badge ${item.reason}` }, REASONS[item.reason] ?? item.reason),
    ),
    choose,
    el("dl", { class: "figures" },
      figure("Propensity", probability(item.propensity), "propensity"),
      figure("Score", score(item), "score"),
      figure("Source", item.source, "source"),
    ),
    el("div", { class: "acts" },
      act("Why?", film, () => actions.why(item.slot), "why"),
      act("More like this", film, () => actions.similar(item), "similar"),
      el("span", { class: "gap" }),
      turnAway.map((type) => act(type === "skip" ? "Skip" : "Dislike", film, () => actions.dismiss(type, item), type)),
    ),
    line,
  );
}

export function buildSkeleton() {
  return el("li", { class: "card skeleton", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
}

function score({ score: expected, boost }) {
  const shown = decimal(expected, 3);
  return boost === 0 ? shown : `${shown} ${signed(boost, 3)}`;
}

function figure(name, value, kind) {
  return el("div", {}, el("dt", {}, name), el("dd", { class: kind }, value));
}

function act(label, film, onclick, kind) {
  return el("button", { type: "button", class: `act ${kind}`, "aria-label": `${label} ${film.title}`, onclick }, label);
}

function changeMark({ kind, by }) {
  if (kind === "new") return el("span", { class: "change" }, "New");
  if (kind === "up") return el("span", { class: "change" }, `\u2191 ${by}`);
  return null;
}
