// Draws the curves of one or several runs. All charts share the axis below, the place that is read out and the zoom.

const SVG = "http://www.w3.org/2000/svg";
const { clocks, charts: SPECS, events } = JSON.parse(byId("curves").textContent);
const AXES = {
  step: ["Steps", (run, step) => step, (value) => Math.round(value).toLocaleString("en")],
  tokens: ["Tokens", (run, step) => onClock(clocks[run], "tokens", step), compact],
  seconds: ["Time", (run, step) => onClock(clocks[run], "seconds", step), duration],
};
const LEFT_OUT = new Set(); // numbers of runs that are not shown
const view = { axis: "step", log: false, raw: clocks.length === 1, from: null, to: null, at: null };
const HEIGHT = 200, TOP = 8, BOTTOM = 22, RIGHT = 12;

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/* Numbers */

// Tokens or seconds at a step, in between those that were logged.
function onClock({ steps, ...clock }, what, step) {
  const values = clock[what], after = firstFrom(steps, step);
  if (after === steps.length) return values.at(-1) ?? 0;
  const [fromStep, from] = after ? [steps[after - 1], values[after - 1]] : [0, 0];
  return from + ((step - fromStep) / (steps[after] - fromStep || 1)) * (values[after] - from);
}

// The place of the first value that is not below another, in an ascending list.
function firstFrom(values, wanted) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The place of the value that is nearest to another, in an ascending list.
function nearest(values, wanted) {
  const after = firstFrom(values, wanted);
  const isBefore = after === values.length || wanted - values[after - 1] < values[after] - wanted;
  return after && isBefore ? after - 1 : after;
}

function short(value) {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return value.toLocaleString("en", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 });
}

function compact(value) {
  return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 });
}

