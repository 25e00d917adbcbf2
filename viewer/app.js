// The page: state, what is shown of it, and what changes it. Text from the
// profile only ever becomes textContent.
const $ = (id) => document.getElementById(id);
function element(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k === "text") e.textContent = v;
    else if (k in e) e[k] = v;
    else e.setAttribute(k, v);
  }
  e.append(...children);
  return e;
}

function start(profile) {
  const state = {
    tab: "flame", zoom: [], query: "", regex: false, fn: -1, inverted: false,
    group: profile.grouping, hidden: new Set(), off: new Set(), sort: "self", down: true,
  };
  let tree, rows, shown, limit = 200, matches = null;
  const narrow = matchMedia("(max-width: 900px)");

  const hover = (graph) => (i, e) => tip(graph, i, e);
  const say = (graph) => (i) => { $("live").textContent = describe(graph.tree, i); };
  const flame = new FlameGraph(profile, $("flame"), {
    label: "Flame graph. Arrow keys move, Enter zooms.",
    on: { pick: (i) => zoomTo(i), hover: (i, e) => hover(flame)(i, e), cursor: (i) => say(flame)(i) },
  });
  const around = (box, up, label) => {
    const g = new FlameGraph(profile, box, { up, label, on: {
      pick: (i) => { const fn = g.tree.fn[i]; if (profile.functions[fn].kind !== GROUP) change({ fn }, true); },
      hover: (i, e) => hover(g)(i, e), cursor: (i) => say(g)(i),
    } });
    return g;
  };
  const callers = around($("callers"), true, "Callers of the selected function, the nearest at the bottom");
  const callees = around($("callees"), false, "Callees of the selected function");
  const graphs = [flame, callers, callees];

  // --- what is shown

  function rebuild() {
    tree = mainTree(profile, state);
    rows = functionRows(profile, tree);
    const all = state.hidden.size ? mainTree(profile, { ...state, hidden: new Set() }) : tree;
    drawLegend(kindShares(profile, all), all.total[0] || 0);
    drawProcesses();
  }

  function show() {
    $("view").dataset.tab = state.tab;
    for (const b of document.querySelectorAll("[data-tab][role=tab]")) b.setAttribute("aria-selected", String(b.dataset.tab === state.tab));
    const sandwich = state.tab === "sandwich", nothing = !tree.total[0];
    const lost = sandwich && (state.fn < 0 || !rows.some((r) => r.fn === state.fn));
    $("flame").hidden = sandwich || nothing;
    $("sandwich").hidden = !sandwich || nothing || lost;
    $("empty").hidden = !nothing && !lost;
    $("empty").textContent = nothing
      ? profile.samples ? "No samples are left: every process is filtered out." : "The profile is empty: nothing ran on a CPU, or nothing that the filter let through."
      : "Choose a function in the table or in the flame graph to see who calls it and what it calls.";
    $("invert").hidden = sandwich;
    $("invert").setAttribute("aria-pressed", String(state.inverted));
    $("group").value = state.group;
    shown = state.inverted ? invertedTree(profile, tree) : tree;
    if (sandwich && !lost && !nothing) {
      callers.setTree(callersTree(profile, tree, state.fn));
      callees.setTree(calleesTree(profile, tree, state.fn));
      const name = profile.functions[state.fn].name, total = callees.tree.total[0];
      const direct = callers.tree.self[0];
      $("callers-caption").textContent = `Callers, nearest at the bottom · ${percent(total - direct, tree.total[0])} of samples came through them`;
      $("callees-caption").textContent = `${name} and its callees · ${percent(total, tree.total[0])} of samples, ${percent(rows.find((r) => r.fn === state.fn).self, tree.total[0])} in itself`;
    }
    if (!sandwich && !nothing) {
      const at = shown.find(state.zoom);
      if (flame.tree === shown) flame.zoom(at, false);
      else flame.setTree(shown, at);
    }
    $("reset").hidden = sandwich || !state.zoom.length;
    $("above").hidden = sandwich && !lost;
    drawCrumbs();
    drawSearch();
    drawSelection();
    drawTable();
  }

  function drawCrumbs() {
    const box = $("crumbs");
    box.replaceChildren();
    if (state.tab === "sandwich" || !shown.size) return;
    if (!state.zoom.length) return box.append(element("span", { className: "hint", text: "Click a frame to zoom, press ? for the keys" }));
    const path = [];
    for (let i = shown.find(state.zoom); i >= 0; i = shown.parent[i]) path.unshift(i);
    const short = path.length > 6 ? [...path.slice(0, 2), -1, ...path.slice(-3)] : path;
    short.forEach((i, n) => {
      if (n) box.append(element("span", { text: "›", ariaHidden: "true" }));
      if (i < 0) return box.append(element("span", { text: "…" }));
      const name = profile.functions[shown.fn[i]].name;
      box.append(element("button", { text: name, title: name, onclick: () => zoomTo(i) }));
    });
  }

  function drawSearch() {
    $("regex").setAttribute("aria-pressed", String(state.regex));
    const test = matcher(state.query, state.regex);
    $("search").setAttribute("aria-invalid", String(test === "bad"));
    matches = null;
    $("matched").textContent = test === "bad" ? "not a regular expression" : "";
    if (typeof test === "function") {
      matches = Uint8Array.from(profile.functions, (f) => (f.kind !== GROUP && test(f) ? 1 : 0));
      let n = 0;
      tree.outermost(matches, (i) => { n += tree.total[i]; });
      $("matched").textContent = `matches ${percent(n, tree.total[0])} of samples`;
    }
    for (const g of graphs) {
      g.matches = matches;
      g.selected = g === flame ? state.fn : -1;
      g.draw();
    }
  }

  function drawSelection() {
    const row = rows.find((r) => r.fn === state.fn);
    $("selection").hidden = !row;
    if (!row) return;
    const f = profile.functions[row.fn], all = tree.total[0];
    $("selected-name").textContent = f.name;
    $("selected-name").title = f.name;
    $("selected-facts").textContent = [
      `self ${percent(row.self, all)}`, `total ${percent(row.total, all)}`,
      duration(profile.seconds(row.total)), KIND_LABELS[f.kind], f.module ? f.module.path : "",
    ].filter(Boolean).join(" · ");
    $("open-sandwich").hidden = state.tab === "sandwich";
  }

  function drawTable() {
    const test = matcher($("filter").value, false), all = tree.total[0];
    const list = typeof test === "function" ? rows.filter((r) => test(profile.functions[r.fn])) : rows.slice();
    const by = {
      self: (a, b) => a.self - b.self || a.total - b.total,
      total: (a, b) => a.total - b.total || a.self - b.self,
      name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
    }[state.sort];
    list.sort((a, b) => (state.down ? by(b, a) : by(a, b)) || a.fn - b.fn);
    for (const b of document.querySelectorAll("[data-sort]")) {
      const th = b.parentElement;
      if (b.dataset.sort === state.sort) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    $("count").textContent = number(list.length) + (list.length === 1 ? " function" : " functions");
    const at = list.findIndex((r) => r.fn === state.fn);
    if (at >= limit) limit = at + 50;
    const body = [];
    for (const r of list.slice(0, limit)) {
      const f = profile.functions[r.fn];
      const cell = (n) => {
        const td = element("td", { className: "n", text: percent(n, all) });
        td.style.backgroundSize = `${Math.min(100, (n / all) * 100)}% 72%`;
        td.title = `${number(n)} samples, ${duration(profile.seconds(n))}`;
        return td;
      };
      // Many functions of Go begin with the same folders: without room, these go.
      const text = element("bdi", { dir: "ltr", text: f.name });
      if (f.module && f.kind !== KERNEL && !f.name.startsWith(f.module.name + "+0x")) text.append(" ", element("span", { className: "module", text: f.module.name }));
      const name = element("td", { className: foldersOf(f.name) ? "f tail" : "f", title: f.name + (f.module ? "\n" + f.module.path : "") },
        element("span", { className: "swatch " + KINDS[f.kind] }), text);
      const tr = element("tr", { tabIndex: 0 }, cell(r.self), cell(r.total), name);
      tr.dataset.fn = r.fn;
      tr.setAttribute("aria-selected", String(r.fn === state.fn));
      body.push(tr);
    }
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.fn : undefined;
    $("rows").replaceChildren(...body);
    if (focused !== undefined) $("rows").querySelector(`[data-fn="${focused}"]`)?.focus({ preventScroll: true });
    $("more").hidden = list.length <= limit;
    $("more").textContent = `Show ${number(Math.min(500, list.length - limit))} more of ${number(list.length - limit)}`;
  }

  function drawLegend(shares, all) {
    $("legend").replaceChildren();
    for (const kind of [NATIVE, INLINED, GO, JIT, KERNEL, MARKER]) {
      const there = kind === INLINED ? profile.frames.some((f) => f.inlined) : profile.functions.some((f) => f.kind === kind);
      if (!there) continue;
      const on = !state.hidden.has(kind);
      const word = KIND_LABELS[kind];
      const b = element("button", { title: on ? `Hide ${word} frames: their time goes to their callers` : `Show ${word} frames` },
        element("span", { className: "swatch " + KINDS[kind] }), element("span", { className: "word", text: word }));
      // A cut stack's marker runs nothing; its share is in the banner.
      if (kind !== MARKER) b.append(element("span", { className: "share", text: percent(shares[kind], all) }));
      b.dataset.kind = KINDS[kind];
      b.setAttribute("aria-pressed", String(on));
      b.onclick = () => {
        const hidden = new Set(state.hidden);
        hidden.has(kind) ? hidden.delete(kind) : hidden.add(kind);
        change({ hidden });
        $("legend").querySelector(`[data-kind="${KINDS[kind]}"]`).focus();
      };
      $("legend").append(b);
    }
  }

  const busiest = profile.processes.map((p, i) => i).sort((a, b) => profile.processes[b].samples - profile.processes[a].samples || a - b);
  function drawProcesses() {
    const all = profile.processes.length, on = all - state.off.size;
    $("processes").textContent = all === 1 ? "1 process" : on === all ? `All ${number(all)} processes` : `${number(on)} of ${number(all)} processes`;
    if ($("process-menu").hidden) return;
    const test = matcher($("process-filter").value, false), most = 200;
    const list = busiest.filter((i) => typeof test !== "function" || test({ name: profile.processes[i].label + " " + profile.processes[i].exe }));
    const rowsOf = list.slice(0, most).map((i) => {
      const p = profile.processes[i];
      const box = element("input", { type: "checkbox", checked: !state.off.has(i), onchange: () => {
        const off = new Set(state.off);
        box.checked ? off.delete(i) : off.add(i);
        change({ off });
        $("process-list").querySelector(`[data-process="${i}"] input`)?.focus();
      } });
      const row = element("div", { className: "process", title: p.exe },
        element("label", {}, box, element("span", { className: "name", text: p.comm }),
          element("span", { className: "pid", text: p.pid || "" }),
          element("span", { className: "share", text: percent(p.samples, profile.samples) })),
        element("button", { text: "only", title: "Only " + p.label, onclick: () => change({ off: new Set(busiest.filter((j) => j !== i)) }) }));
      row.dataset.process = i;
      return row;
    });
    if (list.length > most) rowsOf.push(element("p", { className: "note", text: `${number(list.length - most)} more; type to filter` }));
    if (!list.length) rowsOf.push(element("p", { className: "note", text: "no process has this in its name" }));
    $("process-list").replaceChildren(...rowsOf);
  }

  function describe(t, i) {
    const f = profile.functions[t.fn[i]];
    return `${f.name}, total ${percent(t.total[i], tree.total[0])}, self ${percent(t.self[i], tree.total[0])}`;
  }

  function tip(graph, i, e) {
    const box = $("tip");
    box.hidden = i < 0;
    if (i < 0) return;
    const t = graph.tree, f = profile.functions[t.fn[i]], kind = kindOf(profile, t, i), all = tree.total[0];
    const figures = element("dl");
    for (const [word, n] of [["total", t.total[i]], ["self", t.self[i]]])
      figures.append(element("dt", { text: word }), element("dd", { text: percent(n, all) }),
        element("dd", { text: number(n) + (n === 1 ? " sample" : " samples") }), element("dd", { text: duration(profile.seconds(n)) }));
    box.replaceChildren(element("strong", { text: f.name }));
    const where = t.file[i] ? t.file[i] + (t.line[i] ? ":" + t.line[i] : "") + (t.lines[i] > 1 ? ` and ${t.lines[i] - 1} more ${t.lines[i] === 2 ? "line" : "lines"}` : "") : "";
    if (where) box.append(element("div", { className: "where", text: where }));
    if (f.kind !== GROUP) {
      const sort = KIND_LABELS[kind] + (kind === INLINED ? `, ${KIND_LABELS[f.kind]} code` : "");
      box.append(element("div", { className: "where", text: sort + (f.module ? " · " + f.module.path : "") }));
    }
    box.append(figures);
    if (!e) return;
    const w = box.offsetWidth, h = box.offsetHeight;
    box.style.left = Math.max(8, Math.min(e.clientX + 14, innerWidth - w - 8)) + "px";
    box.style.top = (e.clientY + 18 + h > innerHeight ? Math.max(8, e.clientY - h - 12) : e.clientY + 18) + "px";
  }

  // --- what changes it

  function change(to, push = false) {
    const build = "hidden" in to || "off" in to || "group" in to;
    if (state.inverted !== (to.inverted ?? state.inverted) || "group" in to) to = { zoom: [], ...to };
    Object.assign(state, to);
    if (build) rebuild();
    show();
    remember(push);
  }

  function zoomTo(i) {
    const f = profile.functions[shown.fn[i]];
    state.zoom = shown.path(i);
    if (f.kind !== GROUP) state.fn = shown.fn[i];
    $("tip").hidden = true;
    flame.zoom(i);
    $("reset").hidden = !state.zoom.length;
    drawCrumbs();
    drawSearch();
    drawSelection();
    drawTable();
    $("rows").querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
    remember(true);
  }

  function escape() {
    if (!$("process-menu").hidden) return toggleMenu(false);
    if (state.query || $("search").value) {
      $("search").value = "";
      return change({ query: "" });
    }
    if (state.zoom.length && state.tab !== "sandwich") return zoomTo(0);
    if (state.fn >= 0) change({ fn: -1 });
  }

  function toggleMenu(open) {
    $("process-menu").hidden = !open;
    $("processes").setAttribute("aria-expanded", String(open));
    drawProcesses();
    if (open) $("process-filter").focus();
    else $("processes").focus();
  }

  async function copy() {
    if (state.fn < 0) return;
    const name = profile.functions[state.fn].name;
    let done = true;
    try {
      await navigator.clipboard.writeText(name);
    } catch {
      // Pages from disk may not have the clipboard; a selected field does.
      const field = element("textarea", { value: name, className: "unseen" });
      document.body.append(field);
      field.select();
      done = document.execCommand("copy");
      field.remove();
    }
    $("copy").textContent = done ? "Copied" : "Not allowed";
    $("live").textContent = done ? "copied " + name : "the browser did not allow copying";
    setTimeout(() => { $("copy").textContent = "Copy name"; }, 1500);
  }

  function setTheme(dark, keep) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (keep) try { localStorage.setItem("kalypso-theme", dark ? "dark" : "light"); } catch { /* no storage for pages from disk */ }
    for (const g of graphs) {
      g.theme = null;
      g.draw();
    }
  }
  const isDark = () => document.documentElement.dataset.theme === "dark";

  // --- the address keeps the view

  function remember(push) {
    const h = new URLSearchParams();
    if (state.tab !== "flame") h.set("tab", state.tab);
    if (state.zoom.length) h.set("zoom", state.zoom.join("."));
    if (state.query) h.set("q", state.query);
    if (state.regex) h.set("re", "1");
    if (state.fn >= 0) h.set("fn", state.fn);
    if (state.inverted) h.set("inv", "1");
    if (state.group !== profile.grouping) h.set("by", state.group);
    if (state.hidden.size) h.set("hide", [...state.hidden].map((k) => KINDS[k]).join("."));
    if (state.off.size) {
      const on = busiest.filter((i) => !state.off.has(i));
      if (on.length <= state.off.size) h.set("only", on.join("."));
      else h.set("without", [...state.off].join("."));
    }
    const to = h.size === 0 ? "#" : "#" + h;
    if (to === location.hash || (to === "#" && !location.hash)) return;
    try { history[push ? "pushState" : "replaceState"](null, "", to); } catch { /* too many changes at once: the address lags */ }
  }

  function recall() {
    const h = new URLSearchParams(location.hash.slice(1));
    const list = (k) => (h.get(k) || "").split(".").filter(Boolean);
    const numbers = (k, below) => list(k).map(Number).filter((n) => Number.isInteger(n) && n >= 0 && n < below);
    const [fn] = numbers("fn", profile.functions.length);
    const off = new Set(numbers("without", profile.processes.length));
    if (h.has("only")) {
      const on = new Set(numbers("only", profile.processes.length));
      for (const i of busiest) if (!on.has(i)) off.add(i);
    }
    Object.assign(state, {
      tab: ["sandwich", "table"].includes(h.get("tab")) ? h.get("tab") : "flame",
      zoom: numbers("zoom", profile.functions.length * 2), query: h.get("q") || "", regex: h.has("re"),
      fn: fn === undefined || profile.functions[fn].kind === GROUP ? -1 : fn, inverted: h.has("inv"),
      group: groups.some(([k]) => k === h.get("by")) ? h.get("by") : profile.grouping,
      hidden: new Set(list("hide").map((k) => KINDS.indexOf(k)).filter((k) => k >= 0 && k !== GROUP)), off,
    });
    if (state.tab === "table" && !narrow.matches) state.tab = "flame";
    $("search").value = state.query;
    rebuild();
    show();
  }

  // --- wiring

  const groups = [["command", "command"], ["process", "process"]];
  if (profile.byThread) groups.push(["thread", "thread"]);
  if (profile.byCgroup) groups.push(["cgroup", "cgroup"]);
  groups.push(["none", "nothing"]);
  for (const [value, text] of groups) $("group").append(element("option", { value, text: text }));

  $("group").onchange = () => change({ group: $("group").value });
  $("invert").onclick = () => change({ inverted: !state.inverted });
  $("reset").onclick = () => zoomTo(0);
  for (const b of document.querySelectorAll("[role=tab]")) b.onclick = () => change({ tab: b.dataset.tab }, true);
  document.querySelector(".tabs").onkeydown = (e) => {
    if (e.key !== "ArrowRight" && e.key !== "ArrowLeft") return;
    const tabs = [...document.querySelectorAll("[role=tab]")].filter((b) => b.offsetParent);
    tabs[(tabs.indexOf(document.activeElement) + (e.key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length].focus();
  };
  let typing;
  $("search").oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ query: $("search").value }), 80);
  };
  $("regex").onclick = () => { change({ regex: !state.regex, query: $("search").value }); $("search").focus(); };
  $("filter").oninput = () => { limit = 200; drawTable(); };
  $("more").onclick = () => { limit += 500; drawTable(); };
  for (const b of document.querySelectorAll("[data-sort]"))
    b.onclick = () => change(state.sort === b.dataset.sort ? { down: !state.down } : { sort: b.dataset.sort, down: b.dataset.sort !== "name" });
  const pickRow = (e) => {
    const tr = e.target.closest("tr");
    if (!tr) return;
    const fn = Number(tr.dataset.fn);
    change({ fn: fn === state.fn && state.tab !== "sandwich" ? -1 : fn }, true);
  };
  $("rows").onclick = pickRow;
  $("rows").onkeydown = (e) => {
    const tr = e.target.closest("tr");
    if (e.key === "Enter") pickRow(e);
    else if (e.key === "ArrowDown") tr.nextElementSibling?.focus();
    else if (e.key === "ArrowUp") tr.previousElementSibling?.focus();
    else return;
    e.preventDefault();
  };
  $("open-sandwich").onclick = () => change({ tab: "sandwich" }, true);
  $("copy").onclick = copy;
  $("clear").onclick = () => change({ fn: -1 });
  $("processes").onclick = () => toggleMenu($("process-menu").hidden);
  $("process-filter").oninput = drawProcesses;
  $("process-all").onclick = () => change({ off: new Set() });
  $("process-none").onclick = () => change({ off: new Set(busiest) });
  document.addEventListener("pointerdown", (e) => {
    if (!$("process-menu").hidden && !e.target.closest(".menu")) {
      $("process-menu").hidden = true;
      $("processes").setAttribute("aria-expanded", "false");
    }
  });
  $("theme").onclick = () => setTheme(!isDark(), true);
  $("help").onclick = () => $("keys").showModal();
  $("keys-close").onclick = () => $("keys").close();

  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || $("keys").open) return;
    const field = e.target.matches("input, select, textarea");
    if (e.key === "Escape") {
      if (field) e.target.blur();
      clearTimeout(typing);
      return escape();
    }
    if (field && e.target.id === "search" && e.key === "Enter") return e.target.blur();
    if (field) return;
    const keys = {
      "/": () => { $("search").focus(); $("search").select(); },
      "?": () => $("keys").showModal(),
      Backspace: () => state.tab === "flame" && state.zoom.length && zoomTo(shown.find(state.zoom.slice(0, -1))),
      s: () => change({ tab: "sandwich" }, true),
      f: () => { change({ tab: "flame" }, true); flame.canvas.focus(); },
      t: () => { if (narrow.matches) change({ tab: "table" }, true); $("rows").querySelector("tr")?.focus(); },
      i: () => change({ inverted: !state.inverted }),
      c: copy,
      d: () => setTheme(!isDark(), true),
    };
    if (keys[e.key]) {
      e.preventDefault();
      keys[e.key]();
    } else if (e.key.startsWith("Arrow") && e.target === document.body) {
      e.preventDefault();
      const g = state.tab === "sandwich" ? callees : flame;
      g.canvas.focus();
      g.key(e);
    }
  });
  addEventListener("popstate", recall);
  addEventListener("resize", () => graphs.forEach((g) => g.resize())); // also when only the pixels' density changes
  narrow.addEventListener("change", () => { if (!narrow.matches && state.tab === "table") change({ tab: "flame" }); });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  let kept = null;
  try { kept = localStorage.getItem("kalypso-theme"); } catch { /* no storage for pages from disk */ }
  setTheme(kept ? kept === "dark" : dark.matches, false);
  dark.addEventListener("change", () => setTheme(dark.matches, false));

  drawFacts(profile);
  drawQuality(profile);
  recall();
  // For tests, which point where a person would.
  document.documentElement.viewer = { profile, state, flame, callers, callees };
  document.documentElement.dataset.ready = "true";
}

