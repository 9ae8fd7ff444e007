// Shows the questions of a sampling run, or of the steps of a training that draws. The URL fragment holds the whole
// state (#filter=kept&row=3), so that every view can be linked. Texts of models and datasets become text nodes, never
// markup.

// A text is a string or, if it is very long, [head, number of characters left out, tail].
const plain = (text) => (Array.isArray(text) ? `${text[0]} … ${text[2]}` : text);
const scorers = JSON.parse(byId("scorers").textContent);
const steps = byId("steps") ? JSON.parse(byId("steps").textContent) : []; // none of a sampling run
const draws = steps.length > 0;
const rows = (draws ? steps.flatMap(rowsOfStep) : JSON.parse(byId("rows").textContent)).map(withCounts);

function rowsOfStep({ step, rows: ofStep }) {
  const bare = { turns: [], scores: {}, steps: {}, right: null, score: null, advantage: null, answer: null, reasons: [], sampled: true };
  return ofStep.map((row) => ({
    ...row, step, origin: "", leftOut: "",
    candidates: row.candidates.map((candidate) => ({ ...bare, ...candidate })),
  }));
}

function withCounts(row) {
  const rewards = row.candidates.map((candidate) => candidate.score).filter((score) => score !== null);
  const reward = rewards.length ? rewards.reduce((sum, each) => sum + each, 0) / rewards.length : null;
  const judged = row.candidates.filter((candidate) => candidate.sampled && candidate.right !== null);
  const right = judged.filter((candidate) => candidate.right).length;
  const kept = row.candidates.filter((candidate) => candidate.sampled && !candidate.reasons.length).length;
  const reference = row.candidates.some((candidate) => !candidate.sampled && !candidate.reasons.length);
  const tally = [kept ? `${kept} kept` : "", reference ? "reference kept" : ""].filter(Boolean).join(", ");
  const question = row.prompt.findLast((message) => message.role === "user") ?? row.prompt.at(-1);
  return {
    ...row, judged: judged.length, right, kept: tally, question: question ? plain(question.text) : "",
    reward, teaches: new Set(rewards).size > 1, missing: row.candidates.length - rewards.length,
  };
}

/* State */

const FILTERS = {
  "all": ["All", () => true],
  "all-right": ["All right", (row) => row.judged && row.right === row.judged],
  "some-right": ["Some right", (row) => row.right && row.right < row.judged],
  "none-right": ["None right", (row) => row.judged && !row.right],
  "kept": ["Kept", (row) => row.kept],
  "left-out": ["Left out", (row) => !row.kept],
  "teaching": ["Teach", (row) => row.teaches],
  "alike": ["All rewards equal", (row) => !row.teaches],
  "missing": ["Without a reward", (row) => row.missing],
};
const SHOWN = {
  "all": ["All", () => true],
  "right": ["Right", (candidate) => candidate.right === true],
  "wrong": ["Wrong", (candidate) => candidate.right === false],
  "kept": ["Kept", (candidate) => !candidate.reasons.length],
  "above": ["Advantage above 0", (candidate) => candidate.advantage > 0],
  "below": ["Below 0", (candidate) => candidate.advantage < 0],
  "missing": ["Without a reward", (candidate) => candidate.score === null],
};
const share = (row) => (row.judged ? row.right / row.judged : -1);
const SORTS = {
  "position": ["In order", (one, other) => one.position - other.position],
  "most-right": ["Most right first", (one, other) => share(other) - share(one) || one.position - other.position],
  "least-right": ["Least right first", (one, other) => share(one) - share(other) || one.position - other.position],
  "highest": ["Highest reward first", (one, other) => other.reward - one.reward || one.position - other.position],
  "lowest": ["Lowest reward first", (one, other) => one.reward - other.reward || one.position - other.position],
};
const JUDGED_ONLY = new Set(["all-right", "some-right", "none-right", "right", "wrong", "most-right", "least-right"]);
const SAMPLED_ONLY = new Set(["kept", "left-out", "some-right", "most-right", "least-right"]);
const DRAWN_ONLY = new Set(["teaching", "alike", "missing", "above", "below", "highest", "lowest"]);
const judges = rows.some((row) => row.judged);
const misses = rows.some((row) => row.missing);
const offered = (table) => Object.entries(table).filter(([name]) =>
  (judges || !JUDGED_ONLY.has(name)) && !(draws ? SAMPLED_ONLY : DRAWN_ONLY).has(name) && (misses || name !== "missing"));

