package native

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/demangle"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// ErrNotOwner says that a perf map belongs to another user than the process:
// anyone may put a file into /tmp.
var ErrNotOwner = errors.New("not owned by the process's user or root")

const (
	// maxPerfMapBytes and maxPerfMapEntries bound one perf map; a large Java or
	// Node.js service has 10 MB and 100,000 entries. An entry takes 16 bytes:
	// names stay in the file.
	maxPerfMapBytes   = 64 << 20
	maxPerfMapEntries = 1 << 20
	maxPerfMapLine    = 4 << 10
	foldEntries       = 32 << 10
	maxPerfMapCode    = 1 << 30 // bytes of one entry's code

	// An address without a name makes the map be read on after the first
	// time, one with a name after the second: JITs put new code where old was.
	missInterval = time.Second
	hitInterval  = 5 * time.Second
)

// PerfMap names the code that a process made at run time from the list that
// its JIT writes to /tmp/perf-PID.map, in lines of "START SIZE NAME" with
// hexadecimal numbers. It goes on with what it has read when the process ended
// or removed the file.
//
// The names that V8 writes ("JS:*fib /app/fib.js:3:7") are taken apart into
// function, file and line, so that all tiers of a function are one; Linkage
// keeps the whole.
type PerfMap struct {
	root string
	path string // inside root
	uids []uint32
	now  func() time.Time

	mu      sync.Mutex
	file    *os.File
	checked time.Time
	offset  int64  // everything before it was read
	skip    bool   // offset is inside a line that is too long
	tail    []byte // the bytes before offset, to notice that the file was written anew
	base    []code // sorted, not overlapping
	recent  []code // the same, newer than base
	stats   PerfMapStats
	closed  bool
}

// PerfMapStats counts what is in a perf map.
type PerfMapStats struct {
	Entries int // lines understood
	Bad     int // lines that are not
	Dropped int // lines over the limit
}

// code is a range of addresses with the place of its line in the file.
type code struct {
	start uint64
	size  uint32
	line  uint32
}

var _ lang.Instance = (*PerfMap)(nil)

// OpenPerfMap opens the perf map of a process whose root folder is root; an
// empty root stands for /proc/PID/root. The error wraps fs.ErrNotExist when the
// process wrote none, so far.
func OpenPerfMap(pid profiler.PID, root string) (*PerfMap, error) {
	if root == "" {
		root = fmt.Sprintf("/proc/%d/root", pid)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	inner, uids := parseStatus(string(status))
	if inner == 0 {
		inner = uint64(pid) // no PID namespaces in this kernel
	}
	return openPerfMap(root, fmt.Sprintf("/tmp/perf-%d.map", inner), uids, time.Now)
}

func openPerfMap(root, path string, uids []uint32, now func() time.Time) (*PerfMap, error) {
	m := &PerfMap{root: root, path: path, uids: uids, now: now}
	f, err := m.open()
	if err != nil {
		return nil, err
	}
	m.file = f
	m.refresh()
	return m, nil
}

// parseStatus finds, in /proc/PID/status, the PID in the process's own
// namespace and the user IDs that its files may have.
func parseStatus(status string) (inner uint64, uids []uint32) {
	for line := range strings.Lines(status) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "NSpid:":
			inner, _ = strconv.ParseUint(fields[len(fields)-1], 10, 32) // 0 if it is none
		case "Uid:":
			for _, s := range fields[1:] {
				if n, err := strconv.ParseUint(s, 10, 32); err == nil {
					uids = append(uids, uint32(n))
				}
			}
		}
	}
	return inner, uids
}

// open opens the file that is there now, if it can be trusted to be the
// process's: no link, a regular file, owned by the process's user or root.
func (m *PerfMap) open() (*os.File, error) {
	f, err := elffile.OpenRegular(m.root, m.path, false)
	if err != nil {
		return nil, fmt.Errorf("open perf map: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || sys.Uid != 0 && !slices.Contains(m.uids, sys.Uid) {
			err = ErrNotOwner
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open perf map %s: %w", m.path, err)
	}
	return f, nil
}

// Symbolize appends the frame of the code at addr.
func (m *PerfMap) Symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return dst, fmt.Errorf("symbolize %#x: perf map already closed", addr)
	}
	c, ok := m.find(addr)
	if age := m.now().Sub(m.checked); age >= hitInterval || !ok && age >= missInterval {
		m.refresh()
		c, ok = m.find(addr)
	}
	if !ok {
		return dst, nil
	}
	name, ok := m.name(c, addr)
	if !ok {
		return dst, nil
	}
	return append(dst, jitFrame(name)), nil
}

// Refresh reads on at once. Callers that know of the process's coming end use
// it to have the last names.
func (m *PerfMap) Refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.refresh()
	}
}

