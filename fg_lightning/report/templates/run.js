
// --- the probe

const run = read("data");
const last = run.snapshots.length - 1;
const tiles = [...document.querySelectorAll(".grid .tile")];
const TERMS = ["output", "input term", "biases", "implicit biases", "completeness error"];
const MOST_FRAMES = 24;
const MOST_BARS = 24;
const MOST_SPRITES = 60;

let current = last;
let opened = null;
let playing = null;
const sprites = new Map();

// The maps of a snapshot, decoded; null if they are lost. The latest ones are stored.
function spriteOf(snapshot) {
  if (!sprites.has(snapshot)) {
    const content = element(`maps-${snapshot}`).textContent;
    sprites.set(snapshot, content ? decodeLevels(`data:image/webp;base64,${content}`) : Promise.resolve(null));
    if (sprites.size > MOST_SPRITES) sprites.delete(sprites.keys().next().value);
  }
  return sprites.get(snapshot);
}

function paintMap(canvas, sprite, image) {
  canvas.hidden = sprite === null;
  if (sprite !== null) paint(canvas, sprite, image, run);
}

function describe(image, snapshot) {
  const answer = run.images[snapshot][image];
  const words = [`image ${image}`];
  if (answer?.label) words.push(`label ${answer.label}`);
  if (answer?.prediction) words.push(`predicted ${answer.prediction}${answer.right === null ? "" : answer.right ? ", right" : ", wrong"}`);
  return words.join(", ");
}

function caption(image, snapshot) {
  const answer = run.images[snapshot][image];
  if (!answer) return [`image ${image}`];
  const prediction = make("span", answer.right === null ? {} : { class: answer.right ? "right" : "wrong" }, answer.prediction);
  return [make("small", {}, answer.label || answer.explained), make("br"), prediction];
}

async function show(snapshot) {
  current = Math.min(Math.max(snapshot, 0), last);
  const { title, step } = run.snapshots[current];
  element("snapshot").value = current;
  element("snapshot").setAttribute("aria-valuetext", title);
  element("moment").value = `${title}, step ${step}`;
  element("before").disabled = current === 0;
  element("after").disabled = current === last;
  tiles.forEach((tile, image) => {
    tile.setAttribute("aria-label", `${describe(image, current)}, at ${title}; open`);
    tile.querySelector(".caption").replaceChildren(...caption(image, current));
  });
  mark();
  if (opened !== null) detail();
  const wanted = current;
  const sprite = await spriteOf(wanted);
  if (wanted !== current) return;
  element("lost").hidden = sprite !== null;
  tiles.forEach((tile, image) => paintMap(tile.querySelector("canvas"), sprite, image));
  document.documentElement.dataset.snapshot = wanted;
  for (const near of [wanted + 1, wanted - 1]) if (near >= 0 && near <= last) spriteOf(near);
}

// Marks the snapshot in all curves.
function mark() {
  drawn.then((plotly) => {
    const axis = contents.completeness?.data[0].x ?? run.snapshots.map((snapshot) => snapshot.epoch);
    for (const name of Object.keys(contents)) {
      const at = name === "layers" ? current : axis[current];
      const line = { type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, line: { width: 1.5, dash: "dot", color: "#888" } };
      plotly.relayout(element(`figure-${name}`), { shapes: [line] });
    }
  }, () => {});
}

function play() {
  if (playing !== null) {
    clearInterval(playing);
    playing = null;
  } else {
    if (current === last) show(0);
    playing = setInterval(() => (current === last ? play() : show(current + 1)), Math.max(80, Math.min(600, 8000 / run.snapshots.length)));
  }
  element("play").textContent = playing === null ? "▶▶" : "❚❚";
  element("play").setAttribute("aria-label", playing === null ? "play" : "pause");
}

// --- one image

function frame(image) {
  const picture = tiles[image].querySelector(".picture").cloneNode(true);
  const canvas = picture.querySelector("canvas");
  return { picture, canvas };
}

function spreadIndices(count, most) {
  if (count <= most) return [...Array(count).keys()];
  return [...Array(most).keys()].map((i) => Math.round((i * (count - 1)) / (most - 1)));
}