let state, found, current, drawnList;

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const choice = (key, table) => (Object.hasOwn(table, given.get(key) ?? "") ? given.get(key) : Object.keys(table)[0]);
  return {
    filter: choice("filter", FILTERS),
    show: choice("show", SHOWN),
    sort: choice("sort", SORTS),
    q: given.get("q") ?? "",
    row: given.get("row") ?? "",
    step: (steps.find(({ step }) => String(step) === given.get("step")) ?? steps.at(-1))?.step,
  };
}

function address(change) {
  const wanted = { ...state, ...change };
  const given = new URLSearchParams({ filter: wanted.filter });
  if (wanted.show !== "all") given.set("show", wanted.show);
  if (wanted.sort !== "position") given.set("sort", wanted.sort);
  if (wanted.q) given.set("q", wanted.q);
  if (wanted.step !== undefined) given.set("step", wanted.step);
  if (wanted.row !== "") given.set("row", wanted.row);
  return `#${given}`;
}

function go(change) {
  history.replaceState(null, "", address(change));
  draw();
}

function pattern() {
  const literal = state.q.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  return new RegExp(`(${literal})`, "iu");
}

function matches(row) {
  if (!state.q) return true;
  const turns = row.candidates.flatMap((candidate) => candidate.turns ?? []);
  const texts = [...row.prompt, ...turns, ...row.candidates].map((one) => plain(one.text));
  const wanted = pattern();
  return [row.origin, row.id, plain(row.reference ?? ""), ...texts].some((text) => wanted.test(text));
}

/* Drawing */

// The text as nodes, with every match of the search marked.
function marked(text) {
  if (!state.q) return [text];
  return text.split(pattern()).map((part, place) => (place % 2 ? make("mark", "", part) : part));
}

function textBlock(text) {
  const block = make("div", "text");
  block.tabIndex = 0;
  if (plain(text) === "") block.append(make("span", "empty", "empty"));
  else if (!Array.isArray(text)) block.append(...marked(text));
  else {
    const gap = make("span", "gap", `${text[1].toLocaleString("en")} characters not shown`);
    block.append(...marked(text[0]), gap, ...marked(text[2]));
  }
  return block;
}

const short = (value) => String(Number(value.toPrecision(3)));

// The key finds the button again after a redraw, so that it keeps the focus.
function makeButton(classes, key, change, ...children) {
  const button = make("button", classes, ...children);
  button.type = "button";
  button.dataset.key = key;
  button.addEventListener("click", () => go(change));
  return button;
}

function pills(table, items, key) {
  return offered(table).map(([name, [label, holds]]) => {
    const count = items.filter(holds).length.toLocaleString("en");
    const button = makeButton("pill", `${key}-${name}`, { [key]: name }, label, " ", make("span", "count", count));
    button.setAttribute("aria-pressed", state[key] === name);
    return button;
  });
}

function draw() {
  const focused = document.activeElement.dataset.key;
  if (!state || !byId(location.hash.slice(1))) state = readState(); // the fragment may be that of another section
  const matching = rows.filter((row) => row.step === state.step && matches(row));
  found = matching.filter(FILTERS[state.filter][1]).sort(SORTS[state.sort][1]);
  current = found.find((row) => String(row.position) === state.row) ?? found[0];
  byId("filters").replaceChildren(...pills(FILTERS, matching, "filter"));
  byId("found").textContent = found.length === 1 ? "1 question" : `${found.length.toLocaleString("en")} questions`;
  byId("sort").value = state.sort;
  if (byId("search").value !== state.q) byId("search").value = state.q;
  if (draws) drawStep();
  drawList();
  byId("detail").replaceChildren(...(current ? detail(current) : [make("p", "nothing", "No question matches.")]));
  if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
}