// Stats gives the counts so far.
func (m *PerfMap) Stats() PerfMapStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Bytes is the memory held.
func (m *PerfMap) Bytes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 16 * (cap(m.base) + cap(m.recent))
}

// Close releases the file.
func (m *PerfMap) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.base, m.recent = nil, nil
	return m.file.Close()
}

func (m *PerfMap) find(addr uint64) (code, bool) {
	for _, list := range [][]code{m.recent, m.base} {
		i := sort.Search(len(list), func(i int) bool { return list[i].start > addr }) - 1
		if i >= 0 && addr-list[i].start < uint64(list[i].size) {
			return list[i], true
		}
	}
	return code{}, false
}

// name reads the line again. If it does not cover the address any more, the
// file was written anew, and there is no telling what the code was called.
func (m *PerfMap) name(c code, addr uint64) (string, bool) {
	var buf [maxPerfMapLine]byte
	n, _ := m.file.ReadAt(buf[:], int64(c.line))
	line, _, _ := bytes.Cut(buf[:n], []byte{'\n'})
	start, size, name, ok := perfMapLine(line)
	if !ok || addr < start || addr-start >= size {
		return "", false
	}
	return string(name), true
}

// refresh reads what was added to the file, or all of it if it is another one.
func (m *PerfMap) refresh() {
	m.checked = m.now()
	if f, err := m.open(); err == nil {
		old, err1 := m.file.Stat()
		now, err2 := f.Stat()
		if err1 == nil && err2 == nil && os.SameFile(old, now) {
			_ = f.Close()
		} else {
			_ = m.file.Close()
			m.file = f
			m.reset()
		}
	}
	st, err := m.file.Stat()
	if err != nil {
		return
	}
	if m.offset > 0 && (st.Size() < m.offset || !m.tailHolds()) {
		m.reset()
	}
	if st.Size() > m.offset && m.offset < maxPerfMapBytes {
		m.read(min(st.Size(), maxPerfMapBytes))
	}
}

func (m *PerfMap) reset() {
	m.offset, m.skip, m.tail, m.base, m.recent, m.stats = 0, false, nil, nil, nil, PerfMapStats{}
}

// tailHolds says if the bytes before the offset are those that were read.
func (m *PerfMap) tailHolds() bool {
	buf := make([]byte, len(m.tail))
	n, _ := m.file.ReadAt(buf, m.offset-int64(len(buf)))
	return n == len(buf) && bytes.Equal(buf, m.tail)
}

// read takes the whole lines between offset and end.
func (m *PerfMap) read(end int64) {
	var fresh []code
	buf := make([]byte, min(end-m.offset, 256<<10))
	kept := 0
	at := m.offset
	for at+int64(kept) < end {
		want := min(int64(len(buf)-kept), end-at-int64(kept))
		n, err := m.file.ReadAt(buf[kept:kept+int(want)], at+int64(kept))
		data := buf[:kept+n]
		for {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				break
			}
			m.add(&fresh, data[:i], at)
			if len(fresh) == foldEntries {
				m.fold(fresh)
				fresh = fresh[:0]
			}
			data = data[i+1:]
			at += int64(i + 1)
		}
		if len(data) == len(buf) {
			m.skip = true
			at += int64(len(data))
			data = data[:0]
		}
		kept = copy(buf, data)
		if err != nil || n == 0 {
			break
		}
	}
	m.offset = at
	m.tail = make([]byte, min(at, 64))
	n, _ := m.file.ReadAt(m.tail, at-int64(len(m.tail)))
	m.tail = m.tail[:n]
	m.fold(fresh)
}

// fold adds new entries. Most land in recent, which is small, and base is only
// rewritten when that has grown to a fraction of it: a busy JIT would make
// every refresh cost as much as the first.
func (m *PerfMap) fold(fresh []code) {
	m.recent = flatten(m.recent, fresh)
	if len(m.recent) > len(m.base)/4 {
		m.base, m.recent = flatten(m.base, m.recent), nil
	}
}

func (m *PerfMap) add(fresh *[]code, line []byte, at int64) {
	start, size, _, ok := perfMapLine(line)
	switch {
	case m.skip || !ok || len(line) > maxPerfMapLine:
		m.skip = false
		m.stats.Bad++
	case m.stats.Entries >= maxPerfMapEntries:
		m.stats.Dropped++
	default:
		m.stats.Entries++
		*fresh = append(*fresh, code{start: start, size: uint32(size), line: uint32(at)})
	}
}

// perfMapLine splits "START SIZE NAME".
func perfMapLine(line []byte) (start, size uint64, name []byte, ok bool) {
	first, rest, ok1 := bytes.Cut(line, []byte{' '})
	second, name, ok2 := bytes.Cut(rest, []byte{' '})
	start, ok3 := hexNumber(first)
	size, ok4 := hexNumber(second)
	name = bytes.TrimSpace(name)
	if !ok1 || !ok2 || !ok3 || !ok4 || len(name) == 0 || size == 0 || size > maxPerfMapCode || start+size < start {
		return 0, 0, nil, false
	}
	return start, size, name, true
}

