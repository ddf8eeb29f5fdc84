
// --- the probe

const run = read("data");
const tiles = [...document.querySelectorAll(".grid .tile")];
const TERMS = ["output", "input term", "biases", "implicit biases", "completeness error"];
const MOST_FRAMES = 24;
const MOST_COLUMNS = 12;
const MOST_ROWS = 8;
const MOST_BARS = 24;
const MOST_SPRITES = 120;

let opened = null;
let numRows = MOST_ROWS;
const sprites = new Map();

moments = run.snapshots;

const spriteId = (snapshot) => `maps-${snapshot}${method === "fullgrad" ? "" : `-${method}`}`;
const methodInfo = () => run.methods.find(({ name }) => name === method);

// The maps of a snapshot, decoded; null if they are lost. The latest ones are stored.
function spriteOf(snapshot) {
  const id = spriteId(snapshot);
  if (!sprites.has(id)) {
    const content = element(id).textContent;
    sprites.set(id, content ? decodeLevels(`data:image/webp;base64,${content}`) : Promise.resolve(null));
    if (sprites.size > MOST_SPRITES) sprites.delete(sprites.keys().next().value);
  }
  return sprites.get(id);
}

// Why a map has one colour: it is all zero, or constant. Empty for other maps.
const flat = (snapshot, image) => run.snapshots[snapshot].flat[method]?.[image] ?? "";

function paintMap(canvas, sprite, image, snapshot) {
  canvas.hidden = sprite === null;
  label(canvas, flat(snapshot, image));
  if (sprite !== null) paint(canvas, sprite, image, { ...run, palette: methodInfo().palette });
}

function describe(image, snapshot) {
  const answer = run.images[snapshot][image];
  const words = [`image ${image}`];
  if (answer?.label) words.push(`label ${answer.label}`);
  if (answer?.prediction) words.push(`predicted ${answer.prediction}${answer.right === null ? "" : answer.right ? ", right" : ", wrong"}`);
  if (flat(snapshot, image)) words.push(`the map is ${flat(snapshot, image)}`);
  return words.join(", ");
}

function caption(image, snapshot) {
  const answer = run.images[snapshot][image];
  if (!answer) return [`image ${image}`];
  const prediction = make("span", answer.right === null ? {} : { class: answer.right ? "right" : "wrong" }, answer.prediction);
  return [make("small", {}, answer.label ? `label ${answer.label}` : answer.explained ? `explained ${answer.explained}` : `image ${image}`), make("br"), prediction];
}

const isWrong = (image, snapshot) => run.images[snapshot][image]?.right === false;

draw = async (snapshot) => {
  const { title } = run.snapshots[snapshot];
  tiles.forEach((tile, image) => {
    const words = `${describe(image, snapshot)}, at ${title}`;
    tile.setAttribute("aria-label", `${words}; open`);
    tile.title = `${words}. Click for details.`;
    tile.classList.toggle("is-wrong", isWrong(image, snapshot));
    tile.querySelector(".caption").replaceChildren(...caption(image, snapshot));
  });
  for (const cell of document.querySelectorAll(".film [data-snapshot]")) cell.toggleAttribute("data-current", Number(cell.dataset.snapshot) === snapshot);
  markCurves((name) => (name === "layers" ? snapshot : run.snapshots[snapshot].at));
  if (opened !== null) detail();
  const [wanted, of] = [snapshot, method];
  const sprite = await spriteOf(wanted);
  if (wanted !== current || of !== method) return;
  element("lost").hidden = sprite !== null;
  tiles.forEach((tile, image) => paintMap(tile.querySelector("canvas"), sprite, image, wanted));
  const numZero = Object.values(run.snapshots[wanted].flat[of] ?? {}).filter((words) => words === "all zero").length;
  element("zero").hidden = numZero === 0;
  element("zero").textContent = `${numZero} of ${tiles.length} maps of this snapshot are zero everywhere. Its numbers leave them out, except the drift.`;
  document.documentElement.dataset.method = of;
  document.documentElement.dataset.snapshot = wanted;
  for (const near of [wanted + 1, wanted - 1]) if (near >= 0 && near <= last()) spriteOf(near);
};

// --- all images through training

