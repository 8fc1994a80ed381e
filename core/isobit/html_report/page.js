const data = JSON.parse(document.getElementById("data").textContent);
const causes = { "clipping": "--clipping", "wide range": "--wide", "channel spread": "--spread", "mean shift": "--shift", "rounding": "--rounding" };
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const titled = (element, text) => { element.append(draw("title", {}, text)); return element; };
const canvas = (width, height, label) => draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
const decibels = value => value === null ? "no error" : value.toFixed(1) + " dB";
const percent = share => share >= 0.0995 ? (100 * share).toFixed(0) + " %" : share > 0 ? (100 * share).toPrecision(2) + " %" : "0 %";
const short = value => value === null ? "not finite" : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
const cut = (name, most) => name.length > most ? "…" + name.slice(1 - most) : name;
const cause = site => Object.entries(site.causes).sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";
const phone = () => window.innerWidth < 760;
// Round numbers from low to high, about so many steps.
function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map(factor => factor * power).find(each => each >= .7 * rough), marks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) marks.push(+(k * step).toPrecision(12));
  return marks;
}
const redrawn = [];
function drawn(place, figure) { const again = () => place.replaceChildren(figure()); redrawn.push(again); again(); }
function legend(entries) {
  const place = make("div", undefined, { class: "legend" });
  for (const [name, color] of entries) { const entry = make("span", name); entry.prepend(make("i", undefined, { style: `background: var(${color})` })); place.append(entry); }
  return place;
}

