
// --- the same images of several runs

const compared = read("data");
const cards = [...document.querySelectorAll(".compared > li")];
const MOST_COLUMNS = 24;
const MOST_SPRITES = 400;
const FIRST_ROWS = 10;

let opened = null;
let numRows = FIRST_ROWS;
const sprites = new Map();

moments = compared.snapshots;

// The maps of a run at a snapshot, decoded; null if they are lost. The latest ones are stored.
function spriteOf(run, snapshot) {
  const id = `maps-${run}-${snapshot}-${method}`;
  if (!sprites.has(id)) {
    const content = element(id).textContent;
    sprites.set(id, content ? decodeLevels(`data:image/webp;base64,${content}`) : Promise.resolve(null));
    if (sprites.size > MOST_SPRITES) sprites.delete(sprites.keys().next().value);
  }
  return sprites.get(id);
}

const methodInfo = (run) => compared.methods[run].find(({ name }) => name === method);

// Why a map has one colour: it is all zero, or constant. Empty for other maps.
const flat = (run, snapshot, image) => compared.flat[run][snapshot][method]?.[image] ?? "";

function paintMap(canvas, sprite, run, image, snapshot) {
  canvas.hidden = sprite === null;
  label(canvas, flat(run, snapshot, image));
  if (sprite !== null) paint(canvas, sprite, image, { ...compared, palette: methodInfo(run).palette });
}

const answerOf = (run, snapshot, image) => compared.images[run][snapshot][image];
const isWrong = (run, snapshot, image) => answerOf(run, snapshot, image)?.right === false;

function describe(run, snapshot, image) {
  const answer = answerOf(run, snapshot, image);
  const words = [`image ${image}`, compared.runs[run], `at ${compared.snapshots[snapshot].title}`];
  if (answer?.prediction) words.push(`predicted ${answer.prediction}${answer.right === null ? "" : answer.right ? ", right" : ", wrong"}`);
  if (flat(run, snapshot, image)) words.push(`the map is ${flat(run, snapshot, image)}`);
  return words.join(", ");
}

draw = async (snapshot) => {
  const of = method;
  cards.forEach((card, image) => {
    const distance = compared.distances[method][snapshot][image];
    card.querySelector(".distance").textContent = distance === null ? "" : `distance ${distance}`;
    card.querySelectorAll(".tile").forEach((tile, run) => {
      const answer = answerOf(run, snapshot, image), words = describe(run, snapshot, image);
      const prediction = make("span", !answer || answer.right === null ? {} : { class: answer.right ? "right" : "wrong" }, answer?.prediction ?? "");
      tile.querySelector(".caption").replaceChildren(prediction);
      tile.setAttribute("aria-label", `${words}; open`);
      tile.title = `${words}. Click for its film strips.`;
      tile.classList.toggle("is-wrong", isWrong(run, snapshot, image));
    });
  });
  for (const cell of document.querySelectorAll(".film [data-snapshot]")) cell.toggleAttribute("data-current", Number(cell.dataset.snapshot) === snapshot);
  markCurves((name) => (name.startsWith("images-") ? snapshot : compared.snapshots[snapshot].at));
  const decoded = await Promise.all(compared.runs.map((_, run) => spriteOf(run, snapshot)));
  if (snapshot !== current || of !== method) return;
  cards.forEach((card, image) => card.querySelectorAll("canvas").forEach((canvas, run) => paintMap(canvas, decoded[run], run, image, snapshot)));
  document.documentElement.dataset.method = of;
  document.documentElement.dataset.snapshot = snapshot;
};

function listDifferences() {
  const all = compared.differences[method];
  const rows = all.slice(0, numRows).map(({ snapshot, image, runs, distance }) => {
    const button = make("button", { type: "button", class: "link", title: "show this snapshot and this image" }, `image ${image}`);
    button.addEventListener("click", () => { show(snapshot); open(image); });
    const predictions = runs.map((run) => answerOf(run, snapshot, image)?.prediction || "–").join(" / ");
    return make("tr", {}, make("td", {}, String(distance)), make("td", { "data-value": image }, button),
      make("td", { "data-value": snapshot }, compared.snapshots[snapshot].title), ...runs.map((run) => make("td", { class: "words" }, compared.runs[run])),
      make("td", { class: "words" }, predictions));
  });
  element("differences").tBodies[0].replaceChildren(...rows);
  element("differences-more").hidden = all.length <= numRows;
}

// --- one image: a film strip of every run

function open(image) {
  opened = (image + cards.length) % cards.length;
  const table = element("film"), shown = spreadIndices(moments.length, MOST_COLUMNS), of = [opened, method].join();
  table.tHead.rows[0].replaceChildren(make("td"), ...shown.map((i) => make("th", { scope: "col", "data-snapshot": i }, moments[i].title)));
  table.tBodies[0].replaceChildren(...compared.runs.map((name, run) => {
    const row = make("tr", {}, make("th", { scope: "row" }, name));
    for (const snapshot of shown) {
      const picture = cards[opened].querySelector(".picture").cloneNode(true), canvas = picture.querySelector("canvas"), words = describe(run, snapshot, opened);
      const button = make("button", { type: "button", class: isWrong(run, snapshot, opened) ? "is-wrong" : "", "data-snapshot": snapshot, "aria-label": words, title: words }, picture);
      button.addEventListener("click", () => show(snapshot));
      row.append(make("td", {}, button));
      const wanted = opened;
      spriteOf(run, snapshot).then((sprite) => of === [opened, method].join() && paintMap(canvas, sprite, run, wanted, snapshot));
    }
    return row;
  }));
  element("detail-title").textContent = cards[opened].querySelector("h3").firstChild.textContent.trim();
  if (!element("detail").open) element("detail").showModal();
  show(current);
}

cards.forEach((card, image) => card.querySelectorAll(".tile").forEach((tile) => tile.addEventListener("click", () => open(image))));
element("image-before").addEventListener("click", () => open(opened - 1));
element("image-after").addEventListener("click", () => open(opened + 1));
element("close").addEventListener("click", () => element("detail").close());
element("detail").addEventListener("close", () => { opened = null; });
element("detail").addEventListener("click", (event) => event.target === element("detail") && element("detail").close());
element("differences-more").addEventListener("click", () => { numRows = Infinity; listDifferences(); });
document.documentElement.addEventListener("method", () => {
  drawScale(methodInfo(0));
  listDifferences();
  if (opened !== null) open(opened);
});
drawn.then(() => {
  for (const name of Object.keys(contents)) {
    element(`figure-${name}`).on("plotly_click", ({ points }) => {
      const at = name.startsWith("images-") ? points[0].pointIndex[1] : moments.findIndex(({ at }) => at === points[0].x);
      if (at >= 0) show(at);
    });
  }
}, () => {});

drawScale(methodInfo(0));
listDifferences();
show(last()).finally(() => start());
