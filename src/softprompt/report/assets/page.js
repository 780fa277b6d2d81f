"use strict";
// Saves figures, and moves the structural evolution. All text from runs is set as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const shape = (name, attributes, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const dataOf = (place) => JSON.parse(place.querySelector('script[type="application/json"]').textContent);
const shown = (value) => (value === null || value === undefined ? "" : String(Number(value.toPrecision(4))));

// a picture that leaves the page takes its colours with it
const STYLED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "font"];
const standalone = (svg) => {
  const copy = svg.cloneNode(true);
  const [of, to] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  of.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const key of STYLED) if (style.getPropertyValue(key)) to[i].style.setProperty(key, style.getPropertyValue(key));
  });
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.insertBefore(shape("rect", { width, height, style: `fill:${getComputedStyle(document.body).backgroundColor}` }), copy.firstChild);
  return { text: new XMLSerializer().serializeToString(copy), width, height };
};
const download = (name, blob) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
const save = {
  svg: (figure, name) => download(`${name}.svg`, new Blob([standalone(figure.querySelector("svg")).text], { type: "image/svg+xml" })),
  png: (figure, name) => {
    const { text, width, height } = standalone(figure.querySelector("svg"));
    const picture = new Image();
    picture.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * width, 2 * height];
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => download(`${name}.png`, blob));
    };
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  },
  csv: (figure, name) => {
    const { columns, rows } = figure.numbers ? figure.numbers() : dataOf(figure);
    download(`${name}.csv`, new Blob([[columns, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" }));
  },
};
document.addEventListener("click", (event) => {
  const how = event.target.dataset?.save;
  if (how) save[how](event.target.closest("figure"), event.target.closest("figure").dataset.name);
});

const W = 640, H = 420, EDGE = 40;
const spread = (low, high, start, end) => (value) => start + (high > low ? (value - low) / (high - low) : 0.5) * (end - start);

class Evolution {
  constructor(place) {
    this.place = place;
    this.data = dataOf(place);
    const find = (name) => place.querySelector(`[data-part="${name}"]`);
    [this.step, this.scale, this.layer, this.play, this.said, this.length] = ["step", "scale", "layer", "play", "said", "length"].map(find);
    this.figures = Object.fromEntries(["map", "barcode", "diagram", "measures"].map((name) => [name, place.querySelector(`figure[data-part="${name}"]`)]));
    for (const input of [this.step, this.scale]) input.addEventListener("input", () => this.draw());
    this.layer.addEventListener("change", () => this.draw());
    this.play.addEventListener("click", () => (this.timer ? this.stop() : this.start()));
    for (const [name, figure] of Object.entries(this.figures)) figure.numbers = () => this.numbers(name);
    this.draw();
  }
  start() {
    if (Number(this.step.value) >= Number(this.step.max)) this.step.value = 0;
    this.timer = setInterval(() => {
      this.step.value = Number(this.step.value) + 1;
      this.draw();
      if (Number(this.step.value) >= Number(this.step.max)) this.stop();
    }, 300);
    this.play.textContent = "Pause";
  }
  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.play.textContent = "Play";
  }
  get now() { return Number(this.step.value); }
  get of() { return this.data.layers[this.layer.value]; }
  draw() {
    const { of, now } = this;
    const ends = of.h0.flat().concat(of.h1.flat()).map((bar) => bar[1]);
    this.longest = Math.max(0, ...ends) || 1; // one virtual token has no bars
    this.radius = (Number(this.scale.value) / 100) * this.longest;
    this.said.textContent = `step ${this.data.steps[now]}`;
    this.step.setAttribute("aria-valuetext", this.said.textContent);
    this.length.textContent = shown(this.radius);
    this.scale.setAttribute("aria-valuetext", `length ${this.length.textContent}`);
    this.map();
    this.bars();
    this.pairs();
    this.history();
  }
  canvas(name, label) {
    const svg = this.figures[name].querySelector("svg");
    svg.replaceChildren();
    svg.setAttribute("aria-label", label);
    return svg;
  }
  map() {
    const { of, now } = this, all = of.places.flat();
    // one unit of length on both axes, or distances on the page would lie
    const [xs, ys] = [0, 1].map((i) => all.map((place) => place[i]));
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const unit = Math.min((W - 2 * EDGE) / (right - left || 1), (H - 2 * EDGE) / (high - low || 1));
    const at = ([x, y]) => [W / 2 + (x - (left + right) / 2) * unit, H / 2 - (y - (low + high) / 2) * unit];
    const places = of.places[now].map(at), svg = this.canvas("map", `map of ${of.places[now].length} virtual tokens at step ${this.data.steps[now]}`);
    const edge = (a, b, kind) => svg.append(shape("line", { class: kind, x1: places[a][0], y1: places[a][1], x2: places[b][0], y2: places[b][1] }));
    for (const [a, b, length] of of.edges[now]) if (length <= this.radius) edge(a, b, "edge");
    for (const [a, b] of of.tree[now]) edge(a, b, "tree");
    places.forEach(([x, y], i) => {
      const dot = shape("circle", { class: "point", cx: x, cy: y, r: 5 });
      dot.append(shape("title", {}, `virtual token ${i}`));
      svg.append(dot);
      if (places.length <= 40) svg.append(shape("text", { class: "number-label", x: x + 7, y: y - 5 }, i));
    });
    const [first, second] = of.explained.map((share) => `${Math.round(100 * share)} %`);
    svg.append(shape("text", { class: "axis", x: W / 2, y: H - 8, "text-anchor": "middle" }, `first component, ${first} of the variance`));
    svg.append(shape("text", { class: "axis", x: 14, y: H / 2, transform: `rotate(-90 14 ${H / 2})`, "text-anchor": "middle" }, `second component, ${second}`));
  }
  bars() {
    const { of, now } = this, svg = this.canvas("barcode", "barcode"), x = spread(0, this.longest, EDGE, W - EDGE);
    const bars = [...of.h0[now].map((bar) => ["h0", ...bar]), ...of.h1[now].map((bar) => ["h1", ...bar])];
    const tall = Math.min(14, (H - 2.2 * EDGE) / Math.max(1, bars.length));
    bars.forEach(([kind, birth, death], i) => {
      const bar = shape("rect", { class: kind, x: x(birth), y: EDGE + i * tall, width: Math.max(1, x(death) - x(birth)), height: Math.max(1, 0.7 * tall) });
      bar.append(shape("title", {}, `${kind.toUpperCase()}: ${shown(birth)} to ${shown(death)}`));
      svg.append(bar);
    });
    this.ruler(svg, x, "length");
    svg.append(shape("line", { class: "now", x1: x(this.radius), x2: x(this.radius), y1: 24, y2: H - EDGE }));
    svg.append(shape("text", { class: "label c0", x: EDGE, y: 16 }, `H0: ${of.h0[now].length} bars`), shape("text", { class: "label c1", x: EDGE + 90, y: 16 }, `H1: ${of.h1[now].length} bars`));
  }
  ruler(svg, x, title) {
    for (let i = 0; i <= 4; i++) {
      const value = (this.longest * i) / 4;
      svg.append(shape("text", { class: "tick", x: x(value), y: H - 22, "text-anchor": "middle" }, shown(value)));
    }
    svg.append(shape("text", { class: "axis", x: W / 2, y: H - 6, "text-anchor": "middle" }, title));
  }
  pairs() {
    const { of, now } = this, svg = this.canvas("diagram", "persistence diagram");
    const x = spread(0, this.longest, EDGE + 20, W - EDGE), y = spread(0, this.longest, H - EDGE, EDGE / 2);
    svg.append(shape("line", { class: "grid", x1: x(0), y1: y(0), x2: x(this.longest), y2: y(this.longest) }));
    for (const kind of ["h0", "h1"]) {
      for (const [birth, death] of of[kind][now]) {
        const dot = shape("circle", { class: kind, "fill-opacity": 0.6, cx: x(birth), cy: y(death), r: 5 });
        dot.append(shape("title", {}, `${kind.toUpperCase()}: born ${shown(birth)}, dies ${shown(death)}`));
        svg.append(dot);
      }
    }
    for (let i = 1; i <= 4; i++) svg.append(shape("text", { class: "tick", x: EDGE + 12, y: y((this.longest * i) / 4) + 4, "text-anchor": "end" }, shown((this.longest * i) / 4)));
    this.ruler(svg, x, "birth, as a length");
    svg.append(shape("text", { class: "axis", x: 4, y: 12 }, "death"));
  }
  history() {
    const { of, data } = this, svg = this.canvas("measures", "measures over training");
    const series = Object.entries({ ...of.measures, ...(data.accuracy ? { "dev accuracy": null } : {}) });
    const steps = data.all_steps, all = [...steps, ...(data.accuracy ?? []).map((point) => point[0])];
    const x = spread(Math.min(...all), Math.max(...all), 190, W - 90), tall = (H - 30) / Math.max(1, series.length);
    series.forEach(([name, values], i) => {
      const points = values === null ? data.accuracy : steps.map((step, j) => [step, values[j]]);
      const known = points.filter((point) => Number.isFinite(point[1]));
      if (!known.length) return;
      const [low, high] = [Math.min(...known.map((p) => p[1])), Math.max(...known.map((p) => p[1]))];
      const y = spread(low, high, (i + 0.85) * tall, (i + 0.2) * tall), kind = values === null ? "c1" : "c0";
      svg.append(shape("text", { class: "tick", x: 182, y: (i + 0.6) * tall, "text-anchor": "end" }, name));
      svg.append(shape("polyline", { class: `line ${kind}`, points: known.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
      const now = known.filter((p) => p[0] <= data.steps[this.now]).at(-1) ?? known[0];
      svg.append(shape("circle", { class: `dot ${kind}`, cx: x(now[0]), cy: y(now[1]), r: 4 }));
      svg.append(shape("text", { class: `label ${kind}`, x: W - 84, y: (i + 0.6) * tall }, shown(now[1])));
    });
    const at = x(data.steps[this.now]);
    svg.append(shape("line", { class: "now", x1: at, x2: at, y1: 4, y2: H - 24 }));
    svg.append(shape("text", { class: "axis", x: (W + 100) / 2, y: H - 6, "text-anchor": "middle" }, "step"));
  }
  numbers(name) {
    const { of, data } = this;
    const rows = (make) => data.steps.flatMap((step, i) => make(i).map((row) => [step, ...row]));
    if (name === "map") return { columns: ["step", "token", "first", "second"], rows: rows((i) => of.places[i].map((place, token) => [token, ...place])) };
    if (name === "measures") return { columns: ["step", ...Object.keys(of.measures)], rows: data.all_steps.map((step, i) => [step, ...Object.values(of.measures).map((values) => values[i])]) };
    return { columns: ["step", "degree", "birth", "death"], rows: rows((i) => ["h0", "h1"].flatMap((kind, degree) => of[kind][i].map((bar) => [degree, ...bar]))) };
  }
}
document.querySelectorAll(".evolution").forEach((place) => new Evolution(place));
