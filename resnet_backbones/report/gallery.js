// The images: which of their boxes and masks are drawn follows from a score, a class and the switches.
"use strict";
// The layers, with the names that switches and counters have for them.
const LAYERS = {
  correct: { name: "correct", tip: "predictions that match a true object" },
  wrong: { name: "false positive", tip: "predictions that match none" },
  found: { name: "found", tip: "true objects that a prediction matches" },
  missed: { name: "missed", tip: "true objects that none matches" },
};
const ANSWERS = { correct: "correct", wrong: "wrong, but in the top 5", missed: "not in the top 5" };

const colorOf = (label) => COLORS[label % COLORS.length];
const isTrue = (shape) => shape.score === undefined;

// The layer of a shape at a score threshold; null for a prediction below it.
function layerOf(shape, score) {
  if (isTrue(shape)) return shape.crowd ? "ignored" : shape.by >= score ? "found" : "missed";
  return shape.score < score ? null : { 1: "correct", 0: "wrong", "-1": "ignored" }[shape.status];
}

// An SVG of the image, in pixels of its file, or gray where it is not at hand.
function canvas(entry, shapes = []) {
  const [width, height] = [0, 1].map(
    (k) => entry.size[k] || Math.max(1, ...shapes.map(({ box }) => box[k] + box[k + 2])),
  );
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}` });
  picture.append(svg("rect", { width, height, fill: "#cfd6de" }));
  if (entry.picture) picture.append(svg("image", { href: entry.picture, width, height, preserveAspectRatio: "none" }));
  return picture;
}

// The image with an outline for each shape, of its mask or box. The dashed ones of true objects are above those of
// predictions, which they may coincide with; a white casing below all sets them off, and texts of an enlarged image are
// above all.
function drawing(entry, classes, enlarged) {
  const all = [...entry.predicted, ...entry.true], picture = canvas(entry, all);
  const size = Math.max(...entry.size, 1) / 64;
  const drawn = all.map((shape) => {
    const [x, y, width, height] = shape.box;
    const text = classes[shape.label] + (isTrue(shape) ? "" : ` ${shape.score.toFixed(2)}`);
    const tip = svg("title", {}, text);
    const box = { x, y, width: Math.max(width, 0), height: Math.max(height, 0) };
    const node = shape.path ? svg("path", { d: shape.path }) : svg("rect", box);
    const casing = add(node.cloneNode(), { class: "casing" }, []);
    node.append(tip);
    return { shape, casing, node, label: enlarged ? svg("text", { "font-size": size }, text) : null };
  });
  for (const part of ["casing", "node", "label"]) picture.append(...drawn.map((one) => one[part]).filter(Boolean));
  return { picture, drawn };
}

function show({ casing, node, label }, shown, labeled = shown) {
  casing.toggleAttribute("hidden", !shown);
  node.toggleAttribute("hidden", !shown);
  if (label) label.toggleAttribute("hidden", !labeled);
}

// Show and color what belongs to the state; returns how many shapes there are of each layer, shown or not.
function paint(drawn, state) {
  const counts = { correct: 0, wrong: 0, found: 0, missed: 0 };
  for (const one of drawn) {
    const { shape, node, label } = one;
    const wanted = state.label === -1 || shape.label === state.label;
    const layer = wanted ? layerOf(shape, state.score) : null;
    if (layer in counts) counts[layer]++;
    const shown = layer !== null && state[layer === "ignored" ? (isTrue(shape) ? "found" : "correct") : layer];
    node.setAttribute("class", `shape ${layer}`);
    if (label) label.setAttribute("class", layer);
    show(one, shown, shown && layer !== "found"); // whose prediction has a text
  }
  return counts;
}

// The same for ground truth alone, which has the color of its class.
function paintTruth(drawn, state) {
  let count = 0;
  for (const one of drawn) {
    const { shape, node, label } = one;
    const shown = state.label === -1 || shape.label === state.label;
    count += shown ? 1 : 0;
    node.setAttribute("class", shape.crowd ? "shape crowd" : "shape");
    node.setAttribute("style", `stroke:${colorOf(shape.label)}`);
    if (label) label.setAttribute("style", `fill:${colorOf(shape.label)}`);
    show(one, shown);
  }
  return count;
}

// A dialog that shows an image large; `open(k)` opens it.
function enlarger(images, classes, painted) {
  const dialog = html("dialog", { onclick: () => dialog.close() });
  let opened = 0;
  const open = (k) => {
    opened = (k + images.length) % images.length;
    const { picture, drawn } = drawing(images[opened], classes, true);
    painted(drawn);
    const hint = html("small", {}, "  ← → for other images, Esc or click to close");
    dialog.replaceChildren(html("p", {}, html("b", {}, titleOf(images[opened])), hint), picture);
    if (!dialog.open) dialog.showModal();
    placeLabels(picture, drawn);
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") open(opened + 1);
    if (event.key === "ArrowLeft") open(opened - 1);
  });
  return { dialog, open };
}

const titleOf = ({ set, name }) => (set ? `${set}: ${name}` : name);

function card(entry, picture, attributes, ...below) {
  const title = titleOf(entry);
  const fault = entry.fault ? html("p", { class: "fault" }, entry.fault) : null;
  return html("div", attributes, picture, html("p", { class: "name", title }, title), ...below, fault);
}

function classChoice(classes, state, update) {
  const options = classes.map((name, k) => html("option", { value: k }, name));
  const change = () => { state.label = Number(choice.value); update(); };
  const choice = html("select", { onchange: change }, html("option", { value: -1 }, "all classes"), ...options);
  return choice;
}

function switchOf(layer, name, tip, state, update) {
  const change = () => { state[layer] = box.checked; update(); };
  const box = html("input", { type: "checkbox", id: `show-${layer}`, checked: "", onchange: change });
  return html("label", { title: tip }, box, html("i", { style: `border-color:var(--${layer})` }), name);
}

function slider(state, update) {
  const output = html("output", {}, threshold(state.score));
  const change = () => {
    state.score = Number(input.value);
    output.textContent = threshold(state.score);
    update();
  };
  const range = { type: "range", id: "score", min: 0, max: 1, step: 0.001, value: state.score };
  const input = html("input", { ...range, oninput: change });
  return html("label", {}, "score at least", input, output);
}

function framed(controls, cards, ...more) {
  return [html("div", { class: "controls" }, ...controls), html("div", { class: "gallery" }, ...cards), ...more];
}

function detectionGallery({ classes, gallery }, score) {
  const state = { score, label: -1, correct: true, wrong: true, found: true, missed: true };
  const { dialog, open } = enlarger(gallery.images, classes, (drawn) => paint(drawn, state));
  const total = html("span", { class: "total" });
  const items = gallery.images.map((entry, k) => {
    const { picture, drawn } = drawing(entry, classes, false), counts = html("p", { class: "counts" });
    return { node: card(entry, picture, { class: "item", onclick: () => open(k) }, counts), drawn, counts };
  });
  const update = () => {
    const sum = { correct: 0, wrong: 0, missed: 0 }; // as many are found as are correct
    const layers = Object.keys(sum);
    for (const { drawn, counts } of items) {
      const found = paint(drawn, state);
      for (const layer of layers) sum[layer] += found[layer];
      const texts = layers.map((layer) => html("span", { class: layer }, `${found[layer]} ${LAYERS[layer].name}`));
      counts.replaceChildren(...texts);
    }
    total.textContent = layers.map((layer) => `${sum[layer]} ${LAYERS[layer].name}`).join(", ");
  };
  update();
  const switches = Object.entries(LAYERS).map(([layer, { name, tip }]) => switchOf(layer, name, tip, state, update));
  const controls = [slider(state, update), ...switches, classChoice(classes, state, update), total];
  return framed(controls, items.map(({ node }) => node), dialog);
}

function truthGallery({ classes, gallery }) {
  const state = { label: -1 };
  const { dialog, open } = enlarger(gallery.images, classes, (drawn) => paintTruth(drawn, state));
  const items = gallery.images.map((entry, k) => {
    const { picture, drawn } = drawing(entry, classes, false), count = html("p", { class: "counts" });
    const attributes = { class: "item", onclick: () => open(k) };
    return { node: card(entry, picture, attributes, count), drawn, count };
  });
  const update = () => {
    for (const { drawn, count } of items) count.textContent = `${paintTruth(drawn, state)} objects`;
  };
  update();
  const legend = classes.slice(0, COLORS.length).map((name, k) =>
    html("label", {}, html("i", { style: `border-color:${colorOf(k)}` }), name));
  return framed([...legend, classChoice(classes, state, update)], items.map(({ node }) => node), dialog);
}

function classificationGallery({ classes, gallery }) {
  const state = { score: 0, correct: true, wrong: true, missed: true };
  const total = html("span", { class: "total" });
  const items = gallery.images.map((entry) => {
    const place = entry.labels.indexOf(entry.label);
    const rows = entry.labels.flatMap((label, k) => [
      html("span", { class: label === entry.label ? "correct" : "wrong" }, classes[label]),
      html("span", {}, entry.scores[k].toFixed(3)),
    ]);
    const truth = html("p", {}, "true: ", html("b", {}, classes[entry.label]), ` ${entry.true_score.toFixed(3)}`);
    const attributes = { class: "item plain" };
    const node = card(entry, canvas(entry), attributes, truth, html("div", { class: "answer" }, ...rows));
    return { node, kind: place === 0 ? "correct" : place > 0 ? "wrong" : "missed", score: entry.scores[0] };
  });
  const update = () => {
    for (const { node, kind, score } of items) node.hidden = score < state.score || !state[kind];
    total.textContent = `${items.filter(({ node }) => !node.hidden).length} of these ${items.length} images`;
  };
  update();
  const switches = Object.entries(ANSWERS).map(([kind, name]) => switchOf(kind, name, name, state, update));
  return framed([slider(state, update), ...switches, total], items.map(({ node }) => node));
}
