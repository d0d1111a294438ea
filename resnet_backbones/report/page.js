// The sections of the page, each where its numbers are there.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const numbers = content.numbers;
const FROM_ZERO = ["images per second", "share of time waiting for data"];
const MOST = { curves: 12, columns: 41, pairs: 12 }; // drawn of many classes
const ERRORS = {
  classification: "right place, wrong class",
  localization: "right class, IoU 0.1 to 0.5",
  both: "wrong class, IoU 0.1 to 0.5",
  duplicate: "object already found with a higher score",
  background: "no object nearby, IoU below 0.1",
  missed: "object without a prediction nearby",
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
    ["", side, (value) => ({ 1: "better", 0: "not significant", "-1": "worse" })[value]],
  ];
  const interval = `${100 * confidence} % bootstrap interval (${draws} resamples of the images).`;
  const text = `AP, AP50 and the AP of each class, in percent. The difference is ${names[1]} minus ${names[0]}` +
    (draws ? `, with its ${interval}` : "; its interval needs more than one image.");
  section("Comparison", text, table(columns, rows));
}

function precision() {
  const columns = [
    column("class"),
    column("objects"),
    ...["AP", "AP50", "AP75", "APs", "APm", "APl", "AR"].map((name) => column(name, name, digits(1))),
    column("best_threshold", "best threshold", threshold),
    column("best_f1", "F1", digits(2)),
    column("best_precision", "precision", digits(2)),
    column("best_recall", "recall", digits(2)),
  ];
  const text = "In percent. AP is the mean over IoU 0.50 to 0.95; APs, APm and APl are those of small, medium and " +
    "large objects. The best threshold is the score threshold with the highest F1 at IoU 0.5; precision and recall " +
    "are those at this threshold.";
  const all = { class: "all", objects: numbers.objects, ...numbers.overall };
  section("Average precision", text, table(columns, numbers.classes, [all]));
}

function classTable() {
  const accuracy = [column("images"), column("top1", "top-1", digits(1)), column("top5", "top-5", digits(1))];
  const columns = [column("class"), ...(content.kind === "data" ? [column("objects"), column("images")] : accuracy)];
  section("Classes", content.kind === "data" ? "" : "Accuracy in percent.", table(columns, numbers.classes));
}

function curves() {
  const charts = content.curves.map(({ title, series }) => {
    if (series.every(({ steps }) => steps.length === 1)) return singleValues(title, series);
    const range = FROM_ZERO.includes(title) ? extent([0, ...series.flatMap(({ values }) => values)]) : null;
    const lines = series.map(({ name, steps, values }) => ({ name, x: steps, y: values }));
    return lineChart(title, lines, "step", "", range);
  });
  const text = "Each loss is the mean over the steps since the previous point. Click a name to hide its curve.";
  section("Curves", text, html("div", { class: "charts" }, ...charts));
}

function precisionRecall() {
  const x = Array.from({ length: 101 }, (_, k) => k / 100);
  const objects = numbers.classes.map((row) => row.objects);
  const places = objects.map((_, k) => k).sort((a, b) => objects[b] - objects[a]);
  const chart = ({ iou, classes }) => {
    const known = places.filter((k) => classes[k]);
    const mean = x.map((_, i) => known.reduce((sum, k) => sum + classes[k][i], 0) / known.length);
    const first = known.slice(0, MOST.curves).sort((a, b) => a - b); // in the order of the tables
    const series = first.map((k) => ({ name: numbers.classes[k].class, x, y: classes[k] }));
    if (known.length > 1) series.push({ name: "mean of all classes", x, y: mean });
    return lineChart(`IoU ${iou}`, series, "recall", "precision", [0, 1]);
  };
  const more = places.length > MOST.curves ? ` Only the ${MOST.curves} classes with the most objects are shown.` : "";
  const charts = html("div", { class: "charts" }, ...numbers.precision_recall.map(chart));
  section("Precision and recall", `The mean precision of a curve is its AP.${more}`, charts);
}

function errors() {
  const most = Math.max(...numbers.errors.map(({ cost }) => cost), 1e-9);
  const bar = (cost) => (cost > 0 ? html("i", { style: `width:${((100 * cost) / most).toFixed(1)}%` }) : null);
  const titles = ["kind", "", "count", "AP50 cost", ""].map((name) => html("th", {}, name));
  const rows = numbers.errors.map(({ kind, count, cost }) => html("tr", {},
    html("td", {}, kind),
    html("td", { class: "kind" }, ERRORS[kind]),
    html("td", {}, String(count)),
    html("td", {}, number(cost, 2)),
    html("td", { class: "bar" }, bar(cost))));
  const text = "The cost of a kind is the AP50, in percentage points, that fixing its errors would gain (TIDE, arXiv " +
    "2008.08115). Costs do not add up: one error can hide another.";
  const whole = html("table", {}, html("tr", {}, ...titles), ...rows);
  section("Errors by kind", text, html("div", { class: "wide" }, whole));
}

function confusion() {
  const { names, matrix, pairs, threshold: score } = numbers.confusion;
  const text = score === undefined ? "Counts of images." :
    `At IoU 0.5, for predictions with a score of at least ${threshold(score)}, the best threshold over all classes. ` +
    "The background row counts predictions where there is no object, the background column missed objects. Here, a " +
    "prediction is matched with objects of any class; in the other sections, as for AP, only with those of its own " +
    "class, so the diagonal can differ from the number of correct predictions there.";
  const columns = [column("true"), column("predicted"), column("count")];
  const whole = matrix && names.length <= MOST.columns ? matrixTable(names, matrix) : null;
  const list = pairs.length ? html("div", {}, table(columns, pairs.slice(0, MOST.pairs))) : null;
  section("Confusion", text, html("div", { class: "side" }, whole, list));
}

function calibration() {
  const { ece, bins } = numbers.calibration;
  const text = "Of predictions with a score of 0.8, 80 % should be correct. The number above a bar is how many " +
    `predictions it stands for. The expected calibration error is ${number(ece, 3)}.`;
  const chart = reliabilityChart("share of correct predictions by score", bins);
  section("Calibration", text, html("div", { class: "charts" }, chart));
}

function images() {
  const { images: shown, total } = content.gallery;
  const [text, parts] = {
    detection: () => [
      `sorted by F1 at a score threshold of ${threshold(numbers.threshold)}, the lowest first. Outlines are solid for ` +
        "predictions, dashed for true objects, and gray for what does not count, such as crowds.",
      detectionGallery(content, numbers.threshold),
    ],
    classification: () => ["the lowest probability of the true class first.", classificationGallery(content)],
    data: () => ["evenly spaced. Crowds are dashed.", truthGallery(content)],
  }[content.kind]();
  section("Images", `${shown.length} of ${total} images, ${text}`, ...parts);
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
