"use strict";

// --- the list of runs, which grows as runs begin

const element = (id) => document.getElementById(id);
const EVERY = 2000;
const wanted = new URLSearchParams(location.search).get("folder");

function make(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  return created;
}

function age(seconds) {
  if (seconds === null) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

const rows = new Map();

function row(run) {
  const address = new URLSearchParams({ folder: run.folder });
  const known = rows.get(run.folder) ?? make("tr", {}, ...[...Array(7)].map((_, i) => make(i ? "td" : "th", i ? {} : { scope: "row" })));
  rows.set(run.folder, known);
  const [name, picture, snapshots, last, since, error, findings] = known.cells;
  name.replaceChildren(run.snapshots ? make("a", { href: `run?${address}` }, run.name) : run.name, make("br"), make("small", {}, run.module ?? ""));
  if (run.snapshots && known.dataset.seen !== run.seen) {
    const image = make("img", { alt: `the first images of ${run.name} at its last snapshot`, src: `thumbnail?${address}&seen=${run.seen}` });
    image.addEventListener("load", () => picture.replaceChildren(make("a", { href: `run?${address}` }, image)));
    if (!picture.children.length) picture.replaceChildren(image);
  }
  known.dataset.seen = run.seen;
  snapshots.textContent = run.snapshots || "none yet";
  last.textContent = run.last ?? "";
  since.textContent = run.has_ended ? `ended, ${age(run.age)}` : age(run.age);
  error.textContent = run.completeness_error === undefined || run.completeness_error === null ? "" : run.completeness_error.toExponential(1);
  findings.className = "words";
  const found = run.findings?.length === 0 ? ["none"] : run.findings ?? [];  // null: there is no file of them yet
  findings.replaceChildren(...found.flatMap((finding, i) => (i ? [make("br"), finding] : [finding])));
  return known;
}

async function follow() {
  try {
    const answer = await fetch("runs");
    if (!answer.ok) throw new Error(`the server answered with status ${answer.status}`);
    const runs = await answer.json();
    if (wanted !== null && runs.some((run) => run.folder === wanted && run.snapshots)) {
      location.reload();
      return;
    }
    if (runs.length === 1 && runs[0].snapshots && !location.search) {
      location.replace(`run?${new URLSearchParams({ folder: runs[0].folder })}`);
      return;
    }
    const without = runs.length ? "The run has no snapshot yet. The first one is written when training begins." : "There is no run here yet. It appears after its first snapshot is written.";
    element("waiting").textContent = without;
    element("waiting").hidden = runs.some((run) => run.snapshots);
    element("runs").hidden = !runs.length;
    element("runs").tBodies[0].replaceChildren(...runs.map(row));
    element("live").dataset.state = "following";
    element("live").textContent = runs.length ? `Following ${runs.length} run${runs.length === 1 ? "" : "s"}, the newest first.` : "Waiting for a run.";
  } catch (error) {
    element("live").dataset.state = "lost";
    element("live").textContent = `Not connected (${error.message}). Is fg-lightning watch still running? Trying again.`;
  }
  document.documentElement.dataset.drawn = "true";
  setTimeout(follow, EVERY);
}

follow();
