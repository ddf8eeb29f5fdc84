
// --- masks: a pixel's level is the number of fractions that keep it

const masks = read("data");
const rows = [...document.querySelectorAll(".masks tbody tr")];
const choices = [...document.querySelectorAll(".choice button")];
const sprites = rows.map((_, i) => decodeLevels(`data:image/webp;base64,${element(`ranks-${i}`).textContent}`));
let chosen = 0;

function colour(name) {
  const context = make("canvas", { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}

async function choose(place) {
  chosen = (place + choices.length) % choices.length;
  choices.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
  const image = choices[chosen].querySelector("img");
  await image?.decode();
  const [removedColour, keptColour] = [colour("--gone"), image ? [0, 0, 0, 0] : colour("--kept")];
  const wanted = chosen;
  for (const [i, row] of rows.entries()) {
    const sprite = await sprites[i];
    if (wanted !== chosen) return;
    [...row.querySelectorAll("canvas")].forEach((canvas, step) => {
      const palette = masks.fractions.concat(1).map((_, level) => ((level <= step) !== masks.keep ? removedColour : keptColour));
      paint(canvas, sprite, chosen, { ...masks, palette });
      const context = canvas.getContext("2d");
      if (image) {
        context.globalCompositeOperation = "destination-over";
        context.drawImage(image, 0, 0, canvas.width, canvas.height);
        context.globalCompositeOperation = "source-over";
      }
      const what = masks.keep ? "kept" : "removed";
      canvas.setAttribute("aria-label", `image ${chosen}, ${canvas.dataset.method}, ${masks.fractions[step]} of the pixels ${what}`);
    });
  }
  document.documentElement.dataset.chosen = wanted;
}

choices.forEach((button, place) => button.addEventListener("click", () => choose(place)));
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || !choices.length) return;
  const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(to);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choices.length && choose(chosen));
(choices.length ? choose(0) : Promise.resolve()).finally(() => start());
