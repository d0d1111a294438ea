// Elements and numbers. Text from data only ever becomes text nodes, never markup.
"use strict";
const SVG = document.getElementById("namespace").namespaceURI;
const COLORS = ["#2563eb", "#dc2626", "#15803d", "#d97706", "#7c3aed"];
COLORS.push("#0891b2", "#db2777", "#65a30d", "#475569", "#92400e");

function add(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const html = (tag, attributes, ...children) => add(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => add(document.createElementNS(SVG, tag), attributes, children);

function number(value, digits = 1) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

// A score threshold, with as many decimals as it has, two to four.
function threshold(value) {
  const decimals = (String(value).split(".")[1] || "").length;
  return number(value, Math.min(Math.max(decimals, 2), 4));
}

// Numbers of any size, for axes and cursors.
function short(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}
