
// --- the probe

const run = read("data");
const last = run.looks.length - 1;
const tiles = [...document.querySelectorAll(".grid .tile")];
const TERMS = ["output", "input term", "biases", "implicit biases", "completeness error"];
const MOST_FRAMES = 24;
const MOST_BARS = 24;
const MOST_SPRITES = 60;

let current = last;
let opened = null;
let playing = null;
const sprites = new Map();

// The maps of a look, decoded; null where they are lost. The latest ones are kept.
function spriteOf(look) {
  if (!sprites.has(look)) {
    const content = element(`maps-${look}`).textContent;
    sprites.set(look, content ? redOf(`data:image/webp;base64,${content}`) : Promise.resolve(null));
    if (sprites.size > MOST_SPRITES) sprites.delete(sprites.keys().next().value);
  }
  return sprites.get(look);
}

function paintMap(canvas, sprite, image) {
  canvas.hidden = sprite === null;
  if (sprite !== null) paint(canvas, sprite, image, run);
}

function said(image, look) {
  const found = run.images[look][image];
  const words = [`image ${image}`];
  if (found?.label) words.push(`label ${found.label}`);
  if (found?.prediction) words.push(`predicted ${found.prediction}${found.right === null ? "" : found.right ? ", right" : ", wrong"}`);
  return words.join(", ");
}

function caption(image, look) {
  const found = run.images[look][image];
  if (!found) return [`image ${image}`];
  const answer = made("span", found.right === null ? {} : { class: found.right ? "right" : "wrong" }, found.prediction);
  return [made("small", {}, found.label || found.explained), made("br"), answer];
}

async function show(look) {
  current = Math.min(Math.max(look, 0), last);
  const { title, step } = run.looks[current];
  element("look").value = current;
  element("look").setAttribute("aria-valuetext", title);
  element("moment").value = `${title}, step ${step}`;
  element("before").disabled = current === 0;
  element("after").disabled = current === last;
  tiles.forEach((tile, image) => {
    tile.setAttribute("aria-label", `${said(image, current)}, at ${title}; open`);
    tile.querySelector(".caption").replaceChildren(...caption(image, current));
  });
  mark();
  if (opened !== null) detail();
  const wanted = current;
  const sprite = await spriteOf(wanted);
  if (wanted !== current) return;
  element("lost").hidden = sprite !== null;
  tiles.forEach((tile, image) => paintMap(tile.querySelector("canvas"), sprite, image));
  document.documentElement.dataset.look = wanted;
  for (const near of [wanted + 1, wanted - 1]) if (near >= 0 && near <= last) spriteOf(near);
}

// Where the slider is, in all curves.
function mark() {
  drawn.then((plotly) => {
    const axis = contents.completeness?.data[0].x ?? run.looks.map((look) => look.epoch);
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
    playing = setInterval(() => (current === last ? play() : show(current + 1)), Math.max(80, Math.min(600, 8000 / run.looks.length)));
  }
  element("play").textContent = playing === null ? "▶▶" : "❚❚";
  element("play").setAttribute("aria-label", playing === null ? "play" : "pause");
}

// --- one image

function frame(image) {
  const found = tiles[image].querySelector(".picture").cloneNode(true);
  const canvas = found.querySelector("canvas");
  return { found, canvas };
}

function spaced(count, most) {
  if (count <= most) return [...Array(count).keys()];
  return [...Array(most).keys()].map((i) => Math.round((i * (count - 1)) / (most - 1)));
}

function open(image) {
  opened = (image + tiles.length) % tiles.length;
  const strip = element("strip");
  strip.replaceChildren();
  for (const look of spaced(run.looks.length, MOST_FRAMES)) {
    const { found, canvas } = frame(opened);
    const { title } = run.looks[look];
    const button = made("button", { type: "button", class: "tile", "data-look": look, "aria-label": `${said(opened, look)}, at ${title}` }, found, title);
    button.addEventListener("click", () => show(look));
    strip.append(button);
    const of = opened;
    spriteOf(look).then((sprite) => of === opened && paintMap(canvas, sprite, of));
  }
  element("detail-picture").replaceChildren(frame(opened).found);
  if (!element("detail").open) element("detail").showModal();
  detail();
}

function detail() {
  const [image, look] = [opened, current];
  const found = run.images[look][image];
  element("detail-title").textContent = `Image ${image}${found?.label ? `: ${found.label}` : ""}`;
  element("detail-moment").textContent = `${run.looks[look].title}, step ${run.looks[look].step}`;
  for (const button of element("strip").children) {
    const isCurrent = Number(button.dataset.look) === look;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const rows = [];
  if (found) {
    rows.push(["label", found.label], ["explained", found.explained], ["prediction", found.prediction]);
    TERMS.forEach((name, i) => rows.push([name, found.terms[i] === null ? "" : String(Number(found.terms[i].toPrecision(4)))]));
  }
  const cells = rows.filter(([, value]) => value).map(([name, value]) => made("tr", {}, made("th", { scope: "row" }, name), made("td", {}, value)));
  element("answers").tBodies[0].replaceChildren(...cells);
  bars(image, look);
  spriteOf(look).then((sprite) => {
    const canvas = element("detail-picture").querySelector("canvas");
    if (opened === image && current === look && canvas) paintMap(canvas, sprite, image);
  });
}

// What each layer adds: to this image's output where that was kept, else to that of all images.
function bars(image, look) {
  const layers = run.layers[look];
  const kept = element(`terms-${look}`);
  let values = layers.map((layer) => layer.share);
  if (kept) {
    const terms = new Int16Array(bytes(kept.textContent).buffer);
    values = layers.map((_, i) => terms[i * tiles.length + image] * Number(kept.dataset.scale));
  }
  const known = [...values.keys()].filter((i) => values[i] !== null);
  element("layers-title").textContent = !known.length ? "" : kept ? "Terms by layer" : "Share of the output by layer, of all images";
  const largest = Math.max(...values.map(Math.abs), 1e-30);
  const shown = [...known].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, MOST_BARS).sort((a, b) => a - b);
  const rows = shown.map((i) => {
    const share = (50 * Math.abs(values[i])) / largest;
    const name = layers[i].name + (layers[i].kind === "implicit" ? " (implicit)" : "");
    const side = values[i] < 0 ? `right: 50%` : `left: 50%`;
    const bar = made("span", { class: "bar", "aria-hidden": "true" }, made("i", { class: values[i] < 0 ? "against" : "for", style: `${side}; width: ${share}%` }));
    return made("tr", {}, made("th", { scope: "row", title: name }, name), made("td", {}, bar), made("td", {}, Number(values[i].toPrecision(3)).toString()));
  });
  if (known.length > shown.length) rows.push(made("tr", {}, made("td", { colspan: 3 }, `the ${shown.length} largest of ${known.length}`)));
  element("bars").tBodies[0].replaceChildren(...rows);
}

// --- what a person does

element("look").addEventListener("input", (event) => show(Number(event.target.value)));
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
