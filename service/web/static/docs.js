// The API reference: /openapi.json as tables, and a box to send a request.

import { call } from "./api.js";
import { byId, el } from "./dom.js";

const EXAMPLES = {
  "post /v1/recommend": { surface: "home", user_id: "u42", context: { device: "tv" }, n: 5 },
  "post /v1/events": { id: "c-77", type: "click", event_id: "from the recommendation", item_id: "from the recommendation", slot: 0, user_id: "u42" },
  "post /v1/reward": { event_id: "from the recommendation", slot: 0, reward: 1.0 },
  "put /v1/users": { user_id: "u42", country: "DE" },
};

let schemas = {};

async function start() {
  const main = byId("operations");
  try {
    const { body: description } = await call("GET", "/openapi.json");
    schemas = description.components.schemas;
    const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({ method, path, ...operation })));
    byId("contents").replaceChildren(...operations.map(contentsEntry));
    main.replaceChildren(...operations.map(section));
    // The browser looked for the fragment before its section existed.
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    main.replaceChildren(el("p", { role: "alert" }, `The description could not be read: ${error.message}`));
  }
  main.setAttribute("aria-busy", "false");
}

const contentsEntry = ({ method, path, operationId }) =>
  el("li", {}, el("a", { href: `#${operationId}` }, el("span", { class: `method ${method}` }, method), path));

function section(operation) {
  const { method, path, summary, operationId, parameters = [], requestBody, responses } = operation;
  const bodies = [];
  if (requestBody) bodies.push(...schemaTables("Request", requestBody, true));
  for (const [status, response] of Object.entries(responses)) {
    if (status !== "default") bodies.push(...schemaTables(`Response ${status}`, response, method === "post"));
  }
  return el("section", { class: "operation", id: operationId, "aria-labelledby": `${operationId}-title` },
    el("h2", { id: `${operationId}-title` }, el("span", { class: `method ${method}` }, method), path),
    el("p", {}, `${summary}.`),
    parameters.length > 0 ? [el("h3", {}, "Parameters"), table(parameters.map(parameterRow))] : null,
    bodies,
    el("p", { class: "none" }, responses.default ? "Errors are application/problem+json with the path of the bad field." : ""),
    tryBox(operation),
  );
}

const parameterRow = ({ name, in: place, required, schema }) => ({ name, required, type: typeOf(schema), bounds: `in the ${place}` });

// Tables of a request's or response's schema and of the schemas inside it.
function schemaTables(label, { content }, open) {
  const media = content && Object.values(content)[0];
  if (!media) return label === "Response 204" ? [el("h3", {}, `${label}: no body`)] : [];
  const names = reachable(media.schema);
  const heading = [`${label}: `, el("code", {}, typeOf(media.schema))];
  if (names.length === 0) return [el("h3", {}, heading)];
  const [first, ...inner] = names;
  return [
    el("details", { class: "tables", open },
      el("summary", {}, heading),
      schemaTable(first),
      inner.map((name) => [el("h3", {}, el("code", {}, name)), schemaTable(name)])),
  ];
}

function reachable(schema, seen = []) {
  if (schema === null || typeof schema !== "object") return seen;
  if (schema.$ref) {
    const name = refName(schema.$ref);
    if (seen.includes(name)) return seen;
    seen.push(name);
    return reachable(schemas[name]?.properties, seen);
  }
  for (const value of Object.values(schema)) reachable(value, seen);
  return seen;
}

const refName = (ref) => ref.split("/").at(-1);

function schemaTable(name) {
  const { properties = {}, required = [], description } = schemas[name] ?? {};
  const rows = Object.entries(properties).map(([field, schema]) => ({
    name: field,
    required: required.includes(field),
    type: typeOf(schema),
    bounds: boundsOf(schema),
  }));
  const said = description?.split("\n\n")[0].replaceAll("`", "");
  return el("div", {}, said ? el("p", { class: "none" }, said) : null, table(rows));
}

function table(rows) {
  return el("div", { class: "scroll" },
    el("table", { class: "schema" },
      el("thead", {}, el("tr", {}, ["Field", "Type", "Required, bounds"].map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, rows.map((row) =>
        el("tr", {}, el("th", { scope: "row" }, row.name), el("td", {}, row.type), el("td", {}, [row.required ? "required" : "", row.bounds].filter(Boolean).join(", "))))),
    ));
}

function typeOf(schema = {}) {
  if (schema.$ref) return refName(schema.$ref);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `[${typeOf(schema.items)}]`;
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return `{text: ${typeOf(schema.additionalProperties)}}`;
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "any";
}

function boundsOf(schema) {
  const words = [];
  const names = { minimum: "at least", maximum: "at most", minLength: "min. length", maxLength: "max. length", maxItems: "max. entries" };
  for (const part of [schema, ...(schema.anyOf ?? [])]) {
    for (const [key, label] of Object.entries(names)) if (key in part) words.push(`${label} ${part[key]}`);
  }
  if ("default" in schema) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join(", ");
}

function tryBox({ method, path, operationId, parameters = [], requestBody }) {
  const inputs = new Map(parameters.map(({ name }) => [name, el("input", { type: "text", name, autocomplete: "off", spellcheck: "false" })]));
  const example = EXAMPLES[`${method} ${path}`] ?? {};
  const text = requestBody ? el("textarea", { spellcheck: "false", rows: 8 }) : null;
  if (text) text.value = JSON.stringify(example, null, 2);
  const answer = el("p", { class: "answer", role: "status" });
  const output = el("pre", { tabindex: "0", hidden: true, "aria-label": "Answer" });
  const send = async () => {
    answer.className = "answer";
    answer.textContent = "Sending…";
    try {
      const { status, text: raw, body, worker, latencyMs } = await call(method.toUpperCase(), address(path, parameters, inputs), text?.value);
      answer.textContent = `${status} in ${Math.round(latencyMs)} ms from worker ${worker ?? "unknown"}`;
      showAnswer(output, body === null ? raw : JSON.stringify(body, null, 2));
    } catch (error) {
      answer.classList.add("wrong");
      answer.textContent = [error.status || "", error.title].join(" ").trim();
      showAnswer(output, error.path ? `${error.detail}\nat ${error.path}` : error.detail);
    }
  };
  return el("details", { open: method === "post" },
    el("summary", {}, "Try it"),
    el("div", { class: "try" },
      [...inputs].map(([name, input]) => el("label", {}, name, input)),
      text ? el("label", {}, "JSON body", text) : null,
      el("button", { type: "button", onclick: send, "aria-label": `Send ${method.toUpperCase()} ${path}`, "data-operation": operationId }, "Send"),
      answer,
      output,
    ));
}

function showAnswer(output, text) {
  output.textContent = text;
  output.hidden = text === "";
}

function address(path, parameters, inputs) {
  const value = (name) => encodeURIComponent(inputs.get(name).value);
  const query = parameters.filter((parameter) => parameter.in === "query").map(({ name }) => `${name}=${value(name)}`);
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => value(name));
  return query.length > 0 ? `${filled}?${query.join("&")}` : filled;
}

await start();