function open(image) {
  opened = (image + tiles.length) % tiles.length;
  const strip = element("strip");
  strip.replaceChildren();
  for (const snapshot of spreadIndices(run.snapshots.length, MOST_FRAMES)) {
    const { picture, canvas } = frame(opened);
    const { title } = run.snapshots[snapshot];
    const button = make("button", { type: "button", class: "tile", "data-snapshot": snapshot, "aria-label": `${describe(opened, snapshot)}, at ${title}` }, picture, title);
    button.addEventListener("click", () => show(snapshot));
    strip.append(button);
    const of = opened;
    spriteOf(snapshot).then((sprite) => of === opened && paintMap(canvas, sprite, of));
  }
  element("detail-picture").replaceChildren(frame(opened).picture);
  if (!element("detail").open) element("detail").showModal();
  detail();
}

function detail() {
  const [image, snapshot] = [opened, current];
  const answer = run.images[snapshot][image];
  element("detail-title").textContent = `Image ${image}${answer?.label ? `: ${answer.label}` : ""}`;
  element("detail-moment").textContent = `${run.snapshots[snapshot].title}, step ${run.snapshots[snapshot].step}`;
  for (const button of element("strip").children) {
    const isCurrent = Number(button.dataset.snapshot) === snapshot;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const rows = [];
  if (answer) {
    rows.push(["label", answer.label], ["explained", answer.explained], ["prediction", answer.prediction]);
    TERMS.forEach((name, i) => rows.push([name, answer.terms[i] === null ? "" : String(Number(answer.terms[i].toPrecision(4)))]));
  }
  const cells = rows.filter(([, value]) => value).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  element("answers").tBodies[0].replaceChildren(...cells);
  bars(image, snapshot);
  spriteOf(snapshot).then((sprite) => {
    const canvas = element("detail-picture").querySelector("canvas");
    if (opened === image && current === snapshot && canvas) paintMap(canvas, sprite, image);
  });
}

// What each layer adds to the output of this image; of all images if single ones were not stored.
function bars(image, snapshot) {
  const layers = run.layers[snapshot];
  const stored = element(`terms-${snapshot}`);
  let values = layers.map((layer) => layer.share);
  if (stored) {
    const terms = new Int16Array(bytes(stored.textContent).buffer);
    values = layers.map((_, i) => terms[i * tiles.length + image] * Number(stored.dataset.scale));
  }
  const known = [...values.keys()].filter((i) => values[i] !== null);
  element("layers-title").textContent = !known.length ? "" : stored ? "Terms by layer" : "Share of the output by layer, of all images";
  const largest = Math.max(...values.map(Math.abs), 1e-30);
  const shown = [...known].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, MOST_BARS).sort((a, b) => a - b);
  const rows = shown.map((i) => {
    const share = (50 * Math.abs(values[i])) / largest;
    const name = layers[i].name + (layers[i].kind === "implicit" ? " (implicit)" : "");
    const side = values[i] < 0 ? `right: 50%` : `left: 50%`;
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("i", { class: values[i] < 0 ? "against" : "for", style: `${side}; width: ${share}%` }));
    return make("tr", {}, make("th", { scope: "row", title: name }, name), make("td", {}, bar), make("td", {}, Number(values[i].toPrecision(3)).toString()));
  });
  if (known.length > shown.length) rows.push(make("tr", {}, make("td", { colspan: 3 }, `the ${shown.length} largest of ${known.length}`)));
  element("bars").tBodies[0].replaceChildren(...rows);
}

// --- controls

element("snapshot").addEventListener("input", (event) => show(Number(event.target.value)));
element("strength").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--strength", event.target.value);
  document.documentElement.style.setProperty("--grey", Number(event.target.value) > 0 ? 1 : 0);
});
element("before").addEventListener("click", () => show(current - 1));
element("after").addEventListener("click", () => show(current + 1));
element("play").addEventListener("click", play);
tiles.forEach((tile, image) => tile.addEventListener("click", () => open(image)));
element("image-before").addEventListener("click", () => open(opened - 1));
element("image-after").addEventListener("click", () => open(opened + 1));
element("close").addEventListener("click", () => element("detail").close());
element("detail").addEventListener("close", () => { opened = null; });
element("detail").addEventListener("click", (event) => event.target === element("detail") && element("detail").close());
document.addEventListener("keydown", (event) => {
  if (event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
  const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(to);
});
drawn.then(() => {
  for (const name of Object.keys(contents)) {
    element(`figure-${name}`).on("plotly_click", ({ points }) => show(points[0].pointIndex[1] ?? points[0].pointIndex));
  }
}, () => {});

const scale = element("scale").getContext("2d").createImageData(256, 1);
run.palette.forEach((colour, i) => scale.data.set([...colour.slice(0, 3), 255], 4 * i));
element("scale").getContext("2d").putImageData(scale, 0, 0);
show(last).finally(() => start());