function duration(seconds) {
  if (seconds < 9.95) return `${+seconds.toFixed(1)}s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60), two = (count) => String(count).padStart(2, "0");
  if (minutes < 1) return `${whole}s`;
  if (minutes < 60) return whole % 60 ? `${minutes}m${two(whole % 60)}s` : `${minutes}m`;
  return minutes % 60 ? `${Math.floor(minutes / 60)}h${two(minutes % 60)}m` : `${minutes / 60}h`;
}

// Round numbers that cut an interval into about `count` pieces.
function ticks(low, high, count, clock = false) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = clock
    ? CLOCK_STEPS.find((each) => each >= rough) ?? Math.ceil(rough / 86400) * 86400
    : power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
  const first = Math.ceil(low / size - 1e-9);
  const found = [];
  for (let place = first; place * size <= high + size * 1e-9; place++) found.push(place * size || 0); // no -0
  return found;
}

const CLOCK_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    const factors = high - low > 4 ? [1] : high - low > 1.5 ? [1, 3] : [1, 2, 5];
    for (const factor of factors) found.push(power + Math.log10(factor));
  }
  const shown = found.filter((each) => each >= low - 1e-9 && each <= high + 1e-9);
  const every = Math.ceil(shown.length / 7);
  return shown.filter((_, place) => place % every === 0);
}

/* One chart */

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.place = make("span", "place");
    this.legend = make("ul", "legend");
    this.plot = make("div", "plot");
    this.node = make("figure", `chart${spec.wide ? " wide" : ""}`,
      make("figcaption", "", make("b", "", spec.title), this.place, this.legend), this.plot);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "slider");
    this.plot.setAttribute("aria-label", `${spec.title}, a chart`);
    this.entries = spec.curves.map((curve) => {
      const value = make("span", "value");
      const swatch = make("i", curve.dots ? "dot" : "");
      swatch.style.setProperty("--color", `var(--c${curve.color % 8})`);
      const entry = make("li", "", swatch, make("span", "name", curve.label), value);
      entry.title = curve.label;
      this.legend.append(entry);
      return { entry, value };
    });
    this.listen();
  }

  shown() {
    return this.spec.curves.map((curve, place) => ({ ...curve, place, ...this.converted[place] }))
      .filter((curve) => !LEFT_OUT.has(curve.run) && curve.at.length);
  }

  draw() {
    const convert = AXES[view.axis][1];
    this.converted = this.spec.curves.map((curve) => ({ at: curve.x.map((step) => convert(curve.run, step)) }));
    const curves = this.shown();
    this.node.hidden = !curves.length;
    this.entries.forEach(({ entry }, place) => { entry.hidden = LEFT_OUT.has(this.spec.curves[place].run); });
    if (!curves.length) return;
    const width = Math.max(this.plot.clientWidth, 160);
    const positive = curves.every((curve) => curve.y.every((y) => y === null || y >= 0));
    this.log = view.log && positive && curves.some((curve) => curve.y.some((y) => y > 0));
    const scale = (y) => (y === null || y === undefined || (this.log && y <= 0) ? null : this.log ? Math.log10(y) : y);
    const [from, to] = extent();
    const visible = curves.flatMap((curve) => [curve.smooth && !view.raw ? [] : curve.y, curve.smooth ?? []].flatMap((values) =>
      values.filter((_, place) => curve.at[place] >= from && curve.at[place] <= to).map(scale).filter((y) => y !== null)));
    let low = visible.reduce((a, b) => Math.min(a, b), Infinity), high = visible.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) [low, high] = [0, 1];
    if (low === high) [low, high] = this.log ? [low - 0.5, high + 0.5] : [low - (Math.abs(low) / 10 || 1), high + (Math.abs(high) / 10 || 1)];
    const room = (high - low) * 0.05;
    [low, high] = [!this.log && low >= 0 && low - room < 0 ? 0 : low - room, high + room];
    const marks = this.log ? logTicks(low, high) : ticks(low, high, 5);
    const label = (mark) => short(this.log ? Number((10 ** mark).toPrecision(2)) : Number(mark.toPrecision(10)));
    const left = Math.max(...marks.map((mark) => label(mark).length), 2) * 6.4 + 10;
    const x = (value) => left + ((value - from) / (to - from || 1)) * (width - left - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    Object.assign(this, { x, y, scale, left, width, from, to });

    const grid = marks.flatMap((mark) => [
      svg("line", { class: "grid", x1: left, x2: width - RIGHT, y1: y(mark), y2: y(mark) }),
      svg("text", { class: "tick", x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, label(mark)),
    ]);
    const format = AXES[view.axis][2];
    const below = ticks(from, to, Math.max(2, Math.floor((width - left) / 65)), view.axis === "seconds");
    const axis = below.filter((mark) => view.axis !== "step" || Number.isInteger(+mark.toFixed(6))).map((mark) =>
      svg("text", { class: "tick", x: Math.min(x(mark), width - RIGHT - 4), y: HEIGHT - 6, "text-anchor": "middle" }, format(mark)));
    const base = svg("line", { class: "base", x1: left, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM });
    const flags = events.filter((event) => !LEFT_OUT.has(event.run)).map((event) => [event, convert(event.run, event.step)])
      .filter(([, at]) => at >= from && at <= to)
      .map(([event, at]) => svg("g", { class: "event" }, svg("title", {}, event.label),
        svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM }),
        svg("path", { d: `M${x(at)} ${TOP}l6 4l-6 4z` })));
    const clip = `clip${SPECS.indexOf(this.spec)}`;
    const area = svg("clipPath", { id: clip }, svg("rect", { x: left, y: 0, width: width - left - RIGHT + 4, height: HEIGHT - BOTTOM + 4 }));
    const lines = svg("g", { "clip-path": `url(#${clip})` }, ...curves.flatMap((curve) => this.line(curve)));
    this.cursor = svg("g", { class: "cursor" });
    this.selected = svg("rect", { class: "selected", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
    this.plot.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
      area, ...grid, base, ...axis, ...flags, lines, this.selected, this.cursor));
    this.read();
  }

  line(curve) {
    const style = `--color: var(--c${curve.color % 8})`;
    const dash = curve.color >= 8 ? { "stroke-dasharray": "5 3" } : {};
    const path = (values, name) => {
      let pen = "M", drawn = "";
      values.forEach((value, place) => {
        const at = this.scale(value);
        if (at === null) pen = "M";
        else {
          drawn += `${pen}${this.x(curve.at[place]).toFixed(1)} ${this.y(at).toFixed(1)}`;
          pen = "L";
        }
      });
      return svg("path", { class: name, style, d: drawn, ...dash });
    };
    const points = curve.y.map((value, place) => [curve.at[place], this.scale(value)]).filter(([, at]) => at !== null);
    const dots = (curve.dots && points.length <= 60) || points.length === 1
      ? points.map(([at, value]) => svg("circle", { class: "point", style, cx: this.x(at), cy: this.y(value), r: 3 })) : [];
    if (!curve.smooth) return [path(curve.y, "line"), ...dots];
    return [...(view.raw ? [path(curve.y, "raw")] : []), path(curve.smooth, "line")];
  }

  // The values at the place that is read out or, if there is none, the last ones.
  read() {
    if (this.node.hidden) return;
    const curves = this.shown();
    this.cursor.replaceChildren();
    const texts = [];
    for (const curve of curves) {
      const place = view.at === null ? curve.at.length - 1 : nearest(curve.at, view.at);
      const value = curve.y[place], smooth = curve.smooth?.[place];
      const text = short(view.raw ? value : smooth ?? value);
      this.entries[curve.place].value.textContent = text;
      texts.push(`${curve.label} ${text}`);
      const at = this.scale(curve.smooth ? smooth : value);
      if (view.at === null || at === null || curve.at[place] < this.from || curve.at[place] > this.to) continue;
      this.cursor.append(svg("circle", { style: `--color: var(--c${curve.color % 8})`, cx: this.x(curve.at[place]), cy: this.y(at), r: 4 }));
    }
    const [name, , format] = AXES[view.axis];
    const at = view.at ?? Math.max(...curves.map((curve) => curve.at.at(-1)));
    const where = `${name === "Steps" ? "step " : ""}${format(at)}${name === "Tokens" ? " tokens" : ""}`;
    this.place.textContent = view.at === null ? "" : where;
    if (view.at !== null && view.at >= this.from && view.at <= this.to) {
      const x = this.x(view.at);
      this.cursor.prepend(svg("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.plot.setAttribute("aria-valuemin", this.from);
    this.plot.setAttribute("aria-valuemax", this.to);
    this.plot.setAttribute("aria-valuenow", at);
    this.plot.setAttribute("aria-valuetext", `${where}: ${texts.join(", ")}`);
  }

  places() {
    const [from, to] = extent();
    const all = new Set(this.shown().flatMap((curve) => curve.at).filter((at) => at >= from && at <= to));
    return [...all].sort((one, other) => one - other);
  }

  // Where the pointer is, on the axis below.
  under(event) {
    const box = this.plot.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width) * this.width;
    const share = (inside - this.left) / (this.width - this.left - RIGHT);
    return this.from + Math.min(1, Math.max(0, share)) * (this.to - this.from);
  }

  listen() {
    let begun = null;
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        begun = { x: event.clientX, at: this.under(event) };
        this.plot.setPointerCapture(event.pointerId);
      }
    });
    this.plot.addEventListener("pointermove", (event) => {
      const at = this.under(event), places = this.places();
      readAll(places[nearest(places, at)] ?? null);
      if (!begun) return;
      const [low, high] = [Math.min(begun.at, at), Math.max(begun.at, at)].map(this.x);
      this.selected.setAttribute("x", low);
      this.selected.setAttribute("width", high - low);
    });
    this.plot.addEventListener("pointerup", (event) => {
      const end = this.under(event), start = begun;
      begun = null;
      this.selected.setAttribute("width", 0);
      if (start && Math.abs(event.clientX - start.x) > 6) zoom(Math.min(start.at, end), Math.max(start.at, end));
    });
    this.plot.addEventListener("pointerleave", () => { if (!begun) readAll(null); });
    this.plot.addEventListener("dblclick", () => zoom(null, null));
    this.plot.addEventListener("blur", () => readAll(null));
    this.plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const places = this.places(), last = places.length - 1;
      const now = view.at === null ? last : nearest(places, view.at);
      const moves = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageUp: now + 10, PageDown: now - 10, Home: 0, End: last };
      const [from, to] = extent();
      if (event.key in moves) readAll(places[Math.min(last, Math.max(0, moves[event.key]))] ?? null);
      else if (event.key === "Escape") zoom(null, null);
      else if (event.key === "+" || event.key === "-") {
        const share = event.key === "+" ? 0.25 : 1, middle = view.at ?? (from + to) / 2;
        zoom(middle - (to - from) * share, middle + (to - from) * share);
      } else return;
      event.preventDefault();
    });
  }
}

