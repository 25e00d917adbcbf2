// FlameGraph draws a Tree on a canvas of the size of its box; the box scrolls
// over rows, so that a graph a thousand rows deep needs no larger canvas.
const ROW = 20;

class FlameGraph {
  constructor(profile, box, { up = false, label, on }) {
    Object.assign(this, { profile, box, up, on });
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "flame graph");
    this.canvas.setAttribute("aria-label", label);
    this.space = document.createElement("div");
    this.space.className = "space";
    // Outlines are elements over the canvas, so that moving one paints nothing.
    this.ring = document.createElement("div");
    this.ring.className = "ring";
    this.ring.hidden = true;
    this.mark = document.createElement("div");
    this.mark.className = "ring cursor";
    this.mark.hidden = true;
    box.append(this.canvas, this.space, this.ring, this.mark);
    this.context = this.canvas.getContext("2d");
    this.tree = null;
    this.zoomed = 0;
    this.from = 0;
    this.to = 1;
    this.cursor = -1;
    this.hover = -1;
    this.matches = null;
    this.selected = -1;
    this.widths = new Float32Array(profile.functions.length);
    new ResizeObserver(() => this.resize()).observe(box);
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    this.canvas.addEventListener("mousemove", (e) => this.point(e));
    this.canvas.addEventListener("mouseleave", () => this.setHover(-1));
    this.canvas.addEventListener("click", (e) => {
      const i = this.hit(e);
      if (i >= 0) this.on.pick(i, e.detail > 1);
    });
    this.canvas.addEventListener("keydown", (e) => this.key(e));
    this.canvas.addEventListener("focus", () => this.outline());
    this.canvas.addEventListener("blur", () => this.outline());
  }

  setTree(tree, zoomed = 0) {
    this.tree = tree;
    this.zoomed = zoomed;
    this.cursor = this.hover = -1;
    this.window(false);
    this.resize();
    if (this.up) this.box.scrollTop = this.box.scrollHeight;
  }

  zoom(i, animate = true) {
    this.zoomed = i;
    this.cursor = i;
    this.window(animate);
    this.reveal(i);
  }

  // window moves the visible range of samples to the zoomed node's.
  window(animate) {
    const t = this.tree, from = t.size ? t.x[this.zoomed] : 0, to = t.size ? from + t.total[this.zoomed] : 1;
    cancelAnimationFrame(this.frame);
    if (!animate || matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.from = from;
      this.to = to;
      return this.draw();
    }
    const start = performance.now(), f0 = this.from, t0 = this.to;
    const step = (now) => {
      const p = Math.min(1, Math.max(0, (now - start) / 180)), e = 1 - (1 - p) ** 3;
      this.from = f0 + (from - f0) * e;
      this.to = t0 + (to - t0) * e;
      this.draw();
      if (p < 1) this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  // Rows above (or, upside down, below) the first are not drawn: the callers'
  // graph leaves out the function itself, which the callees' graph shows.
  get skip() { return this.up ? 1 : 0; }
  get rows() { return Math.max(0, this.tree.levels.length - this.skip); }

  resize() {
    if (!this.tree) return;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    this.dpr = window.devicePixelRatio || 1;
    const w = Math.round(this.width * this.dpr), h = Math.round(this.height * this.dpr);
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.canvas.style.width = this.width + "px";
      this.canvas.style.height = this.height + "px";
    }
    this.space.style.height = Math.max(0, this.rows * ROW - this.height) + "px";
    this.draw();
  }

  top(depth) {
    const y = (depth - this.skip) * ROW;
    return (this.up ? Math.max(this.height, this.rows * ROW) - y - ROW : y) - this.box.scrollTop;
  }
  depthAt(y) {
    y += this.box.scrollTop;
    if (this.up) y = Math.max(this.height, this.rows * ROW) - y;
    return Math.floor(y / ROW) + this.skip;
  }
  left(i) { return ((this.tree.x[i] - this.from) / (this.to - this.from)) * this.width; }
  // rect is where a node is on the page, for tests and for the tooltip.
  rect(i) {
    const left = Math.max(0, this.left(i)), right = Math.min(this.width, this.left(i) + (this.tree.total[i] / (this.to - this.from)) * this.width);
    return { left, top: this.top(this.tree.depth[i]), width: right - left, height: ROW };
  }

  // first finds, in one row, the first node that ends after x.
  first(level, x) {
    let lo = 0, hi = level.length;
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (this.tree.x[level[mid]] + this.tree.total[level[mid]] <= x) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }

  hit(e) {
    const box = this.canvas.getBoundingClientRect(), depth = this.depthAt(e.clientY - box.top);
    const level = this.tree.levels[depth];
    if (!level || depth < this.skip) return -1;
    const x = this.from + ((e.clientX - box.left) / this.width) * (this.to - this.from), k = this.first(level, x);
    return k < level.length && this.tree.x[level[k]] <= x ? level[k] : -1;
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const { tree: t, context: c, width, height, dpr } = this;
    if (!t || !width || !height) return;
    const theme = this.theme || (this.theme = readTheme());
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, width, height);
    if (!t.size || !t.total[0]) return;
    c.font = theme.font;
    c.textBaseline = "middle";
    const scale = width / (this.to - this.from), snap = (v) => Math.round(v * dpr) / dpr;
    const edges = [this.depthAt(0), this.depthAt(height - 1)].sort((a, b) => a - b);
    const zoomDepth = t.depth[this.zoomed], gap = 1 / dpr;
    let fill = "";
    for (let depth = Math.max(this.skip, edges[0]); depth <= edges[1] && depth < t.levels.length; depth++) {
      const level = t.levels[depth], y = this.top(depth);
      for (let k = this.first(level, this.from); k < level.length && t.x[level[k]] < this.to; ) {
        const i = level[k];
        const x0 = snap(Math.max(0, (t.x[i] - this.from) * scale)), x1 = snap(Math.min(width, (t.x[i] + t.total[i] - this.from) * scale));
        const fn = t.fn[i], kind = t.inlined[i] ? INLINED : this.profile.functions[fn].kind;
        const faded = this.matches ? !this.matches[fn] : false;
        const colours = faded ? theme.faded : theme.fills[kind];
        const colour = colours[shade(this.profile.functions[fn])];
        if (colour !== fill) c.fillStyle = fill = colour;
        if (x1 - x0 < 1) {
          // Too thin to tell apart: one column stands for all that share it.
          c.fillRect(x0, y, 1, ROW - gap);
          k = Math.max(k + 1, this.first(level, this.from + (x0 + 1) / scale));
          continue;
        }
        if (depth < zoomDepth) c.globalAlpha = 0.55;
        const w = x1 - x0 - (x1 - x0 > 4 ? gap : 0);
        c.fillRect(x0, y, w, ROW - gap);
        if (kind === MARKER && w > 3) this.hatch(x0, y, w, theme);
        if (w > 24) {
          fill = "";
          c.fillStyle = faded ? theme.fadedText : theme.texts[kind];
          const text = this.fit(fn, w - 10);
          if (text) c.fillText(text, x0 + 5, y + ROW / 2 + 0.5);
        }
        c.globalAlpha = 1;
        if (fn === this.selected) {
          c.strokeStyle = theme.ink;
          c.lineWidth = 1;
          c.strokeRect(x0 + 0.5, y + 0.5, Math.max(0, w - 1), ROW - gap - 1);
        }
        k++;
      }
    }
    this.outline();
  }

  outline() {
    const put = (ring, i) => {
      const r = i >= 0 && this.tree && i < this.tree.size && this.tree.depth[i] >= this.skip ? this.rect(i) : null;
      ring.hidden = !r || r.width <= 0;
      if (ring.hidden) return;
      Object.assign(ring.style, { left: r.left + "px", top: r.top + this.box.scrollTop + "px", width: Math.max(2, r.width) + "px" });
    };
    put(this.ring, this.hover);
    put(this.mark, document.activeElement === this.canvas ? this.cursor : -1);
  }

  // hatch marks a cut stack by more than its colour.
  hatch(x, y, w, theme) {
    const c = this.context;
    c.save();
    c.beginPath();
    c.rect(x, y, w, ROW - 1);
    c.clip();
    c.strokeStyle = theme.hatch;
    c.lineWidth = 1;
    c.beginPath();
    const end = Math.min(x + w, this.width);
    for (let d = x - ROW; d < end; d += 7) {
      c.moveTo(d, y + ROW);
      c.lineTo(d + ROW, y);
    }
    c.stroke();
    c.restore();
  }

  // fit is the most of a name that there is room for.
  fit(fn, room) {
    const f = this.profile.functions[fn];
    let full = this.widths[fn];
    if (!full) full = this.widths[fn] = this.context.measureText(f.name.slice(0, 300)).width || 1;
    if (full <= room && f.name.length <= 300) return f.name;
    const short = (f.short ||= shortName(f.name));
    const average = full / Math.min(300, f.name.length), count = Math.floor(room / average);
    if (short.length <= count) return short;
    return count < 4 ? "" : short.slice(0, count - 1) + "…";
  }

  setHover(i, e) {
    if (i !== this.hover) {
      this.hover = i;
      this.outline();
    }
    this.on.hover(i, e);
  }
  point(e) {
    const i = this.hit(e);
    this.canvas.style.cursor = i >= 0 ? "pointer" : "default";
    this.setHover(i, e);
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const t = this.tree, at = this.cursor < 0 ? this.zoomed : this.cursor;
    const down = this.up ? "ArrowUp" : "ArrowDown", up = this.up ? "ArrowDown" : "ArrowUp";
    let to = at;
    if (this.cursor < 0 && e.key.startsWith("Arrow")) to = this.skip ? Math.min(at + 1, t.size - 1) : at;
    else if (e.key === down) to = at + 1 < t.end[at] ? at + 1 : at;
    else if (e.key === up) to = t.depth[at] > this.skip ? t.parent[at] : at;
    else if (e.key === "ArrowRight" || e.key === "ArrowLeft") {
      const level = t.levels[t.depth[at]], k = level.indexOf(at) + (e.key === "ArrowRight" ? 1 : -1);
      const next = level[k];
      if (next !== undefined && t.x[next] < this.to && t.x[next] + t.total[next] > this.from) to = next;
    } else if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      return this.on.pick(at, false);
    } else return;
    e.preventDefault();
    e.stopPropagation();
    this.cursor = to;
    this.reveal(to);
    this.outline();
    this.on.cursor(to);
  }

  reveal(i) {
    if (i < 0 || !this.tree.size) return;
    const y = this.top(this.tree.depth[i]) + this.box.scrollTop;
    if (y < this.box.scrollTop) this.box.scrollTop = y - ROW;
    else if (y + ROW > this.box.scrollTop + this.height) this.box.scrollTop = y + 2 * ROW - this.height;
  }
}