function drawFilm() {
  const shown = spreadIndices(run.snapshots.length, MOST_COLUMNS);
  const count = Math.min(numRows, tiles.length);
  const table = element("film"), of = method;
  element("film-note").textContent =
    (shown.length < run.snapshots.length ? `${shown.length} of ${run.snapshots.length} snapshots, evenly chosen. ` : "");
  element("film-more").hidden = count === tiles.length;
  element("film-more").textContent = `Show all ${tiles.length} images`;
  table.tHead.rows[0].replaceChildren(make("td"), ...shown.map((i) => make("th", { scope: "col", "data-snapshot": i }, run.snapshots[i].title)));
  const cells = [];
  const rows = tiles.slice(0, count).map((_, image) => {
    const label = run.images[last()][image]?.label;
    const row = make("tr", {}, make("th", { scope: "row", title: `image ${image}` }, label ? `label ${label}` : `image ${image}`));
    for (const snapshot of shown) {
      const { picture, canvas } = frame(image);
      const words = `${describe(image, snapshot)}, at ${run.snapshots[snapshot].title}`;
      const button = make("button", { type: "button", class: isWrong(image, snapshot) ? "is-wrong" : "", "data-snapshot": snapshot, "aria-label": words, title: words }, picture);
      button.addEventListener("click", () => show(snapshot));
      row.append(make("td", {}, button));
      cells.push([snapshot, canvas, image]);
    }
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
  for (const snapshot of shown) {
    spriteOf(snapshot).then((sprite) => {
      if (of !== method) return;
      for (const [at, canvas, image] of cells) if (at === snapshot) paintMap(canvas, sprite, image, at);
    });
  }
}

element("film-more").addEventListener("click", () => { numRows = Infinity; drawFilm(); show(current); });
document.documentElement.addEventListener("method", () => {
  drawScale(methodInfo());
  drawFilm();
  if (opened !== null) open(opened);
});

// --- the table of numbers

const short = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(value));

function numberRow({ epoch, step, numbers }) {
  const cell = (value) => make("td", {}, value === undefined || value === null ? "" : short(value));
  return make("tr", {}, cell(epoch), cell(step), ...run.numbers.map(({ key }) => cell(numbers[key])));
}

element("numbers-table").tBodies[0].append(...run.snapshots.map(numberRow));

// --- one image

function frame(image) {
  const picture = tiles[image].querySelector(".picture").cloneNode(true);
  const canvas = picture.querySelector("canvas");
  return { picture, canvas };
}

function open(image) {
  opened = (image + tiles.length) % tiles.length;
  const strip = element("strip");
  strip.replaceChildren();
  for (const snapshot of spreadIndices(run.snapshots.length, MOST_FRAMES)) {
    const { picture, canvas } = frame(opened);
    const { title } = run.snapshots[snapshot];
    const button = make("button", { type: "button", class: isWrong(opened, snapshot) ? "tile is-wrong" : "tile", "data-snapshot": snapshot, "aria-label": `${describe(opened, snapshot)}, at ${title}`, title: describe(opened, snapshot) }, picture, title);
    button.addEventListener("click", () => show(snapshot));
    strip.append(button);
    const of = opened;
    spriteOf(snapshot).then((sprite) => of === opened && paintMap(canvas, sprite, of, snapshot));
  }
  element("detail-picture").replaceChildren(frame(opened).picture);
  if (!element("detail").open) element("detail").showModal();
  detail();
}

function detail() {
  const [image, snapshot] = [opened, current];
  const answer = run.images[snapshot][image];
  element("detail-title").textContent = `Image ${image}${answer?.label ? `: ${answer.label}` : ""}`;
  element("detail-moment").textContent = run.snapshots[snapshot].moment + (run.methods.length > 1 ? `, maps of ${method}` : "");
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
    if (opened === image && current === snapshot && canvas) paintMap(canvas, sprite, image, snapshot);
  });
}

// The term of each layer for this image; the share over all images if terms of single images were not stored.
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

tiles.forEach((tile, image) => tile.addEventListener("click", () => open(image)));
element("image-before").addEventListener("click", () => open(opened - 1));
element("image-after").addEventListener("click", () => open(opened + 1));
element("close").addEventListener("click", () => element("detail").close());
element("detail").addEventListener("close", () => { opened = null; });
element("detail").addEventListener("click", (event) => event.target === element("detail") && element("detail").close());
function connectFigure(name) {
  element(`figure-${name}`).on("plotly_click", ({ points }) => show(points[0].pointIndex[1] ?? points[0].pointIndex));
}

drawn.then(() => Object.keys(contents).forEach(connectFigure), () => {});

drawScale(methodInfo());
drawFilm();
show(last()).finally(() => start());
