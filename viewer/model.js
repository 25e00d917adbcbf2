// A Tree is what a flame graph draws: nodes in preorder, the heaviest child
// first. A node's code is its function times two, plus one when it is inlined.
class TreeBuilder {
  constructor() {
    this.slots = new Int32Array(1 << 12).fill(-1); // open addressing: a Map of numbers is ten times slower
    this.parent = [];
    this.code = [];
    this.self = [];
    this.file = [];
    this.line = [];
    this.lineWeight = [];
    this.lines = [];
  }
  slot(parent, code) {
    const mask = this.slots.length - 1;
    let h = Math.imul(parent + 1, 0x9e3779b1) ^ Math.imul(code + 1, 0x85ebca6b);
    for (h = (h ^ (h >>> 15)) & mask; ; h = (h + 1) & mask) {
      const id = this.slots[h];
      if (id < 0 || (this.parent[id] === parent && this.code[id] === code)) return h;
    }
  }
  // child finds or adds the child of a node; -1 is above the root.
  child(parent, code) {
    let at = this.slot(parent, code);
    if (this.slots[at] >= 0) return this.slots[at];
    const id = this.parent.length;
    this.parent.push(parent);
    this.code.push(code);
    this.self.push(0);
    this.file.push("");
    this.line.push(0);
    this.lineWeight.push(-1);
    this.lines.push(1);
    this.slots[at] = id;
    if (id * 2 > this.slots.length) {
      this.slots = new Int32Array(this.slots.length * 4).fill(-1);
      for (let i = 0; i <= id; i++) this.slots[this.slot(this.parent[i], this.code[i])] = i;
    }
    return id;
  }
  // at notes a source line of a node; the heaviest is the one to show.
  at(id, file, line, weight) {
    if (this.lineWeight[id] >= 0 && (this.line[id] !== line || this.file[id] !== file)) this.lines[id]++;
    if (weight > this.lineWeight[id]) {
      this.lineWeight[id] = weight;
      this.file[id] = file;
      this.line[id] = line;
    }
  }
  build() { return new Tree(this); }
}

class Tree {
  constructor(b) {
    const n = b.parent.length;
    const total = Float64Array.from(b.self);
    for (let i = n - 1; i > 0; i--) if (b.parent[i] >= 0) total[b.parent[i]] += total[i];
    // The children of i are children[offset[i]] to children[offset[i + 1]].
    const offset = new Int32Array(n + 2), children = new Int32Array(n);
    for (let i = 0; i < n; i++) if (b.parent[i] >= 0) offset[b.parent[i] + 2]++;
    for (let i = 0; i <= n; i++) offset[i + 1] += offset[i];
    for (let i = 0; i < n; i++) if (b.parent[i] >= 0) children[offset[b.parent[i] + 1]++] = i;

    this.size = n;
    this.parent = new Int32Array(n).fill(-1);
    this.fn = new Int32Array(n);
    this.inlined = new Uint8Array(n);
    this.depth = new Int32Array(n);
    this.end = new Int32Array(n); // one past the last node of the subtree
    this.self = new Float64Array(n);
    this.total = new Float64Array(n);
    this.x = new Float64Array(n);
    this.file = new Array(n);
    this.line = new Int32Array(n);
    this.lines = new Int32Array(n);
    this.levels = [];
    if (!n) return;
    const stack = [0], parents = [-1];
    const next = new Float64Array(n); // where a node's next child starts
    for (let at = 0; stack.length; at++) {
      const i = stack.pop(), parent = parents.pop();
      const depth = parent < 0 ? 0 : this.depth[parent] + 1;
      this.parent[at] = parent;
      this.fn[at] = b.code[i] >> 1;
      this.inlined[at] = b.code[i] & 1;
      this.depth[at] = depth;
      this.self[at] = b.self[i];
      this.total[at] = total[i];
      this.file[at] = b.file[i];
      this.line[at] = b.line[i];
      this.lines[at] = b.lines[i];
      if (parent >= 0) {
        this.x[at] = next[parent];
        next[parent] += total[i];
      }
      next[at] = this.x[at];
      (this.levels[depth] ||= []).push(at);
      const c = children.subarray(offset[i], offset[i + 1]);
      if (c.length > 1) c.sort((p, q) => total[q] - total[p] || p - q);
      for (let k = c.length - 1; k >= 0; k--) {
        stack.push(c[k]);
        parents.push(at);
      }
    }
    for (let i = n - 1; i >= 0; i--) {
      if (this.end[i] === 0) this.end[i] = i + 1;
      const p = this.parent[i];
      if (p >= 0 && this.end[p] === 0) this.end[p] = this.end[i];
    }
  }