func hexNumber(s []byte) (uint64, bool) {
	s = bytes.TrimPrefix(s, []byte("0x"))
	if len(s) == 0 || len(s) > 16 {
		return 0, false
	}
	var n uint64
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return n, true
}

// flatten lays ranges over those of old, which is sorted and does not overlap:
// where several cover an address, the last of fresh holds. The result is like
// old, with at most two ranges for each one that went in.
func flatten(old, fresh []code) []code {
	if len(fresh) == 0 {
		return old
	}
	sorted := make([]layer, len(fresh))
	for i, c := range fresh {
		sorted[i] = layer{c, uint32(i + 1)}
	}
	slices.SortFunc(sorted, func(x, y layer) int {
		return cmp.Or(cmp.Compare(x.start, y.start), cmp.Compare(x.age, y.age))
	})
	var open layers
	out := make([]code, 0, len(old)+len(fresh))
	pos := uint64(0)
	until := func(stop uint64) {
		for len(open) > 0 && pos < stop {
			top := open[0]
			end := top.start + uint64(top.size)
			if end <= pos {
				open.pop()
				continue
			}
			end = min(end, stop)
			if n := len(out); n > 0 && out[n-1].line == top.line && out[n-1].start+uint64(out[n-1].size) == pos {
				out[n-1].size += uint32(end - pos)
			} else {
				out = append(out, code{start: pos, size: uint32(end - pos), line: top.line})
			}
			pos = end
		}
		pos = max(pos, stop)
	}
	for len(old) > 0 || len(sorted) > 0 {
		var next layer
		if len(sorted) == 0 || len(old) > 0 && old[0].start <= sorted[0].start {
			next, old = layer{old[0], 0}, old[1:]
		} else {
			next, sorted = sorted[0], sorted[1:]
		}
		until(next.start)
		open.push(next)
	}
	until(^uint64(0))
	if cap(out) > len(out)+len(out)/8 {
		out = append(make([]code, 0, len(out)), out...)
	}
	return out
}

// layer is a range while others are laid over it.
type layer struct {
	code
	age uint32 // higher is newer
}

// layers is a heap with the newest first. It is not container/heap's, whose
// interface takes an allocation for every range.
type layers []layer

func (l *layers) push(x layer) {
	h := append(*l, x)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up].age >= h[i].age {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	*l = h
}

func (l *layers) pop() {
	h := *l
	last := len(h) - 1
	h[0] = h[last]
	h = h[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && h[down+1].age > h[down].age {
			down++
		}
		if h[i].age >= h[down].age {
			break
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
	*l = h
}

// jitFrame makes a frame of a name in a perf map.
func jitFrame(name string) profiler.Frame {
	f := profiler.Frame{Kind: profiler.KindJIT}
	function, file, line, ok := v8Name(name)
	if !ok {
		f.Function = demangle.Name(name)
		return f
	}
	f.Function, f.File, f.Line = demangle.Cut(function), demangle.Cut(file), line
	f.Linkage = demangle.Cut(name)
	return f
}

// v8Name takes "KIND:TIERfunction file:line:column" apart: V8's
// JSFunction names with --perf-basic-prof (src/logging/log.cc). The tier is one
// of ~ ^ + * or missing; a function without a name is "(anonymous)".
func v8Name(name string) (function, file string, line int, ok bool) {
	kind, rest, found := strings.Cut(name, ":")
	if !found {
		return "", "", 0, false
	}
	switch kind {
	case "JS", "LazyCompile", "Function", "Script", "Eval":
	default:
		return "", "", 0, false
	}
	rest = strings.TrimLeft(rest, "~^+*'")
	rest, column, ok1 := cutLast(rest, ":")
	rest, row, ok2 := cutLast(rest, ":")
	line, err := strconv.Atoi(row)
	if _, err2 := strconv.Atoi(column); !ok1 || !ok2 || err != nil || err2 != nil || line < 0 {
		return "", "", 0, false
	}
	// Paths may have spaces, and so may "get size": a path starts at the first
	// space before what looks like one, else at the last space.
	at := -1
	for _, start := range []string{" /", " file:", " node:", " evalmachine."} {
		if i := strings.Index(rest, start); i >= 0 && (at < 0 || i < at) {
			at = i
		}
	}
	if at < 0 {
		at = strings.LastIndexByte(rest, ' ')
	}
	if at < 0 {
		return "", "", 0, false
	}
	function, file = rest[:at], rest[at+1:]
	if function == "" {
		function = "(anonymous)"
	}
	if kind == "Script" && function == "(anonymous)" {
		function = "(script)"
	}
	return function, file, line, true
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
