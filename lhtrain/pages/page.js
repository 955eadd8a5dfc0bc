"use strict";
// Draws the charts of the page as SVG. Their format is described in charts.py. Texts are set by textContent only.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const LABELS = { step: "steps", tokens: "tokens", seconds: "time of training", flops: "FLOPs" };
  const SPACE = { left: 52, right: 24, top: 18, bottom: 36 };
  const hidden = new Set(); // groups that the legend has switched off
  let axis = "step";

  const color = (number) => `var(--c${number % 8})`;

  function make(parent, name, attributes = {}, text = "") {
    const isHtml = ["div", "span", "button", "i", "b"].includes(name);
    const node = isHtml ? document.createElement(name) : document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    parent.append(node);
    return node;
  }

  function si(value) {
    for (const [size, unit] of [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]]) {
      if (Math.abs(value) >= size) return `${+(value / size).toPrecision(4)}${unit}`;
    }
    return `${+value.toPrecision(4)}`;
  }

  function time(seconds) {
    const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    if (whole >= 86400) return `${Math.floor(whole / 86400)}d ${Math.floor(whole / 3600) % 24}h`;
    if (whole >= 3600) return `${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
    return `${Math.floor(whole / 60)}:${pad(whole % 60)}`;
  }

  const formatX = (name, value) => (name === "seconds" ? time(value) : si(value));
  function formatY(chart, value) {
    if (chart.percent) return `${+(value * 100).toFixed(1)}%`;
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) {
      return Math.abs(value) >= 1e5 ? si(value) : value.toExponential(1);
    }
    return `${+value.toPrecision(5)}`;
  }

  function ticks(low, high, count, name) {
    const raw = (high - low) / count;
    let step;
    if (name === "seconds" && raw < 86400) {
      step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400].find((s) => s >= raw);
    } else {
      const power = 10 ** Math.floor(Math.log10(raw));
      step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
      if (name === "step" || name === "tokens") step = Math.max(1, step);
    }
    const out = [];
    for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-9); at++) out.push(at * step);
    return out;
  }

  function logTicks(low, high) {
    const out = [], first = Math.ceil(Math.log2(low)), last = Math.floor(Math.log2(high));
    const every = Math.max(1, Math.ceil((last - first + 1) / 6));
    for (let power = first; power <= last; power += every) out.push(2 ** power);
    return out;
  }

  class Chart {
    constructor(figure, chart) {
      this.figure = figure;
      this.chart = chart;
      this.plot = figure.querySelector(".plot");
      this.zoom = null;
      this.legend();
      this.plot.addEventListener("pointermove", (event) => this.move(event));
      this.plot.addEventListener("pointerleave", () => this.leave());
      this.plot.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") this.from = this.at(event); });
      this.plot.addEventListener("pointerup", (event) => this.release(event));
      this.plot.addEventListener("dblclick", () => { this.zoom = null; this.draw(); });
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    get axis() { return this.chart.axes.includes(axis) ? axis : this.chart.axes[0]; }
    get shown() { return this.chart.series.filter((one) => !hidden.has(one.group)); }

    legend() {
      const legend = this.figure.querySelector(".legend"), seen = new Map();
      for (const one of this.chart.series) {
        if (!seen.has(one.name) || seen.get(one.name).kind === "faint") seen.set(one.name, one);
      }
      if (seen.size < 2) return;
      for (const one of seen.values()) {
        const button = make(legend, "button", { type: "button", "aria-pressed": "true" });
        make(button, "i", { class: one.kind, style: `background:${color(one.color)}` });
        make(button, "span", {}, one.name);
        button.addEventListener("click", () => {
          if (!hidden.delete(one.group)) hidden.add(one.group);
          redraw();
        });
        button.dataset.group = one.group;
      }
    }

    // The range of x, and of y within it.
    ranges() {
      const name = this.axis, all = this.shown;
      let low = Infinity, high = -Infinity;
      for (const one of all) for (const x of one.x[name]) { if (x < low) low = x; if (x > high) high = x; }
      if (!(low <= high)) [low, high] = [0, 1];
      if (!this.chart.log && low > 0 && low < 0.2 * high) low = 0;
      if (this.zoom) [low, high] = this.zoom;
      if (low === high) [low, high] = this.chart.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
      const late = this.chart.late && !this.zoom ? low + 0.05 * (high - low) : low;
      let bottom = this.chart.zero ? 0 : Infinity, top = -Infinity;
      for (const one of all) {
        one.y.forEach((y, at) => {
          const x = one.x[name][at];
          if (x >= Math.max(low, late) && x <= high) { if (y < bottom) bottom = y; if (y > top) top = y; }
        });
      }
      if (!(bottom <= top)) [bottom, top] = [0, 1];
      const room = (top - bottom || Math.abs(top) || 1) * 0.06;
      return { low, high, bottom: bottom >= 0 ? Math.max(bottom - room, 0) : bottom - room, top: top + room };
    }

    draw() {
      const width = this.plot.clientWidth, height = this.plot.clientHeight;
      if (!width || !height) return;
      this.plot.replaceChildren();
      for (const button of this.figure.querySelectorAll(".legend button")) {
        button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.group)));
      }
      const svg = make(this.plot, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.chart.y });
      const range = this.ranges(), log = this.chart.log;
      const scale = (x) => (log ? Math.log(x) : x);
      const inner = { width: width - SPACE.left - SPACE.right, height: height - SPACE.top - SPACE.bottom };
      this.px = (x) => SPACE.left + ((scale(x) - scale(range.low)) / (scale(range.high) - scale(range.low))) * inner.width;
      this.back = (px) => {
        const share = (px - SPACE.left) / inner.width, value = scale(range.low) + share * (scale(range.high) - scale(range.low));
        return log ? Math.exp(value) : value;
      };
      const py = (y) => SPACE.top + (1 - (y - range.bottom) / (range.top - range.bottom)) * inner.height;
      this.py = py;
      this.frame(svg, range, inner, width, height);
      const clip = `clip-${Math.random().toString(36).slice(2)}`;
      make(make(svg, "clipPath", { id: clip }), "rect", { x: SPACE.left, y: SPACE.top - 2, width: inner.width + 2, height: inner.height + 4 });
      const lines = make(svg, "g", { "clip-path": `url(#${clip})` });
      for (const kind of ["faint", "line", "dots"]) {
        for (const one of this.shown) if (one.kind === kind) this.series(lines, one, py);
      }
      this.cursor = make(svg, "g");
      this.selection = make(svg, "rect", { fill: "var(--accent)", opacity: 0.15, y: SPACE.top, height: inner.height, width: 0 });
    }

    frame(svg, range, inner, width, height) {
      const name = this.axis, y0 = height - SPACE.bottom;
      for (const y of ticks(range.bottom, range.top, Math.max(2, Math.floor(inner.height / 48)), "")) {
        make(svg, "line", { x1: SPACE.left, x2: width - SPACE.right, y1: this.py(y), y2: this.py(y), stroke: "var(--line)" });
        make(svg, "text", { x: SPACE.left - 7, y: this.py(y) + 4, "text-anchor": "end" }, formatY(this.chart, y));
      }
      const found = this.chart.log ? logTicks(range.low, range.high) : ticks(range.low, range.high, Math.max(2, Math.floor(inner.width / 90)), name);
      for (const x of found) {
        make(svg, "line", { x1: this.px(x), x2: this.px(x), y1: y0, y2: y0 + 4, stroke: "var(--soft)" });
        make(svg, "text", { x: this.px(x), y: y0 + 16, "text-anchor": "middle" }, this.chart.log && x % 1024 === 0 ? `${x / 1024}K` : formatX(name, x));
      }
      make(svg, "line", { x1: SPACE.left, x2: width - SPACE.right, y1: y0, y2: y0, stroke: "var(--soft)" });
      make(svg, "text", { x: width - SPACE.right, y: height - 4, "text-anchor": "end" }, this.chart.x || LABELS[name]);
      make(svg, "text", { x: 0, y: 11 }, this.chart.y);
      for (const mark of this.chart.marks) {
        const x = mark.x[name];
        if (x === null || x === undefined || x < range.low || x > range.high) continue;
        const px = this.px(x), flip = px > width - 110;
        make(svg, "line", { x1: px, x2: px, y1: SPACE.top, y2: y0, stroke: color(mark.color), "stroke-dasharray": "4 3" });
        make(svg, "text", { x: px + (flip ? -5 : 5), y: SPACE.top + 10, "text-anchor": flip ? "end" : "start" }, mark.text.slice(0, 24));
      }
    }

    series(svg, one, py) {
      const xs = one.x[this.axis], places = one.y.map((y, at) => [this.px(xs[at]), py(y)]);
      const style = { stroke: color(one.color), fill: "none", "stroke-linejoin": "round" };
      const path = "M" + places.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
      const look = { faint: { "stroke-width": 1, opacity: 0.3 }, line: { "stroke-width": 2 }, dots: { "stroke-width": 1, opacity: 0.6 } };
      if (places.length > 1) make(svg, "path", { d: path, ...style, ...look[one.kind] });
      if (one.kind === "dots" || places.length === 1) {
        const radius = places.length > 150 ? 1.8 : 3.2;
        for (const [x, y] of places) make(svg, "circle", { cx: x, cy: y, r: radius, fill: color(one.color), stroke: "var(--bg)", "stroke-width": 1 });
      }
    }

    at(event) { return event.clientX - this.plot.getBoundingClientRect().left; }

    move(event) {
      const px = this.at(event), x = this.back(px), name = this.axis;
      if (this.from !== undefined && this.from !== null) {
        this.selection.setAttribute("x", Math.min(px, this.from));
        this.selection.setAttribute("width", Math.abs(px - this.from));
      }
      const rows = [];
      for (const one of this.shown) {
        if (one.kind === "faint") continue;
        const xs = one.x[name];
        let low = 0, high = xs.length - 1;
        while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
        const best = Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
        if (Math.abs(this.px(xs[best]) - px) < 24) rows.push([one, xs[best], one.y[best]]);
      }
      this.leave(false);
      if (!rows.length) return;
      const nearest = rows.reduce((a, b) => (Math.abs(a[1] - x) <= Math.abs(b[1] - x) ? a : b))[1];
      make(this.cursor, "line", { x1: this.px(nearest), x2: this.px(nearest), y1: SPACE.top, y2: this.plot.clientHeight - SPACE.bottom, stroke: "var(--soft)", opacity: 0.6 });
      const tip = make(this.plot, "div", { class: "tip" });
      make(tip, "div", {}, `${formatX(name, nearest)} ${name === "seconds" ? "" : this.chart.x || LABELS[name]}`);
      for (const [one, at, y] of rows.slice(0, 12)) {
        const row = make(tip, "div"), label = make(row, "span");
        make(label, "i", { style: `background:${color(one.color)}` });
        make(label, "span", {}, one.kind === "dots" && one.name !== "validation" && !one.name.startsWith("validation") ? `${one.name}, validation` : one.name);
        make(row, "b", {}, formatY(this.chart, y));
        make(this.cursor, "circle", { cx: this.px(at), cy: this.py(y), r: 4, fill: color(one.color) });
      }
      const left = px > this.plot.clientWidth / 2 ? px - tip.offsetWidth - 14 : px + 14;
      tip.style.left = `${Math.max(0, Math.min(left, this.plot.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${SPACE.top + 6}px`;
    }

    leave(all = true) {
      if (all) { this.from = null; this.selection?.setAttribute("width", 0); }
      this.cursor?.replaceChildren();
      this.plot.querySelector(".tip")?.remove();
    }

    release(event) {
      const from = this.from, to = this.at(event);
      this.leave();
      if (from === null || from === undefined || Math.abs(to - from) < 8) return;
      this.zoom = [this.back(Math.min(from, to)), this.back(Math.max(from, to))];
      this.draw();
    }
  }

  const drawn = [...document.querySelectorAll("figure[data-chart]")].map((figure) => new Chart(figure, charts[figure.dataset.chart]));
  const redraw = () => drawn.forEach((chart) => chart.draw());
  const box = document.querySelector(".axes");
  const offered = charts.loss ? charts.loss.axes : [];
  for (const name of offered) {
    const button = make(box, "button", { type: "button", "aria-pressed": String(name === axis) }, LABELS[name]);
    button.addEventListener("click", () => {
      axis = name;
      for (const other of box.children) other.setAttribute("aria-pressed", String(other === button));
      for (const chart of drawn) chart.zoom = null;
      redraw();
    });
  }
  if (!offered.length) box?.remove();
  redraw(); // at once: observers of sizes first run at the next frame
  document.documentElement.dataset.charts = String(drawn.length); // for tests
})();
