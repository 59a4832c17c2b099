// Build elements. Text always enters as text nodes, so nothing that the API returns is read as markup.

const SVG = "http://www.w3.org/2000/svg";

// el("button", {class: "quiet", type: "button", onclick: f}, "Why?") -> HTMLButtonElement
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

export const percent = (share) => `${Math.round(share * 100)}%`;

// Enough digits that a small probability is not shown as zero.
export const probability = (p) => p.toFixed(p < 0.001 ? 6 : 4);

// With a minus as wide as the plus, so that columns of figures line up.
export const decimal = (value, digits) => value.toFixed(digits).replace("-", "\u2212");

export const signed = (value, digits) => (value < 0 ? "" : "+") + decimal(value, digits);
