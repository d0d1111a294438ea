// Charts, as SVG.
"use strict";

// Round steps that divide low to high in about `count` parts.
function ticks(low, high, count = 5) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

// The range of values, of which some may be null, wide enough for an axis.
function extent(values) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return [0, 1];
  const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2] : [low, high];
}

// The frame of a chart: axes, grid and labels, and functions from data to its pixels.
const FRAME = { width: 440, height: 270, left: 48, right: 422, top: 10, bottom: 228 };

function axes(xRange, yRange, xLabel, yLabel = "") {
  const { width, height, left, right, top, bottom } = FRAME;
  const x = (v) => left + ((v - xRange[0]) / (xRange[1] - xRange[0])) * (right - left);
  const y = (v) => bottom - ((v - yRange[0]) / (yRange[1] - yRange[0])) * (bottom - top);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const v of ticks(...yRange)) {
    picture.append(svg("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }));
    picture.append(svg("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, short(v)));
  }
  for (const v of ticks(...xRange)) {
    picture.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: top, y2: bottom }));
    picture.append(svg("text", { x: x(v), y: bottom + 16, "text-anchor": "middle" }, short(v)));
  }
  const turned = `translate(11 ${(top + bottom) / 2}) rotate(-90)`;
  picture.append(svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  picture.append(svg("text", { transform: turned, "text-anchor": "middle" }, yLabel));
  return { picture, x, y };
}

// A series as a line that is broken where a value is null, with spots where there are few.
function curve({ x, y }, frame, color) {
  const points = x.map((v, i) => (y[i] === null ? null : [frame.x(v).toFixed(1), frame.y(y[i]).toFixed(1)]));
  const path = points.map((point, i) => point && (i && points[i - 1] ? "L" : "M") + point.join(" ")).filter(Boolean);
  const spots = points.length > 12 ? [] : points.filter(Boolean);
  const circles = spots.map(([cx, cy]) => svg("circle", { cx, cy, r: 3, fill: color }));
  return svg("g", {}, svg("path", { class: "series", d: path.join(""), stroke: color }), ...circles);
}

// Series of one point each, which make no curve.
function singleValues(title, series) {
  const lines = series.map(({ name, steps, values }) =>
    html("p", {}, `${name} `, html("b", {}, short(values[0])), ` at step ${steps[0]}`));
  return html("figure", {}, html("figcaption", {}, title), ...lines);
}

// Lines over a common x axis; a click on the legend hides one, the cursor shows the values of all.
function lineChart(title, series, xLabel, yLabel, yRange = null) {
  const xRange = extent(series.flatMap(({ x }) => x));
  const frame = axes(xRange, yRange || extent(series.flatMap(({ y }) => y)), xLabel, yLabel);
  const legend = html("div", { class: "legend" });
  const values = series.map((one, k) => {
    const color = COLORS[k % COLORS.length], line = curve(one, frame, color), value = html("span");
    const hide = () => line.toggleAttribute("hidden", button.classList.toggle("off"));
    const sample = html("i", { style: `background:${color}` });
    const button = html("button", { type: "button", onclick: hide }, sample, one.name, value);
    frame.picture.append(line);
    legend.append(button);
    return value;
  });
  readout(frame, xRange, series, values);
  return html("figure", {}, html("figcaption", {}, title), frame.picture, legend);
}

// Where the pointer is, write the value of each series into its element of `values`.
function readout({ picture, x }, xRange, series, values) {
  const cursor = svg("line", { class: "cursor", y1: FRAME.top, y2: FRAME.bottom, visibility: "hidden" });
  picture.append(cursor);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * FRAME.width;
    const at = xRange[0] + ((pixel - FRAME.left) / (FRAME.right - FRAME.left)) * (xRange[1] - xRange[0]);
    series.forEach((one, k) => {
      const near = one.x.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(one.x[best] - at) ? i : best), 0);
      values[k].textContent = ` ${short(one.y[near])}`;
      cursor.setAttribute("x1", x(one.x[near]));
      cursor.setAttribute("x2", x(one.x[near]));
    });
    cursor.setAttribute("visibility", "visible");
  });
  picture.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    for (const value of values) value.textContent = "";
  });
}

// For each bin of scores, the share that is right, beside the diagonal where both are equal.
function reliabilityChart(title, bins) {
  const { picture, x, y } = axes([0, 1], [0, 1], "score", "share that is correct");
  for (const { low, high, count, score, right } of bins.filter((bin) => bin.count)) {
    const text = `${count} predictions, mean score ${number(score, 3)}, ${number(100 * right)} % correct`;
    const bar = { x: x(low) + 1, width: x(high) - x(low) - 2, y: y(right), height: FRAME.bottom - y(right) };
    picture.append(svg("rect", { ...bar, fill: COLORS[0], opacity: 0.75 }, svg("title", {}, text)));
    const place = { x: bar.x + bar.width / 2, y: bar.y - 4, "text-anchor": "middle" };
    picture.append(svg("text", place, String(count)));
  }
  picture.append(svg("line", { class: "cursor", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
  return html("figure", {}, html("figcaption", {}, title), picture);
}