// What is shown of which step, and the way to others.
function drawStep() {
  const place = steps.findIndex(({ step }) => step === state.step);
  const { step, reward, prompts, teaching, missing, failed, is } = steps[place];
  const slider = byId("step");
  slider.value = place;
  const mean = reward === null ? "no reward" : `mean reward ${short(reward)}${is ? ` (${is})` : ""}`;
  const shown = steps[place].rows.length;
  const facts = [mean, `${teaching} of ${prompts} ${prompts === 1 ? "prompt" : "prompts"} teach`];
  if (missing) facts.push(`${missing} ${missing === 1 ? "candidate" : "candidates"} without a reward`);
  if (failed) facts.push(`${failed} ${failed === 1 ? "prompt" : "prompts"} without candidates`);
  if (shown < prompts) facts.push(`the first ${shown} prompts are in this page`);
  byId("step-name").textContent = `Step ${step.toLocaleString("en")}`;
  byId("step-facts").textContent = facts.join(" · ");
  slider.setAttribute("aria-valuetext", `step ${step}, ${mean}`);
  const neighbour = (id, other) => {
    byId(id).disabled = !other;
    byId(id).onclick = () => go({ step: other.step, row: "" });
  };
  neighbour("step-before", steps[place - 1]);
  neighbour("step-after", steps[place + 1]);
}

function drawList() {
  const list = byId("list");
  const key = address({ row: "" });
  if (key !== drawnList) {
    list.replaceChildren(...found.map(listItem));
    list.scrollTop = 0;
    drawnList = key;
  }
  list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const item = list.children[found.indexOf(current)];
  if (!item) return;
  item.firstChild.setAttribute("aria-current", "true");
  const [top, bottom] = [item.offsetTop, item.offsetTop + item.offsetHeight];
  list.scrollTop = Math.min(top, Math.max(list.scrollTop, bottom - list.clientHeight));
}

function listItem(row) {
  const question = make("span", "question", ...marked(row.question.slice(0, 300)));
  const link = make("a", "item", make("span", "number", `#${row.position}`), " ", question, " ");
  link.href = address({ row: row.position });
  const foot = make("span", "tally");
  if (draws || row.judged) foot.append(pips(row));
  if (row.judged) foot.append(make("span", "", `${row.right}/${row.judged} right`));
  if (draws && !row.problem) {
    foot.append(make("span", "", row.reward === null ? "no reward" : `reward ${short(row.reward)}`));
    if (!row.teaches) foot.append(make("span", "out", "teaches nothing"));
  } else if (row.kept) foot.append(make("span", "kept", row.kept));
  else foot.append(make("span", "out", row.problem || row.leftOut || "left out"));
  link.append(foot);
  return make("li", "", link);
}

// One square per candidate while they are few: filled for right (or an advantage above 0), hollow for wrong.
function pips(row) {
  const sampled = row.candidates.filter((candidate) => candidate.sampled);
  const squares = sampled.length > 16 ? [] : sampled.map((candidate) => make("i", tone(candidate)));
  const group = make("span", "pips", ...squares);
  group.setAttribute("aria-hidden", "true");
  return group;
}

const tone = (candidate) =>
  (!draws ? verdict(candidate) : !candidate.advantage ? "unknown" : candidate.advantage > 0 ? "right" : "wrong");
const verdict = (candidate) => (candidate.right === null ? "unknown" : candidate.right ? "right" : "wrong");

const messageBlock = ({ role, text }) => make("section", "message", make("h3", "", role), textBlock(text));

function detail(row) {
  const place = found.indexOf(row);
  const step = (label, name, other) => {
    const button = makeButton("step", name, { row: other?.position }, label);
    button.title = name;
    button.setAttribute("aria-label", name);
    button.disabled = !other;
    return button;
  };
  const head = make("header", "",
    make("h2", "", `Question #${row.position}`),
    make("span", "origin", row.origin), make("code", "id", row.id),
    make("nav", "", make("span", "", `${place + 1} of ${found.length}`),
      step("←", "Previous question (k)", found[place - 1]), step("→", "Next question (j)", found[place + 1])));
  const prompt = make("div", "messages", ...row.prompt.map(messageBlock));
  const asked = make("div", "asked", prompt);
  if (row.reference !== null) {
    asked.append(make("section", "message reference", make("h3", "", "reference"), textBlock(row.reference)));
  }
  if (row.problem) return [head, asked, make("p", "notice", `No candidates: ${row.problem}`)];
  const choice = make("div", "pills", ...pills(SHOWN, row.candidates, "show"));
  const shown = row.candidates.filter(SHOWN[state.show][1]);
  const cards = shown.length ? make("div", "cards", ...shown.map(card)) : make("p", "nothing", "No candidate matches.");
  const bar = make("div", "bar", make("h3", "", "Candidates"), choice);
  if (row.leftOut) bar.append(make("span", "out", `Nothing kept: ${row.leftOut}`));
  return [head, asked, bar, cards];
}

