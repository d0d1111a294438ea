// The sections of the page, each where its numbers are there.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const numbers = content.numbers;
const MOST = { curves: 12, columns: 41, pairs: 12 }; // drawn of many classes
const ERRORS = {
  classification: "the right place, the wrong class",
  localization: "the right class, IoU 0.1 to 0.5",
  both: "the wrong class, IoU 0.1 to 0.5",
  duplicate: "an object that a higher score had found",
  background: "no object there, IoU below 0.1",
  missed: "an object that no prediction is near",
};
const digits = (count) => (value) => number(value, count);
const column = (key, title = key, text = null) => [title, (row) => row[key], text];

function section(title, text, ...children) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  document.querySelector("nav").append(html("a", { href: `#${id}` }, title));
  const parts = [html("h2", {}, title), text ? html("p", {}, text) : null, ...children];
  document.querySelector("main").append(html("section", { id }, ...parts));
}

function head() {
  document.title = content.title;
  document.querySelector("h1").textContent = content.title;
  document.querySelector("header p").textContent = content.subtitle;
  const cards = content.cards.map(([name, value]) =>
    html("div", { class: "card" }, html("b", {}, value), html("span", {}, name)));
  const notes = content.notes.map((note) => html("div", { class: "note" }, note));
  document.querySelector("main").append(html("div", { class: "cards" }, ...cards), ...notes);
}

function comparison() {
  const { rows, draws, confidence, names } = numbers.comparison;
  const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + value.toFixed(2));
  const range = ({ interval }) => (interval ? `${signed(interval[0])} to ${signed(interval[1])}` : "–");
  const side = ({ interval }) => (interval ? Number(interval[0] > 0) - Number(interval[1] < 0) : 0);
  const columns = [
    column("name", ""),
    column("first", names[0], digits(2)),
    column("second", names[1], digits(2)),
    column("difference", "difference", signed),
    ["interval", (row) => row.interval && row.interval[0], (_, row) => range(row)],
    ["", side, (value) => ({ 1: "better", 0: "not told apart", "-1": "worse" })[value]],
  ];
  const text = `AP in percent of ${names[0]} and ${names[1]} on the same images, over all classes and of each. The ` +
    `interval has ${100 * confidence} % of the differences over ${draws} choices of as many images, with repetitions.`;
  section("Comparison", text, table(columns, rows));
}

function precision() {
  const columns = [
    column("class"),
    column("objects"),
    ...["AP", "AP50", "AP75", "APs", "APm", "APl", "AR"].map((name) => column(name, name, digits(1))),
    column("best_threshold", "best threshold", digits(2)),
    column("best_f1", "F1", digits(2)),
    column("best_precision", "precision", digits(2)),
    column("best_recall", "recall", digits(2)),
  ];
  const text = "In percent. AP is over IoU 0.50 to 0.95; APs, APm and APl are of small, medium and large objects. " +
    "The best threshold is the score with the highest F1 at IoU 0.5.";
  const all = { class: "all", objects: numbers.objects, ...numbers.overall };
  section("Average precision", text, table(columns, numbers.classes, [all]));
}

function classTable() {
  const accuracy = [column("images"), column("top1", "top-1", digits(1)), column("top5", "top-5", digits(1))];
  const columns = [column("class"), ...(content.kind === "data" ? [column("objects"), column("images")] : accuracy)];
  section("Classes", content.kind === "data" ? "" : "Accuracy in percent.", table(columns, numbers.classes));
}

function curves() {
  const charts = content.curves.map(({ title, series }) =>
    lineChart(title, series.map(({ name, steps, values }) => ({ name, x: steps, y: values })), "step"));
  const text = "Losses are means since the point before. A click on a name hides its curve.";
  section("Curves", text, html("div", { class: "charts" }, ...charts));
}

function precisionRecall() {
  const x = Array.from({ length: 101 }, (_, k) => k / 100);
  const objects = numbers.classes.map((row) => row.objects);
  const places = objects.map((_, k) => k).sort((a, b) => objects[b] - objects[a]);
  const chart = ({ iou, classes }) => {
    const known = places.filter((k) => classes[k]);
    const mean = x.map((_, i) => known.reduce((sum, k) => sum + classes[k][i], 0) / known.length);
    const series = known.slice(0, MOST.curves).map((k) => ({ name: numbers.classes[k].class, x, y: classes[k] }));
    if (known.length > 1) series.push({ name: "mean of all classes", x, y: mean });
    return lineChart(`IoU ${iou}`, series, "recall", "precision", [0, 1]);
  };
  const more = places.length > MOST.curves ? ` The ${MOST.curves} classes with the most objects are drawn.` : "";
  const charts = html("div", { class: "charts" }, ...numbers.precision_recall.map(chart));
  section("Precision and recall", `The mean of a curve is its AP.${more}`, charts);
}

function errors() {
  const most = Math.max(...numbers.errors.map(({ cost }) => cost), 1e-9);
  const titles = ["kind", "", "count", "AP50", ""].map((name) => html("th", {}, name));
  const rows = numbers.errors.map(({ kind, count, cost }) => html("tr", {},
    html("td", {}, kind),
    html("td", { class: "kind" }, ERRORS[kind]),
    html("td", {}, String(count)),
    html("td", {}, number(cost, 2)),
    html("td", { class: "bar" }, html("i", { style: `width:${Math.max((100 * cost) / most, 0).toFixed(1)}%` }))));
  const text = "The AP50, in percent, that would be gained if all errors of a kind were mended (TIDE, arXiv " +
    "2008.08115). Costs do not add up: one error can hide another.";
  section("Errors by kind", text, html("table", {}, html("tr", {}, ...titles), ...rows));
}

function confusion() {
  const { names, matrix, pairs, threshold } = numbers.confusion;
  const text = threshold === undefined ? "Counts of images." :
    `At IoU 0.5, of predictions with a score of at least ${number(threshold, 2)}, the best over all classes. ` +
    "Background in a row is what is predicted where nothing is, in a column what is missed.";
  const columns = [column("true"), column("predicted"), column("count")];
  const whole = matrix && names.length <= MOST.columns ? matrixTable(names, matrix) : null;
  const list = pairs.length ? html("div", {}, table(columns, pairs.slice(0, MOST.pairs))) : null;
  section("Confusion", text, html("div", { class: "side" }, whole, list));
}

function calibration() {
  const { ece, bins } = numbers.calibration;
  const text = "Of predictions with a score of 0.8, 80 % should be right. Above each bar is its number of " +
    `predictions; the expected calibration error is ${number(ece, 3)}.`;
  const chart = reliabilityChart("share that is right by score", bins);
  section("Calibration", text, html("div", { class: "charts" }, chart));
}

function images() {
  const { images: shown, total } = content.gallery;
  const [order, parts] = {
    detection: ["the lowest F1 first", () => detectionGallery(content, numbers.threshold)],
    classification: ["the lowest probability of the true class first", () => classificationGallery(content)],
    data: ["evenly spaced", () => truthGallery(content)],
  }[content.kind];
  section("Images", `${shown.length} of ${total} images, ${order}.`, ...parts());
}

head();
if (content.text) section("Check", "", html("pre", {}, content.text));
if (numbers.comparison) comparison();
if (content.kind === "detection") precision();
else classTable();
if (content.curves.length) curves();
if (numbers.precision_recall) precisionRecall();
if (numbers.errors) errors();
if (numbers.confusion) confusion();
if (numbers.calibration) calibration();
images();
