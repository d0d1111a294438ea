// The labels of an enlarged image: inside it, and where there is room, beside each other.
"use strict";

function overlap(a, b) {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return Math.max(width, 0) * Math.max(height, 0);
}

// The width of a text, which is cut where it is wider than `most`.
function fitted(label, most) {
  const full = label.getComputedTextLength();
  if (full <= most) return full;
  const text = label.textContent;
  label.textContent = `${text.slice(0, Math.floor((0.9 * text.length * most) / full))}…`;
  return label.getComputedTextLength();
}

// Above the box, below it, at its sides and in it, moved into the image.
function placesOf([x, y, w, h], { width, height }, image) {
  const left = x, right = x + w - width, above = y - height, below = y + h;
  const places = [[left, above], [right, above], [left, below], [right, below], [x + w, y], [x + w, below - height],
    [x - width, y], [x - width, below - height], [left, y], [right, below - height]];
  const inside = (value, most) => Math.max(0, Math.min(value, most));
  return places.map(([x, y]) =>
    ({ x: inside(x, image.width - width), y: inside(y, image.height - height), width, height }));
}

// Move each text that is shown to where it covers the least of those before it. Texts are measured, so they have to be
// in the page.
function placeLabels(picture, drawn) {
  const image = picture.viewBox.baseVal, placed = [];
  for (const { shape, label } of drawn.filter((one) => !one.label.hasAttribute("hidden"))) {
    const size = Number(label.getAttribute("font-size")), halo = size / 8;
    const text = { width: fitted(label, image.width - 2 * halo) + 2 * halo, height: 1.25 * size };
    const covered = (place) => placed.reduce((sum, other) => sum + overlap(place, other), 0);
    const best = placesOf(shape.box, text, image).reduce((a, b) => (covered(b) < covered(a) ? b : a));
    placed.push(best);
    label.setAttribute("x", best.x + halo);
    label.setAttribute("y", best.y + 0.98 * size);
  }
}
