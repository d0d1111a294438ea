// Tables.
"use strict";

// columns: [title, value of a row, text of a value]; a click on a title sorts by it.
function table(columns, rows, totals = []) {
  const cell = (row, [, value, text]) => html("td", {}, text ? text(value(row), row) : String(value(row)));
  const line = (row, name) => html("tr", { class: name }, ...columns.map((column) => cell(row, column)));
  const body = html("tbody");
  const fill = (sorted) => {
    body.replaceChildren(...totals.map((row) => line(row, "total")), ...sorted.map((row) => line(row, null)));
  };
  let last = null, sign = 1;
  const sort = (k) => {
    sign = last === k ? -sign : k ? -1 : 1; // numbers from the highest, names from the first
    last = k;
    const key = (row) => columns[k][1](row) ?? -Infinity;
    fill([...rows].sort((a, b) => sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0)));
  };
  const heads = columns.map(([title], k) =>
    html("th", { role: "button", title: "sort", onclick: () => sort(k) }, title));
  fill(rows);
  const whole = html("table", { class: "full" }, html("thead", {}, html("tr", {}, ...heads)), body);
  return html("div", { class: "wide" }, whole);
}

// Counts with the true classes in rows; the color is the share of the row.
function matrixTable(names, matrix) {
  const titles = names.map((name) => html("th", { title: name }, name));
  const rows = matrix.map((row, i) => {
    const sum = row.reduce((a, b) => a + b, 0) || 1;
    const cells = row.map((count, j) => {
      const share = count / sum, color = i === j ? "21,128,61" : "220,38,38";
      const opacity = count ? (0.04 + 0.85 * share).toFixed(3) : 0;
      const style = `background:rgba(${color},${opacity});color:${share > 0.55 ? "#fff" : "inherit"}`;
      const title = `${names[i]} as ${names[j]}: ${count} (${number(100 * share)} %)`;
      return html("td", { style, title }, count ? String(count) : "·");
    });
    return html("tr", {}, html("th", { title: names[i] }, names[i]), ...cells);
  });
  const first = html("tr", { class: "columns" }, html("th", {}, "true ↓ predicted →"), ...titles);
  return html("div", { class: "wide matrix" }, html("table", {}, first, ...rows));
}
