
// --- follows a run: asks the server for what is new, and adds it

const live = read("live-data");
const EVERY = 2000;
const LONG = 1800;  // seconds without a snapshot after which a run may have been killed
const query = new URLSearchParams(location.search);

function age(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function say(state, words) {
  element("live").dataset.state = state;
  element("live").textContent = words;
}

function sayFollowing(signs) {
  const since = signs.age === null ? "" : `last snapshot ${age(signs.age)} ago`;
  if (signs.has_ended) say("ended", `Training has ended; ${since}.`);
  else if (signs.age > LONG) say("late", `Following the run; ${since}. It may have stopped, or an epoch takes long.`);
  else say("following", `Following the run; ${since}.`);
  element("all-runs").hidden = !(signs.num_runs > 1);
}

function store(id, content, data = {}) {
  element(id)?.remove();
  const script = make("script", { type: "text/plain", id }, content);
  Object.assign(script.dataset, data);
  document.body.append(script);
}

function card({ name, title, meaning, link, height, is_wide }) {
  const note = make("p", { class: "hint" }, meaning);
  if (link) note.append(" ", make("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, "More"));
  const figure = make("div", { class: "figure", id: `figure-${name}`, role: "img" });
  figure.style.height = `${height}px`;
  return make("section", { class: is_wide ? "card wide" : "card", "aria-labelledby": `title-${name}` }, make("h3", { id: `title-${name}` }, title), ...(meaning ? [note] : []), figure);
}

async function updateFigures(figures) {
  const plotly = await drawn;
  let before = null;
  for (const { summary, content, ...figure } of figures) {
    const known = element(`figure-${figure.name}`);
    const section = known ? known.closest("section") : card(figure);
    if (!known) (before ? before.after(section) : document.querySelector(".figures").prepend(section));
    before = section;
    element(`figure-${figure.name}`).setAttribute("aria-label", `${figure.title}. ${summary}`);
    contents[figure.name] = content;
    await drawFigure(plotly, figure.name);
    if (!known) connectFigure(figure.name);
  }
}

function updateState({ facts, notes, findings }) {
  element("facts").replaceChildren(...facts.map((fact) => make("span", {}, fact)));
  element("notes").hidden = !notes.length;
  element("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
  element("findings").hidden = findings === null;
  element("no-findings").hidden = Boolean(findings?.length);
  element("findings-list").replaceChildren(...(findings ?? []).map((finding) => {
    const item = make("li", { class: "finding" }, make("strong", {}, finding.message));
    if (finding.value) item.append(" ", make("span", { class: "measured" }, `${finding.name}${finding.method ? ` (${finding.method})` : ""}: ${finding.value}`));
    item.append(make("br"), finding.advice, " ");
    if (finding.link) item.append(make("a", { href: finding.link, target: "_blank", rel: "noopener noreferrer" }, "What this means"));
    else if (finding.page) item.append(make("span", { class: "measured" }, `Manual: ${finding.page}`));
    return item;
  }));
}

async function add({ entries, sprites: added, terms, figures, state }) {
  const start = run.snapshots.length, follows = current === last() && playing === null;
  for (const [method, contents] of Object.entries(added)) {
    contents.forEach((content, i) => store(`maps-${start + i}${method === "fullgrad" ? "" : `-${method}`}`, content));
  }
  terms.forEach((of, i) => of && store(`terms-${start + i}`, of.content, { scale: of.scale }));
  for (const [name, items] of Object.entries(entries)) run[name].push(...items);
  element("numbers-table").tBodies[0].append(...entries.snapshots.map(numberRow));
  updateState(state);
  if (entries.snapshots.length) {
    drawFilm();
    if (opened !== null) open(opened);
    const shown = show(follows ? last() : current);
    await updateFigures(figures);
    await shown;
    await show(current);  // marks it in the new curves
  }
}

async function follow() {
  try {
    const wanted = new URLSearchParams({ folder: query.get("folder") ?? ".", start: run.snapshots.length, signature: live.signature, seen: live.seen });
    const answer = await fetch(`changes?${wanted}`);
    if (!answer.ok) throw new Error(answer.status === 404 ? "the folder of the run was removed" : `the server answered with status ${answer.status}`);
    const news = await answer.json();
    if (news.reload) {
      location.reload();
      return;
    }
    live.seen = news.seen;
    if (news.signature) {
      live.signature = news.signature;
      await add(news);
    }
    sayFollowing(news);
  } catch (error) {
    say("lost", `Not connected (${error.message}). Is fg-lightning watch still running? Trying again.`);
  }
  setTimeout(follow, EVERY);
}

sayFollowing(live);
drawn.finally(() => setTimeout(follow, EVERY));
