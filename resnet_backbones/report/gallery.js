// The images: which of their boxes and masks are drawn follows from a score, a class and the switches.
"use strict";
// Of each layer, the name of its switch, and what is said of it in a tip and below an image.
const LAYERS = {
  right: { name: "predicted", tip: "predicted, and right", short: "right" },
  wrong: { name: "false positive", tip: "predicted, and wrong", short: "false positive" },
  true: { name: "true", tip: "true, and found", short: "found" },
  missed: { name: "missed", tip: "true, and not found", short: "missed" },
};
const ANSWERS = { right: "right", wrong: "wrong", missed: "not among the five" };

const colorOf = (label) => COLORS[label % COLORS.length];
const isTrue = (shape) => shape.score === undefined;

// The layer of a shape at a score threshold; null for a prediction below it.
function layerOf(shape, score) {
  if (isTrue(shape)) return shape.crowd ? "ignored" : shape.by >= score ? "true" : "missed";
  return shape.score < score ? null : { 1: "right", 0: "wrong", "-1": "ignored" }[shape.status];
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

// The image with a node for each shape, a path or a box, and where it is enlarged a text.
function drawing(entry, classes, enlarged) {
  const all = [...entry.true, ...entry.predicted], picture = canvas(entry, all);
  const size = Math.max(...entry.size, 1) / 64;
  const drawn = all.map((shape) => {
    const [x, y, width, height] = shape.box;
    const text = classes[shape.label] + (isTrue(shape) ? "" : ` ${shape.score.toFixed(2)}`);
    const tip = svg("title", {}, text);
    const box = { x, y, width: Math.max(width, 0), height: Math.max(height, 0) };
    const node = shape.path ? svg("path", { d: shape.path }, tip) : svg("rect", box, tip);
    const place = { x, y: isTrue(shape) ? y + height + size : y - size / 4, "font-size": size };
    const label = enlarged ? svg("text", place, text) : null;
    picture.append(node, ...(label ? [label] : []));
    return { shape, node, label };
  });
  return { picture, drawn };
}

// Show and color what belongs to the state; returns how many shapes there are of each layer, shown or not.
function paint(drawn, state) {
  const counts = { right: 0, wrong: 0, true: 0, missed: 0 };
  for (const { shape, node, label } of drawn) {
    const wanted = state.label === -1 || shape.label === state.label;
    const layer = wanted ? layerOf(shape, state.score) : null;
    if (layer in counts) counts[layer]++;
    const shown = layer !== null && state[layer === "ignored" ? (isTrue(shape) ? "true" : "right") : layer];
    node.setAttribute("class", `shape ${layer}`);
    node.toggleAttribute("hidden", !shown);
    if (label) {
      label.setAttribute("class", layer);
      label.toggleAttribute("hidden", !shown || layer === "true"); // whose prediction has a text
    }
  }
  return counts;
}

// The same for ground truth alone, which has the color of its class.
function paintTruth(drawn, state) {
  let count = 0;
  for (const { shape, node, label } of drawn) {
    const shown = state.label === -1 || shape.label === state.label;
    count += shown ? 1 : 0;
    node.setAttribute("class", shape.crowd ? "shape crowd" : "shape");
    node.setAttribute("style", `stroke:${colorOf(shape.label)};${shape.path ? `fill:${colorOf(shape.label)}` : ""}`);
    node.toggleAttribute("hidden", !shown);
    if (label) {
      label.setAttribute("style", `fill:${colorOf(shape.label)}`);
      label.toggleAttribute("hidden", !shown);
    }
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
    const hint = html("small", {}, "  ← → other images, Esc or a click closes");
    dialog.replaceChildren(html("p", {}, html("b", {}, images[opened].name), hint), picture);
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") open(opened + 1);
    if (event.key === "ArrowLeft") open(opened - 1);
  });
  return { dialog, open };
}

function card(entry, picture, title, attributes, ...below) {
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
  const output = html("output", {}, state.score.toFixed(3));
  const change = () => {
    state.score = Number(input.value);
    output.textContent = state.score.toFixed(3);
    update();
  };
  const range = { type: "range", id: "score", min: 0, max: 1, step: 0.001, value: state.score };
  const input = html("input", { ...range, oninput: change });
  return html("label", {}, "score at least", input, output);
}

function framed(controls, cards, ...more) {
  return [html("div", { class: "controls" }, ...controls), html("div", { class: "gallery" }, ...cards), ...more];
}

function detectionGallery({ classes, gallery }, threshold) {
  const state = { score: threshold, label: -1, right: true, wrong: true, true: true, missed: true };
  const { dialog, open } = enlarger(gallery.images, classes, (drawn) => paint(drawn, state));
  const total = html("span", { class: "total" });
  const items = gallery.images.map((entry, k) => {
    const { picture, drawn } = drawing(entry, classes, false), counts = html("p", { class: "counts" });
    return { node: card(entry, picture, entry.name, { class: "item", onclick: () => open(k) }, counts), drawn, counts };
  });
  const update = () => {
    const sum = { right: 0, wrong: 0, missed: 0 };
    const layers = Object.keys(sum);
    for (const { drawn, counts } of items) {
      const found = paint(drawn, state);
      for (const layer of layers) sum[layer] += found[layer];
      const texts = layers.map((layer) => html("span", { class: layer }, `${found[layer]} ${LAYERS[layer].short}`));
      counts.replaceChildren(...texts);
    }
    total.textContent = layers.map((layer) => `${sum[layer]} ${LAYERS[layer].short}`).join(", ");
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
    return { node: card(entry, picture, `${entry.set}: ${entry.name}`, attributes, count), drawn, count };
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
  const state = { score: 0, right: true, wrong: true, missed: true };
  const total = html("span", { class: "total" });
  const items = gallery.images.map((entry) => {
    const place = entry.labels.indexOf(entry.label);
    const rows = entry.labels.flatMap((label, k) => [
      html("span", { class: label === entry.label ? "right" : "wrong" }, classes[label]),
      html("span", {}, entry.scores[k].toFixed(3)),
    ]);
    const truth = html("p", {}, "true: ", html("b", {}, classes[entry.label]), ` ${entry.true_score.toFixed(3)}`);
    const attributes = { class: "item plain" };
    const node = card(entry, canvas(entry), entry.name, attributes, truth, html("div", { class: "answer" }, ...rows));
    return { node, kind: place === 0 ? "right" : place > 0 ? "wrong" : "missed", score: entry.scores[0] };
  });
  const update = () => {
    for (const { node, kind, score } of items) node.hidden = score < state.score || !state[kind];
    total.textContent = `${items.filter(({ node }) => !node.hidden).length} of these ${items.length} images`;
  };
  update();
  const switches = Object.entries(ANSWERS).map(([kind, name]) => switchOf(kind, name, name, state, update));
  return framed([slider(state, update), ...switches, total], items.map(({ node }) => node));
}
