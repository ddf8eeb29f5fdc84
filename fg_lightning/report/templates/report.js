"use strict";

const element = (id) => document.getElementById(id);
const read = (id) => JSON.parse(element(id).textContent);
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function make(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  return created;
}

// --- curves

const contents = read("figures");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const [text, line, card] = ["--text", "--line", "--card"].map((name) => style.getPropertyValue(name).trim());
  return {
    "font.color": text, "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": line,
    "xaxis.gridcolor": line, "yaxis.gridcolor": line, "xaxis.linecolor": line, "yaxis.linecolor": line,
  };
}

async function unpackPlotly() {
  const stream = new Blob([bytes(element("plotly").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = make("script");
  script.text = await new Response(stream).text();
  document.head.append(script);
  return window.Plotly;
}

// Lets a figure scale to the paper: it keeps the size that it was drawn in.
function fixSize(figure) {
  const { width, height } = figure._fullLayout;
  figure.style.setProperty("--figure-width", width);
  figure.style.setProperty("--figure-height", height);
  for (const svg of figure.querySelectorAll(".main-svg")) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

async function drawFigure(plotly, name) {
  const { data, layout } = contents[name], figure = element(`figure-${name}`);
  if (layout.meta) data[0].text = layout.meta.rows.map((row) => layout.meta.columns.map((column) => `${row}, ${column}`));  // of a heat map
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
  if (figure.data) {
    await plotly.react(figure, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  } else {
    await plotly.newPlot(figure, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    figure.on("plotly_afterplot", () => fixSize(figure));
  }
  await plotly.relayout(figure, colours());
}

async function drawFigures() {
  await new Promise((resolve) => setTimeout(resolve, 30));  // paint what the user sees first
  const plotly = await unpackPlotly();
  for (const name of Object.keys(contents)) await drawFigure(plotly, name);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const name of Object.keys(contents)) plotly.relayout(element(`figure-${name}`), colours());
  });
  document.documentElement.dataset.drawn = "true";
  return plotly;
}

let start;
const drawn = new Promise((resolve) => { start = resolve; }).then(drawFigures);
drawn.catch((error) => {
  for (const name of Object.keys(contents)) element(`figure-${name}`).textContent = `This browser cannot draw curves (${error.message}).`;
});

// --- tables

function compare(first, second) {
  const [a, b] = [first, second].map(Number);
  if (first === "" || second === "") return (first === "") - (second === "");
  return Number.isNaN(a) || Number.isNaN(b) ? first.localeCompare(second) : a - b;
}

function sort(heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = heading.closest("table").tBodies[0];
  const value = (row) => row.cells[heading.cellIndex].dataset.value ?? row.cells[heading.cellIndex].textContent.trim();
  const known = [...body.rows].filter((row) => value(row) !== "");
  const unknown = [...body.rows].filter((row) => value(row) === "");
  known.sort((a, b) => (descending ? -1 : 1) * compare(value(a), value(b)));
  body.append(...known, ...unknown);
}

for (const heading of document.querySelectorAll("table.sortable thead th")) {
  heading.firstElementChild.addEventListener("click", () => sort(heading));
}

// --- sprites

async function decodeLevels(source) {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  const canvas = make("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data, width } = context.getImageData(0, 0, canvas.width, canvas.height);
  const levels = new Uint8Array(data.length / 4);
  for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i];
  return { levels, width };
}

// Paints a tile of a sprite; the palette gives a colour [r, g, b, a] for each level.
function paint(canvas, sprite, index, { columns, height, width, palette }) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const start = Math.floor(index / columns) * height * sprite.width + (index % columns) * width;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      const colour = palette[sprite.levels[start + y * sprite.width + x]];
      pixels.data[to] = colour[0];
      pixels.data[to + 1] = colour[1];
      pixels.data[to + 2] = colour[2];
      pixels.data[to + 3] = colour[3];
    }
  }
  context.putImageData(pixels, 0, 0);
}

// --- paper: opens all folded parts

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.wasClosed = "true";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-was-closed]")) {
    details.open = false;
    delete details.dataset.wasClosed;
  }
});
