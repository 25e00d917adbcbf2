// The profile as viewer/document.go wrote it, made ready for use.
async function loadProfile(base64) {
  const raw = atob(base64.trim());
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Profile(JSON.parse(await new Response(stream).text()));
}

const KINDS = ["native", "kernel", "go", "jit", "marker", "inlined", "group"];
const [NATIVE, KERNEL, GO, JIT, MARKER, INLINED, GROUP] = KINDS.keys();
const KIND_LABELS = ["native", "kernel", "Go", "JIT", "cut stack", "inlined", ""];

class Profile {
  constructor(doc) {
    const S = doc.strings;
    Object.assign(this, { meta: doc.meta, quality: doc.quality, links: doc.links || [] });
    this.modules = [];
    for (let i = 0; i < doc.modules.length; i += 3)
      this.modules.push({ name: S[doc.modules[i]], path: S[doc.modules[i + 1]], build: S[doc.modules[i + 2]] });
    this.functions = [];
    for (let i = 0; i < doc.functions.length; i += 3)
      this.functions.push({ name: S[doc.functions[i]], module: this.modules[doc.functions[i + 1]] || null, kind: doc.functions[i + 2] });
    this.frames = [];
    for (let i = 0; i < doc.frames.length; i += 3)
      this.frames.push({ fn: doc.frames[i], file: S[doc.frames[i + 1]], inlined: doc.frames[i + 2] });
    this.processes = [];
    for (let i = 0; i < doc.processes.length; i += 4)
      this.processes.push({ pid: doc.processes[i], comm: S[doc.processes[i + 1]], exe: S[doc.processes[i + 2]], cgroup: S[doc.processes[i + 3]], samples: 0 });
    this.threads = doc.threads.map((n) => S[n]);

    // Groups are shown like functions: the bars above the first real frame.
    const groups = new Map();
    const group = (name, tag) => {
      const key = tag + name;
      if (!groups.has(key)) groups.set(key, this.functions.push({ name, module: null, kind: GROUP }) - 1);
      return groups.get(key);
    };
    this.root = group("all samples", "root:");
    for (const p of this.processes) {
      p.label = p.pid ? `${p.comm} (${p.pid})` : p.comm;
      p.groups = { command: group(p.comm, "comm:"), process: group(p.label, "pid:"), cgroup: group(p.cgroup || "[unknown cgroup]", "cgroup:") };
      p.groups.thread = p.groups.process;
    }
    this.threadGroups = this.threads.map((n) => group(n, "thread:"));

    const n = doc.nodes.depth.length;
    this.size = n;
    this.depth = Int32Array.from(doc.nodes.depth);
    this.what = Int32Array.from(doc.nodes.what);
    this.line = Int32Array.from(doc.nodes.line);
    this.self = Float64Array.from(doc.nodes.self);
    this.samples = 0;
    this.total = Float64Array.from(this.self);
    const open = [];
    let process = null;
    for (let i = 0; i < n; i++) {
      if (this.depth[i] === 0) process = this.processes[this.what[i]];
      process.samples += this.self[i];
      this.samples += this.self[i];
      open.length = this.depth[i];
      if (this.self[i]) for (const j of open) this.total[j] += this.self[i];
      open.push(i);
    }
  }

  get byThread() { return this.threads.length > 0; }
  get byCgroup() { return this.processes.some((p) => p.cgroup); }
  // What the recording told apart is what the page opens with.
  get grouping() { return this.byThread ? "thread" : this.byCgroup ? "cgroup" : "command"; }
  seconds(samples) { return (samples * this.meta.period) / 1e9; }
}

const number = (n) => Math.round(n).toLocaleString("en-US");
function percent(n, all) {
  if (!all) return "–";
  const v = (n / all) * 100;
  if (n > 0 && v < 0.05) return "<0.1 %";
  return (n < all && v >= 99.95 ? "99.9" : v.toFixed(1)) + " %";
}
function duration(s) {
  if (s >= 100) return s.toFixed(0) + " s";
  if (s >= 1) return s.toFixed(2) + " s";
  if (s >= 0.001) return (s * 1000).toFixed(s >= 0.1 ? 0 : 1) + " ms";
  return s === 0 ? "0 s" : (s * 1e6).toFixed(0) + " µs";
}
