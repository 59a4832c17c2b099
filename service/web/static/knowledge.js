// The panel: what is stored about the visitor, and how the slates moved.

import { knownFilm } from "./api.js";
import { el, byId, percent, svg } from "./dom.js";

const N_RECENT = 7;
const N_GENRES = 5;
// With more, nearly every slate matches and the line says nothing.
const N_TOP_GENRES = 1;
const VERBS = { click: "chose", skip: "skipped", dislike: "disliked", like: "liked", purchase: "bought" };

// Show a user's profile and interactions; return the genres chosen most.
export function showKnowledge(user) {
  const chosen = user.recent.filter((interaction) => interaction.reward > 0);
  const shares = genreShares(chosen.map((interaction) => knownFilm(interaction.item_id)));
  byId("facts").textContent = facts(user, chosen.length);
  fillList("genres", shares.slice(0, N_GENRES).map(([genre, share]) => genreRow(genre, share)), "None yet. Choose a film.");
  const recent = [...user.recent].sort((a, b) => b.at_unix_ms - a.at_unix_ms).slice(0, N_RECENT);
  fillList("recent", recent.map(recentRow), "Nothing so far. What you choose, skip or dislike shows up here at once.");
  return shares.slice(0, N_TOP_GENRES).map(([genre]) => genre);
}

// Return [[genre, share of all genre mentions]], largest first.
function genreShares(chosen) {
  const counts = new Map();
  for (const { genres } of chosen) for (const genre of genres) counts.set(genre, (counts.get(genre) ?? 0) + 1);
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  return [...counts].map(([genre, count]) => [genre, count / total]).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

function facts({ user_id, birth_date, country, attributes }, nChosen) {
  const born = birth_date ? `born ${String(birth_date).slice(0, 4)}` : "age unknown";
  const others = Object.values(attributes).map(String);
  return [user_id, born, country, ...others, `${nChosen}\u00a0chosen`].filter(Boolean).join(" · ");
}

function genreRow(genre, share) {
  const bar = el("i", { "aria-hidden": "true" });
  bar.style.setProperty("--p", percent(share));
  return el("li", {}, el("span", {}, genre), bar, el("b", {}, percent(share)));
}

function recentRow({ item_id, event_type, at_unix_ms }) {
  const at = new Date(at_unix_ms);
  const time = el("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  return el("li", { class: event_type }, el("span", { class: "verb" }, VERBS[event_type] ?? event_type), el("span", { class: "what" }, knownFilm(item_id).title), time);
}

function fillList(id, rows, empty) {
  byId(id).replaceChildren(...(rows.length > 0 ? rows : [el("li", { class: "none" }, empty)]));
}

// history: [{version, genres: [genres of each film]}], oldest first.
export function showCharts(history, topGenres) {
  if (history.length < 2) {
    byId("charts").replaceChildren(el("p", { class: "none" }, "Choose a film: from the second slate on, this shows what moved."));
    return;
  }
  const versions = history.map((slate) => slate.version);
  const charts = [chart("Model version", versions, { low: Math.min(...versions) - 1, high: Math.max(...versions), format: String })];
  if (topGenres.length > 0) {
    const share = ({ genres }) => genres.filter((film) => film.some((genre) => topGenres.includes(genre))).length / Math.max(genres.length, 1);
    charts.push(chart(`Share of films with ${topGenres.join(", ")}`, history.map(share), { low: 0, high: 1, format: percent }));
  }
  byId("charts").replaceChildren(...charts);
}

function chart(label, values, { low, high, format }) {
  const [width, height, top, left, right] = [300, 56, 6, 4, 50];
  const x = (index) => left + (index / (values.length - 1)) * (width - left - right);
  const y = (value) => top + (1 - (value - low) / Math.max(high - low, 1e-9)) * (height - 2 * top);
  const last = values.length - 1;
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: ${format(values[0])} to ${format(values[last])} over ${values.length} slates` },
    svg("line", { class: "base", x1: left, x2: width - right, y1: height - top, y2: height - top }),
    svg("polyline", { class: "series", points: points.join(" ") }),
    values.map((value, index) => svg("circle", { class: index === last ? "end" : "dot", cx: x(index), cy: y(value), r: index === last ? 3.5 : 1.75 }, svg("title", {}, format(value)))),
    svg("text", { x: x(last) + 9, y: y(values[last]) + 4.5 }, format(values[last])),
  );
  return el("figure", {}, el("figcaption", {}, label), picture);
}