// shade tells neighbours of one kind apart: a function always has the same.
function shade(f) {
  if (f.shade === undefined) {
    let h = 2166136261;
    const s = (f.module ? f.module.name : "") + f.name;
    for (let i = 0; i < s.length && i < 200; i++) h = Math.imul(h ^ s.charCodeAt(i), 16777619);
    f.shade = (h >>> 8) % 5;
  }
  return f.shade;
}

// shortName leaves out what a narrow bar has no room for: arguments,
// templates, and the folders of a Go package.
function shortName(name) {
  let s = name.slice(foldersOf(name).length);
  for (let i = 0; i < 8 && /<[^<>]*>/.test(s); i++) s = s.replace(/<[^<>]*>/g, "");
  const open = s.indexOf("(", 1);
  if (open > 1 && s[open - 1] !== "." && !s.startsWith("(")) s = s.slice(0, open);
  return s.replace(/^.*::(?=[^:]+::[^:]+$)/, "") || name;
}

// foldersOf is what comes before the package's own name in a function of Go.
function foldersOf(name) {
  return (name.match(/^[^ (<[]*\/(?=[^/(]*\.)/) || [""])[0];
}

// readTheme takes the palette from the style sheet, so that the legend and the
// graph cannot disagree. Five shades a kind, within a few points of lightness.
function readTheme() {
  const css = getComputedStyle(document.documentElement), v = (name) => css.getPropertyValue(name).trim();
  const shades = (hex, step) => [-2, -1, 0, 1, 2].map((d) => mix(hex, d < 0 ? "#000000" : "#ffffff", Math.abs(d) * step));
  return {
    font: "12px " + v("--sans"),
    fills: KINDS.map((k) => shades(v("--k-" + k), 0.035)),
    texts: KINDS.map((k) => v("--t-" + k) || v("--t-kind")),
    faded: shades(v("--faded"), 0.01),
    fadedText: v("--faded-text"),
    ink: v("--ink"),
    hatch: v("--hatch"),
  };
}

function mix(a, b, share) {
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return "rgb(" + [0, 1, 2].map((i) => Math.round(part(a, i) * (1 - share) + part(b, i) * share)).join(" ") + ")";
}