// matcher makes a test of functions out of what was typed: null for nothing,
// "bad" for an expression that is none.
function matcher(text, regex) {
  if (!text) return null;
  if (regex) {
    try {
      const re = new RegExp(text, "i");
      return (f) => re.test(f.name) || (!!f.module && re.test(f.module.name));
    } catch {
      return "bad";
    }
  }
  const low = text.toLowerCase();
  return (f) => f.name.toLowerCase().includes(low) || (!!f.module && f.module.name.toLowerCase().includes(low));
}

function drawFacts(profile) {
  const m = profile.meta, wall = m.duration / 1e9;
  $("title").textContent = m.host ? `CPU profile of ${m.host}` : "CPU profile";
  $("facts").textContent = [
    m.time, wall ? duration(wall) : "", m.event ? `${m.event} at ${m.frequency} Hz` : "",
    number(profile.samples) + (profile.samples === 1 ? " sample" : " samples"),
    wall ? `${(profile.seconds(profile.samples) / wall).toFixed(2)} cores busy` : "",
  ].filter(Boolean).join(" · ");
  for (const { text, href, current } of profile.links) $("links").append(element("a", { text, href, ariaCurrent: current ? "page" : null }));
}

function drawQuality(profile) {
  const q = profile.quality, box = $("quality");
  const share = (n, all) => (all ? n / all : 1);
  const complete = share(q.complete, q.stacks), named = share(q.named, q.frames), lost = share(q.lost, q.lost + q.samples) * (q.lost ? 1 : 0);
  if (!q.stacks && !q.frames) {
    box.className = "none";
    $("grade").textContent = "– Unknown quality";
    $("verdict").textContent = "the profile has no figures about its stacks";
    return;
  }
  const good = complete >= 0.98 && named >= 0.95 && lost <= 0.01;
  box.className = good ? "good" : "fair";
  $("grade").textContent = good ? "✓ Good quality" : "! Fair quality";
  $("verdict").textContent = [
    `${percent(q.complete, q.stacks)} of stacks complete`, q.frames ? `${percent(q.named, q.frames)} of frames named` : "",
    q.lostUnknown ? "losses not known" : q.lost ? `lost ${number(q.lost)} of ${number(q.lost + q.samples)} samples` : "no samples lost",
  ].filter(Boolean).join(" · ");
  const table = (title, list, all) => {
    if (!list.length) return;
    const body = element("tbody");
    for (const c of list.slice(0, 12))
      body.append(element("tr", {}, element("td", { text: percent(c.count, all) }), element("td", { text: c.text + (c.build ? ` (build ${c.build.slice(0, 12)})` : "") })));
    $("causes").append(element("div", {}, element("h2", { text: title }), element("table", {}, body)));
  };
  table("Stacks cut before their root", q.stops, q.stacks);
  table("Frames without a name, by module", q.unnamed, q.frames);
  $("causes").append(element("p", { text: q.stops.length || q.unnamed.length
    ? "A cut stack is shown below a hatched bar with the reason. Names come back with the module's debug symbols (its -dbg or -dbgsym package), kernel names with CAP_SYSLOG, names of code made at run time with a perf map."
    : "Every stack reached its root and every frame has its name." }));
}

if (typeof DecompressionStream === "undefined") {
  document.body.textContent = "This browser is too old to unpack the profile: it needs DecompressionStream (Chrome 80, Firefox 113, Safari 16.4).";
} else {
  loadProfile($("data").textContent).then(start).catch((e) => {
    $("title").textContent = "The profile in this page cannot be read";
    $("facts").textContent = String(e);
  });
}
