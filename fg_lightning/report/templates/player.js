
// --- snapshots: a slider, buttons, keys and a method choose one, and `draw` of the page shows it

let moments = [];  // {title, moment} of every snapshot
let current = 0;
let playing = null;
let method = "fullgrad";
let draw = () => {};

const last = () => moments.length - 1;

async function show(snapshot) {
  current = Math.min(Math.max(snapshot, 0), last());
  const { title, moment } = moments[current];
  const slider = element("snapshot");
  slider.max = last();
  slider.disabled = last() === 0;
  slider.value = current;
  slider.setAttribute("aria-valuetext", title);
  element("moment").value = moment;
  element("before").disabled = current === 0;
  element("after").disabled = current === last();
  await draw(current);
}

function play() {
  if (playing !== null) {
    clearInterval(playing);
    playing = null;
  } else {
    if (current === last()) show(0);
    playing = setInterval(() => (current === last() ? play() : show(current + 1)), Math.max(80, Math.min(600, 8000 / moments.length)));
  }
  const next = playing === null ? "play" : "pause";
  element("play").setAttribute("aria-label", next);
  element("play").title = next === "play" ? "play all snapshots (space)" : "pause (space)";
}

// Dotted lines in the curves; `place` gives the position on the axis of a figure.
function markCurves(place) {
  drawn.then((plotly) => {
    for (const [name, { layout }] of Object.entries(contents)) {
      const at = place(name);
      if (at === undefined) continue;
      const line = { type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, line: { width: 1.5, dash: "dot", color: "#888" } };
      plotly.relayout(element(`figure-${name}`), { shapes: [...(layout.shapes ?? []).filter((shape) => shape.yref !== "paper"), line] });
    }
  }, () => {});
}

function spreadIndices(count, most) {
  if (count <= most) return [...Array(count).keys()];
  return [...Array(most).keys()].map((i) => Math.round((i * (count - 1)) / (most - 1)));
}

// Words on a map that has one colour, and would look like a fault.
function label(canvas, words) {
  const shown = canvas.parentElement.querySelector(".flat");
  if (!words) shown?.remove();
  else if (shown) shown.textContent = words;
  else canvas.after(make("span", { class: "flat" }, words));
}

// The colours of the maps, from low to high.
function drawScale({ palette, is_signed }) {
  const context = element("scale").getContext("2d"), scale = context.createImageData(256, 1);
  palette.forEach((colour, i) => scale.data.set([...colour.slice(0, 3), 255], 4 * i));
  context.putImageData(scale, 0, 0);
  element("scale-low").textContent = is_signed ? "against" : "low";
  element("scale-high").textContent = is_signed ? "for" : "high";
}

element("snapshot").addEventListener("input", (event) => show(Number(event.target.value)));
element("strength").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--strength", event.target.value);
  document.documentElement.style.setProperty("--grey", Number(event.target.value) > 0 ? 1 : 0);
});
element("before").addEventListener("click", () => show(current - 1));
element("after").addEventListener("click", () => show(current + 1));
element("play").addEventListener("click", play);
element("method")?.addEventListener("change", (event) => {
  method = event.target.value;
  document.documentElement.dispatchEvent(new CustomEvent("method"));
  show(current);
});
document.addEventListener("keydown", (event) => {
  if (event.target.type === "range" || event.target.tagName === "SELECT" || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === " " && !["BUTTON", "SUMMARY", "A"].includes(event.target.tagName)) {
    event.preventDefault();
    play();
    return;
  }
  const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last() }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(to);
});