const VERDICTS = { right: "✓ right", wrong: "✗ wrong", unknown: "not judged" };

function card(candidate) {
  const judged = verdict(candidate);
  const head = make("header", "", make("span", "number", `#${candidate.index}`));
  if (judged !== "unknown" || judges) head.append(make("span", `verdict ${judged}`, VERDICTS[judged]));
  if (draws) head.append(make("span", `verdict ${tone(candidate)}`, advantageOf(candidate)));
  else if (!candidate.reasons.length) head.append(make("span", "kept", "kept"));
  const cut = candidate.finish === "length" ? "cut" : "";
  head.append(make("span", `finish ${cut}`, candidate.sampled ? candidate.finish : "the reference"));
  const foot = make("footer", "", scoreChips(candidate));
  for (const [scorer, rewards] of Object.entries(candidate.steps)) foot.append(stepChips(scorer, rewards));
  const addLine = (classes, label, text) => foot.append(make("p", classes, make("span", "", label), " ", text));
  if (candidate.answer !== null) addLine("answer", "Answer", plain(candidate.answer));
  if (candidate.reasons.length) addLine("reasons", draws ? "No reward" : "Not kept", candidate.reasons.join("; "));
  const turns = (candidate.turns ?? []).map(messageBlock); // of a candidate that an environment had go on
  return make("section", `card ${tone(candidate)}`, head, ...turns, textBlock(candidate.text), foot);
}

function advantageOf({ advantage }) {
  return advantage === null ? "does not train" : `advantage ${advantage > 0 ? "+" : ""}${short(advantage)}`;
}

function scoreChips(candidate) {
  const chip = (name, value, classes) => {
    const item = make("li", classes, name, " ", make("b", "", short(value)));
    item.title = `${name}: ${value}`;
    return item;
  };
  const given = scorers.filter((name) => Object.hasOwn(candidate.scores, name));
  const named = given.map((name) => chip(name, candidate.scores[name], ""));
  const isOnly = scorers.length === 1 && (!draws || candidate.score === candidate.scores[scorers[0]]);
  const ranks = candidate.score !== null && !isOnly ? [chip(draws ? "reward" : "score", candidate.score, "ranks")] : [];
  return make("ul", "chips", ...ranks, ...named);
}

function stepChips(scorer, rewards) {
  const chips = rewards.map((reward, place) => {
    const chip = make("li", "", short(reward));
    chip.title = `step ${place + 1}: ${reward}`;
    chip.style.setProperty("--good", `${100 * Math.min(1, Math.max(0, reward))}%`);
    return chip;
  });
  return make("div", "steps", make("span", "", `${scorer} steps`), " ", make("ol", "", ...chips));
}

/* Acting */

function toNeighbour(by) {
  const next = found[found.indexOf(current) + by];
  if (!next) return;
  go({ row: next.position });
  const list = byId("list");
  if (list.contains(document.activeElement)) list.querySelector("[aria-current]").focus({ preventScroll: true });
  bringIntoView();
}

function bringIntoView() {
  const top = byId("detail").getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) byId("detail").scrollIntoView();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (draws && !byId("explorer").contains(event.target)) return; // the page has more than these questions
  const typing = event.target === byId("search");
  if (typing && event.key === "Escape") byId("search").blur();
  if (typing || event.target === byId("sort")) return;
  const inList = byId("list").contains(event.target);
  if (event.key === "/") byId("search").select();
  else if (event.key === "j" || event.key === "ArrowRight" || (inList && event.key === "ArrowDown")) toNeighbour(1);
  else if (event.key === "k" || event.key === "ArrowLeft" || (inList && event.key === "ArrowUp")) toNeighbour(-1);
  else return;
  event.preventDefault();
});

let typed;
byId("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => go({ q: byId("search").value }), 120);
});
byId("sort").append(...offered(SORTS).map(([name, [label]]) => new Option(label, name)));
byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
addEventListener("hashchange", () => {
  if (byId(location.hash.slice(1))) return;
  draw();
  bringIntoView();
});
if (draws) {
  byId("step").addEventListener("input", () => go({ step: steps[byId("step").value].step, row: "" }));
  byId("search").placeholder = byId("search").previousElementSibling.textContent = "Search this step";
}

byId("explorer").hidden = false;
draw();
if (state.row) bringIntoView();