/* All charts */

const drawn = SPECS.map((spec) => new Chart(spec));

function whole() {
  const convert = AXES[view.axis][1];
  const ends = SPECS.flatMap((spec) => spec.curves.filter((curve) => !LEFT_OUT.has(curve.run) && curve.x.length)
    .flatMap((curve) => [convert(curve.run, curve.x[0]), convert(curve.run, curve.x.at(-1))]));
  const low = Math.min(...ends), high = Math.max(...ends);
  return ends.length ? (low < high ? [low <= high * 0.1 ? 0 : low, high] : [low - 1, high + 1]) : [0, 1];
}

function extent() {
  return view.from === null ? whole() : [view.from, view.to];
}

function zoom(from, to) {
  const [low, high] = whole();
  const is = from !== null && (from > low || to < high) && to > from;
  [view.from, view.to] = is ? [Math.max(from, low), Math.min(to, high)] : [null, null];
  drawAll();
}

function readAll(at) {
  view.at = at;
  for (const chart of drawn) chart.read();
}

function drawAll() {
  byId("whole").hidden = view.from === null;
  for (const chart of drawn) chart.draw();
}

function choice(name, options, chosen, choose) {
  const group = make("div", "pills");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", name);
  const buttons = options.map(([key, label]) => {
    const button = make("button", "pill", label);
    button.type = "button";
    button.addEventListener("click", () => {
      choose(key);
      mark();
      drawAll();
    });
    return button;
  });
  const mark = () => buttons.forEach((button, place) => button.setAttribute("aria-pressed", chosen(options[place][0])));
  mark();
  group.append(...buttons);
  return group;
}