// A table that sorts. A cell is a text, or [text, what it is sorted by]; `choose` gets the number of the row that is clicked.
// On a phone, what is said in words stands below its row, but for what the row is called by.
function table(columns, rows, { filter = "", order = null, choose = null } = {}) {
  const place = make("div"), head = make("tr"), body = make("tbody"), input = filter ? make("input", undefined, { type: "search", placeholder: filter, "aria-label": filter }) : null;
  const text = cell => Array.isArray(cell) ? cell[0] : cell, value = cell => Array.isArray(cell) ? cell[1] : cell;
  let chosen = 0, sorted = order ?? { column: -1, down: false };
  const isBelow = (kind, column) => kind === "words" && column > 0 && columns.length > 2 && phone();
  function fill() {
    const wanted = input ? input.value.toLowerCase() : "";
    const shown = rows.map((row, index) => [row, index]).filter(([row]) => row.map(text).join(" ").toLowerCase().includes(wanted));
    if (sorted.column >= 0) shown.sort(([a], [b]) => { const [x, y] = [value(a[sorted.column]) ?? Infinity, value(b[sorted.column]) ?? Infinity]; return (x < y ? -1 : x > y ? 1 : 0) * (sorted.down ? -1 : 1); });
    body.replaceChildren(...shown.flatMap(([row, index]) => {
      const line = make("tr", undefined, choose ? { class: index === chosen ? "row chosen" : "row", tabindex: 0 } : {}), below = [];
      columns.forEach(([, kind], column) => {
        if (isBelow(kind, column)) { if (text(row[column])) below.push(make("tr", undefined, { class: "below" })), below.at(-1).append(make("td", text(row[column]), { class: "words", colspan: columns.length })); }
        else line.append(make("td", text(row[column]), { class: kind, title: kind === "name" ? text(row[column]) : "" }));
      });
      if (below.length) line.classList.add("above");
      if (choose) {
        const take = () => { chosen = index; fill(); choose(index); };
        line.addEventListener("click", take); line.addEventListener("keydown", event => { if (event.key === "Enter") take(); });
      }
      return [line, ...below];
    }));
    columns.forEach(([, kind], index) => { head.children[index].hidden = isBelow(kind, index); });
    [...head.children].forEach((cell, index) => { if (index === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending"); else cell.removeAttribute("aria-sort"); });
  }
  columns.forEach(([title, kind], index) => {
    const cell = make("th", undefined, { class: kind, scope: "col" }), button = make("button", title, { type: "button" });
    button.addEventListener("click", () => { sorted = { column: index, down: sorted.column === index ? !sorted.down : kind === "number" }; fill(); });
    cell.append(button); head.append(cell);
  });
  if (input) { input.addEventListener("input", fill); place.append(input); }
  const whole = make("table", undefined, columns.length > 7 ? { class: "wide" } : {}), top = make("thead"), scroll = make("div", undefined, { class: "scroll" });
  top.append(head); whole.append(top, body); scroll.append(whole); place.append(scroll);
  fill();
  redrawn.push(fill);
  return place;
}

const sections = {
  advice(content, place) {
    const list = make("ol");
    for (const item of content.items) {
      const line = make("li", item.text);
      if (item.tried) line.append(make("span", ` (tried: ${item.tried})`, { class: item.good ? "good" : "bad" }));
      line.append(make("br"), make("code", item.settings)); list.append(line);
    }
    place.append(content.items.length ? list : make("p", content.none));
    if (content.together) place.append(make("p", content.together));
  },
  table(content, place) {
    if (!content.rows.length) { place.append(make("p", content.none)); return; }
    if (!content.plots.length) { place.append(table(content.columns, content.rows, { filter: content.filter })); return; }
    chooses(content.columns, content.rows, { filter: content.filter }, content.plots, place);
  },
  notes(content, place) { for (const line of content.lines) place.append(make("p", line)); },
  // Points of cost against a figure; those of the first series are joined where `joined`.
  curve(content, place) {
    place.append(make("p", content.text, { class: "soft" }), legend(content.series.map((series, index) => [series.name, ["--accent", "--good", "--shift"][index]])));
    const figure = make("div"); place.append(figure);
    drawn(figure, () => {
      const width = phone() ? 380 : 1100, height = phone() ? 240 : 300, left = 52, base = height - 34, svg = canvas(width, height, content.text);
      const points = content.series.flatMap(series => series.points), xs = points.map(p => p.x), ys = points.map(p => p.y);
      if (!points.length) return svg;
      const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
      const x = v => left + 8 + (v - x0) / (x1 - x0 || 1) * (width - left - 24), y = v => base - 8 - (v - y0) / (y1 - y0 || 1) * (base - 34);
      const steps = phone() ? 4 : 6, whole = xs.every(Number.isInteger) ? Number.isInteger : () => true;
      for (const v of ticks(y0, y1, steps)) svg.append(draw("line", { x1: left, x2: width, y1: y(v), y2: y(v), stroke: "var(--line)" }), draw("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
      for (const h of ticks(x0, x1, steps).filter(whole)) svg.append(draw("text", { x: x(h), y: base + 13, "text-anchor": x(h) > width - 24 ? "end" : "middle" }, short(h)));
      svg.append(draw("text", { x: width, y: height - 4, "text-anchor": "end" }, content.x), draw("text", { x: 0, y: 10 }, content.y));
      content.series.forEach((series, index) => {
        const color = `var(${["--accent", "--good", "--shift"][index]})`;
        if (series.joined) svg.append(draw("polyline", { points: series.points.map(p => `${x(p.x)},${y(p.y)}`).join(" "), fill: "none", stroke: color, "stroke-width": 1.4, opacity: .7 }));
        for (const p of series.points) {
          if (p.chosen) svg.append(draw("circle", { cx: x(p.x), cy: y(p.y), r: 9, fill: "none", stroke: "var(--ink)", "stroke-width": 1.6 }));
          svg.append(titled(draw("circle", { cx: x(p.x), cy: y(p.y), r: 4.2, fill: color }), p.words));
        }
      });
      return svg;
    });
  },
  shares(content, place) {
    place.append(legend(Object.entries(causes)));
    const figure = make("div"), sites = content.sites.filter(site => site.share > 0); place.append(figure);
    drawn(figure, () => {
      const left = phone() ? 130 : 330, width = phone() ? 380 : 1100, row = 22;
      const most = Math.max(...sites.map(site => site.share), 1e-9), svg = canvas(width, Math.max(1, sites.length) * row + 4, "Shares of the error");
      sites.forEach((site, index) => {
        const y = index * row; let x = left;
        svg.append(titled(draw("text", { x: left - 8, y: y + 15, "text-anchor": "end" }, cut(site.name, phone() ? 20 : 50)), site.name));
        for (const [name, color] of Object.entries(causes)) {
          const length = (site.causes[name] ?? 0) / most * (width - left - 60);
          if (length <= 0) continue;
          svg.append(titled(draw("rect", { x, y: y + 3, width: length, height: row - 6, fill: `var(${color})` }), `${name} ${percent(site.causes[name])}`)); x += length;
        }
        svg.append(draw("text", { x: x + 6, y: y + 15 }, percent(site.share)));
      });
      return svg;
    });
  },
  depth(content, place) {
    place.append(make("p", "Signal to noise in dB at each tensor, in the order of execution; the dotted line is the output.", { class: "soft" }));
    const figure = make("div"), steps = content.steps.filter(step => step.sqnr !== null); place.append(figure);
    drawn(figure, () => {
      const width = phone() ? 380 : 1100, height = 200, svg = canvas(width, height, "Error by depth");
      if (!steps.length) return svg;
      const values = steps.map(step => Math.max(-20, Math.min(100, step.sqnr))), high = Math.max(...values), low = Math.min(...values, content.sqnr ?? Infinity), span = high - low || 1;
      const x = index => 34 + index / Math.max(1, steps.length - 1) * (width - 44), y = value => 10 + (high - value) / span * (height - 30);
      for (const value of ticks(low, high, 5)) svg.append(draw("line", { x1: 34, x2: width, y1: y(value), y2: y(value), stroke: "var(--line)" }), draw("text", { x: 28, y: y(value) + 4, "text-anchor": "end" }, short(value)));
      svg.append(draw("polyline", { points: values.map((value, index) => `${x(index)},${y(value)}`).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.6 }));
      steps.forEach((step, index) => svg.append(titled(draw("circle", { cx: x(index), cy: y(values[index]), r: steps.length > 120 ? 2 : 3.2, fill: "var(--accent)" }), `${step.tensor} (${step.op}): ${decibels(step.sqnr)}, ${percent(step.inherited)} came in`)));
      if (content.sqnr !== null) svg.append(draw("line", { x1: 34, x2: width, y1: y(content.sqnr), y2: y(content.sqnr), stroke: "var(--bad)", "stroke-dasharray": "2 4" }));
      return svg;
    });
  },
  // Quantizers: a table, and below it the values of the one that is chosen there.
  sites(content, place) {
    const measured = [["without", "dB without"], ["alone", "dB alone"]].filter(([key]) => content.sites.some(site => site[key] !== null));
    const columns = [["name", "name"], ["share", "number"], ["cause", ""], ["of", ""], ["kind", ""], ["format", ""], ["dB at it", "number"], ["came in", "number"], ...measured.map(([, title]) => [title, "number"]), ["outside", "number"], ["dead", "number"]];
    const rows = content.sites.map(site => [site.name, [percent(site.share), site.share], cause(site), site.op, site.kind, brief(site.format), [decibels(site.sqnr), site.sqnr], [percent(site.inherited), site.inherited],
      ...measured.map(([key]) => [site[key] === null ? "" : site[key].toFixed(1), site[key]]), [percent(site.outside), site.outside], [String(site.dead), site.dead]]);
    chooses(columns, rows, { filter: "Filter by name, op, format, cause", order: { column: 1, down: true } }, content.sites, place);
  },
  plot(content, place) { const both = make("div", undefined, { class: "pair" }); place.append(both); values(content, both); },
};

// A table, and below it the values of the row that is chosen.
function chooses(columns, rows, options, plots, place) {
  const chosen = make("div"), show = index => { chosen.replaceChildren(); if (plots[index]) { sections.plot(plots[index], chosen); } };
  place.append(table(columns, rows, { ...options, choose: show }), chosen);
  show(0);
}
// A format without the symmetry that is the usual one of its type, and without one scale.
function brief(format) { return format.replace(/^(u\w+) asymmetric/, "$1").replace(/^(int\w+) symmetric/, "$1").replace(" per-tensor", ""); }
function values(site, place) {
  const left = make("div"), right = make("div");
  left.append(make("h2", cut(site.name, 60)), make("p", `${site.format}, grid ${short(site.grid[0])} to ${short(site.grid[1])} (shaded), seen ${short(site.seen[0])} to ${short(site.seen[1])}; heights are logarithmic`, { class: "soft" }), histogram(site));
  const before = site.channel_ranges ?? [], after = site.ranges_on_grid ?? [];
  const words = before.length ? `${site.channels} channels${before.length < site.channels ? `, the first ${before.length} of them` : ""}; dashed lines are the ends of the grid` : "It has no channels, or one.";
  right.append(make("h2", "Ranges of its channels"), make("p", words, { class: "soft" }));
  if (before.length) right.append(legend([["as they are", "--accent"], ["on the grid (outlined)", "--wide"]]), channels(site, before, after));
  place.append(left, right);
}
function histogram(site) {
  const { low, high, counts } = site.histogram ?? { low: 0, high: 0, counts: [] }, width = 520, height = 220, base = height - 22;
  const svg = canvas(width, height, `Histogram of ${site.name}`), span = high - low || 1, at = value => (value - low) / span * width;
  if (!counts.length) { svg.append(draw("text", { x: 0, y: 20 }, "No values were kept of it.")); return svg; }
  svg.append(draw("rect", { x: Math.max(0, at(site.grid[0])), y: 0, width: Math.max(1, Math.min(width, at(site.grid[1])) - Math.max(0, at(site.grid[0]))), height: base, fill: "var(--grid)" }));
  const lines = site.step > 0 ? Math.round((site.grid[1] - site.grid[0]) / site.step) : 0;
  if (lines > 0 && lines <= 300)
    for (let i = 0; i <= lines; i++) { const x = at(site.grid[0] + i * site.step); if (x >= 0 && x <= width) svg.append(draw("line", { x1: x, x2: x, y1: base, y2: base - 7, stroke: "var(--accent)", "stroke-width": .6 })); }
  const most = Math.log1p(Math.max(...counts, 1));
  counts.forEach((count, index) => {
    const tall = Math.log1p(count) / most * (base - 14), w = width / counts.length;
    if (count) svg.append(titled(draw("rect", { x: index * w, y: base - tall - 7, width: Math.max(.5, w - .6), height: tall, fill: "var(--accent)" }), `${short(count)} from ${short(low + index * span / counts.length)}`));
  });
  if (low < 0 && high > 0) svg.append(draw("line", { x1: at(0), x2: at(0), y1: 0, y2: base, stroke: "var(--soft)", "stroke-dasharray": "3 3" }));
  svg.append(draw("text", { x: 0, y: height - 6 }, short(low)), draw("text", { x: width, y: height - 6, "text-anchor": "end" }, short(high)));
  return svg;
}
function channels(site, before, after) {
  const width = 520, height = 220, svg = canvas(width, height, "Ranges of channels");
  const low = Math.min(site.grid[0], ...before.map(r => r[0])), high = Math.max(site.grid[1], ...before.map(r => r[1])), span = high - low || 1;
  const at = value => height - 4 - (value - low) / span * (height - 8), w = width / before.length;
  before.forEach(([a, b], index) => {
    const words = `channel ${index}: ${short(a)} to ${short(b)}` + (after[index] ? `, on the grid ${short(after[index][0])} to ${short(after[index][1])}` : "");
    svg.append(titled(draw("rect", { x: index * w, y: at(b), width: Math.max(.6, w - .8), height: Math.max(1, at(a) - at(b)), fill: a === b ? "var(--bad)" : "var(--accent)", opacity: .75 }), words));
  });
  after.forEach(([a, b], index) => {
    for (const end of [a, b]) svg.append(draw("line", { x1: index * w, x2: index * w + Math.max(.6, w - .8), y1: at(end), y2: at(end), stroke: "var(--wide)", "stroke-width": 1.6 }));
  });
  for (const end of site.grid) svg.append(draw("line", { x1: 0, x2: width, y1: at(end), y2: at(end), stroke: "var(--soft)", "stroke-dasharray": "4 3" }));
  return svg;
}

const main = document.querySelector("main");
document.getElementById("title").textContent = data.title;
document.getElementById("about").textContent = data.about;
for (const { kind, title, half, content } of data.sections) {
  if (kind === "cards") {
    const place = make("div", undefined, { class: "cards" });
    for (const [value, name] of content.items) { const card = make("div"); card.append(make("b", value, { class: value.length > 11 ? "long" : "" }), make("span", name)); place.append(card); }
    main.append(place);
    continue;
  }
  const place = make("section", undefined, { class: half ? "half" : "" });
  if (title) place.append(make("h2", title));
  sections[kind](content, place);
  main.append(place);
}
document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
let wasPhone = phone();
window.addEventListener("resize", () => { if (phone() !== wasPhone) { wasPhone = phone(); for (const again of redrawn) again(); } });