  code(i) { return this.fn[i] * 2 + this.inlined[i]; }
  // path and find turn a node into codes from below the root, and back, so
  // that a zoom survives a change of the tree.
  path(i) {
    const codes = [];
    for (; i > 0; i = this.parent[i]) codes.push(this.code(i));
    return codes.reverse();
  }
  find(codes) {
    let at = 0;
    for (const code of codes) {
      let hit = -1;
      for (let c = at + 1; c < this.end[at]; c = this.end[c]) if (this.code(c) === code) { hit = c; break; }
      if (hit < 0) break;
      at = hit;
    }
    return at;
  }
  // outermost calls f for each matching node that has no matching node above.
  outermost(matches, f) {
    for (let i = 0; i < this.size; ) {
      if (matches[this.fn[i]]) {
        f(i);
        i = this.end[i];
      } else i++;
    }
  }
}

// mainTree is the profile root first, with the chosen processes and kinds.
// Time in frames of a hidden kind is shown as their callers' own.
function mainTree(profile, { group, off, hidden }) {
  const b = new TreeBuilder();
  const root = b.child(-1, profile.root * 2);
  const at = [];
  let process = null;
  for (let i = 0; i < profile.size; i++) {
    const depth = profile.depth[i], what = profile.what[i];
    let node;
    if (depth === 0) {
      process = off.has(what) ? null : profile.processes[what];
      if (process) node = group === "none" ? root : b.child(root, process.groups[group] * 2);
      if (process && group === "cgroup") node = b.child(node, process.groups.command * 2);
    } else if (process) {
      node = at[depth - 1];
      if (what < 0) {
        if (group === "thread") node = b.child(node, profile.threadGroups[-1 - what] * 2);
      } else {
        const f = profile.frames[what], kind = f.inlined ? INLINED : profile.functions[f.fn].kind;
        if (!hidden.has(kind)) {
          node = b.child(node, f.fn * 2 + f.inlined);
          b.at(node, f.file, profile.line[i], profile.total[i]);
        }
      }
    }
    if (!process) continue;
    at[depth] = node;
    b.self[node] += profile.self[i];
  }
  return b.build();
}

// upTree turns paths upside down: from each start node its callers.
function upTree(profile, tree, rootFn, starts) {
  const b = new TreeBuilder();
  const root = b.child(-1, rootFn * 2);
  for (const [start, weight, own] of starts) {
    let node = root;
    for (let i = own ? start : tree.parent[start]; i > 0; i = tree.parent[i]) {
      node = b.child(node, tree.code(i));
      b.at(node, tree.file[i], tree.line[i], weight);
    }
    b.self[node] += weight;
  }
  return b.build();
}

function invertedTree(profile, tree) {
  const starts = [];
  for (let i = 1; i < tree.size; i++) if (tree.self[i] > 0) starts.push([i, tree.self[i], true]);
  return upTree(profile, tree, profile.root, starts);
}

// callersTree and calleesTree count a sample once: where the function
// recurses, from its outermost call.
function callersTree(profile, tree, fn) {
  const starts = [], only = new Uint8Array(profile.functions.length);
  only[fn] = 1;
  tree.outermost(only, (i) => starts.push([i, tree.total[i], false]));
  return upTree(profile, tree, fn, starts);
}

function calleesTree(profile, tree, fn) {
  const b = new TreeBuilder();
  const root = b.child(-1, fn * 2), map = new Int32Array(tree.size), only = new Uint8Array(profile.functions.length);
  only[fn] = 1;
  tree.outermost(only, (top) => {
    map[top] = root;
    b.self[root] += tree.self[top];
    b.at(root, tree.file[top], tree.line[top], tree.total[top]);
    for (let i = top + 1; i < tree.end[top]; i++) {
      const node = (map[i] = b.child(map[tree.parent[i]], tree.code(i)));
      b.self[node] += tree.self[i];
      b.at(node, tree.file[i], tree.line[i], tree.total[i]);
    }
  });
  return b.build();
}

// functionRows is self and total of each function, recursion counted once.
function functionRows(profile, tree) {
  const self = new Float64Array(profile.functions.length), total = new Float64Array(profile.functions.length);
  const active = new Int32Array(profile.functions.length), open = [];
  for (let i = 0; i < tree.size; i++) {
    while (open.length && tree.end[open[open.length - 1]] <= i) active[tree.fn[open.pop()]]--;
    const fn = tree.fn[i];
    self[fn] += tree.self[i];
    if (active[fn]++ === 0) total[fn] += tree.total[i];
    open.push(i);
  }
  const rows = [];
  for (let fn = 0; fn < total.length; fn++)
    if (total[fn] > 0 && profile.functions[fn].kind !== GROUP) rows.push({ fn, self: self[fn], total: total[fn], name: profile.functions[fn].name });
  return rows;
}

// kindShares is the samples by the kind of code that ran.
function kindShares(profile, tree) {
  const shares = new Float64Array(KINDS.length);
  for (let i = 0; i < tree.size; i++) shares[kindOf(profile, tree, i)] += tree.self[i];
  return shares;
}

function kindOf(profile, tree, i) {
  return tree.inlined[i] ? INLINED : profile.functions[tree.fn[i]].kind;
}