const clocked = clocks.every((clock, run) =>
  clock.steps.length || SPECS.every((spec) => spec.curves.every((curve) => curve.run !== run)));
const bar = byId("tools");
if (clocked) {
  bar.append(choice("Axis below", Object.entries(AXES).map(([key, [label]]) => [key, label]), (key) => key === view.axis, (key) => {
    Object.assign(view, { axis: key, from: null, to: null, at: null });
  }));
}
const toggles = [["log", "Log scale"]];
if (SPECS.some((spec) => spec.curves.some((curve) => curve.smooth))) toggles.push(["raw", "Unsmoothed"]);
bar.append(choice("Show", toggles, (key) => view[key], (key) => { view[key] = !view[key]; }));
const back = make("button", "pill", "Whole run");
back.id = "whole";
back.type = "button";
back.addEventListener("click", () => zoom(null, null));
bar.append(back);
for (const box of document.querySelectorAll("input[data-run]")) {
  box.addEventListener("change", () => {
    LEFT_OUT[box.checked ? "delete" : "add"](Number(box.dataset.run));
    Object.assign(view, { from: null, to: null, at: null });
    drawAll();
  });
}

byId("charts").replaceChildren(...drawn.map((chart) => chart.node));
byId("curves-shown").hidden = false;
drawAll();
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width !== width) drawAll();
  width = entry.contentRect.width;
}).observe(byId("charts"));
