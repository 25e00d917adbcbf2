package symbolize

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/demangle"
)

// ErrKernelHidden says that /proc/kallsyms shows addresses of zero only.
var ErrKernelHidden = errors.New("the kernel hides its addresses (kernel.kptr_restrict) from processes without CAP_SYSLOG")

const (
	// maxKernelBytes bounds what is read of /proc/kallsyms. A distribution's
	// kernel with its modules has 10 MB of it, two thirds text symbols.
	maxKernelBytes = 64 << 20
	// maxKernelFunction is how far behind a symbol an address still belongs to
	// it where no other follows: at the end of a module or a BPF program.
	maxKernelFunction = 256 << 10

	// Reading kallsyms takes some 100 ms of CPU, nearly all of it the kernel's.
	// So /proc/modules is looked at this often at most,
	modulesInterval = 5 * time.Second
	// and an address without a name makes kallsyms be read again after this
	// time (a BPF program was loaded), which doubles as long as that finds
	// nothing new.
	reloadInterval    = 30 * time.Second
	maxReloadInterval = time.Hour
)

// Kernel names the kernel's code: its own, its modules' and BPF programs'. Its
// methods may be called from several goroutines.
type Kernel struct {
	symbols string // /proc/kallsyms
	modules string // /proc/modules
	now     func() time.Time
	table   atomic.Pointer[kernelTable]

	mu       sync.Mutex // held while reading again
	loaded   time.Time
	checked  time.Time
	interval time.Duration
	seed     maphash.Seed
	modHash  uint64 // of modules
	symHash  uint64 // of the table's addresses and names
}

// LoadKernel reads /proc/kallsyms. The error wraps ErrKernelHidden where the
// kernel shows no addresses.
func LoadKernel() (*Kernel, error) {
	return loadKernel("/proc/kallsyms", "/proc/modules", time.Now)
}

func loadKernel(symbols, modules string, now func() time.Time) (*Kernel, error) {
	k := &Kernel{symbols: symbols, modules: modules, now: now, interval: reloadInterval, seed: maphash.MakeSeed()}
	t, err := k.read()
	if err != nil {
		return nil, err
	}
	k.loaded, k.checked = now(), now()
	k.modHash, k.symHash = k.hashModules(), t.hash(k.seed)
	k.table.Store(t)
	return k, nil
}

// Lookup names the function at addr, with the compiler's suffixes cut off. The
// module is "[name]" as in kallsyms ("[bpf]" for BPF programs) and empty for
// the kernel itself. offset is addr's distance from the function's start.
//
// Of several names at one address it prefers, in this order: one the
// compiler did not make up, a global one, the fewest leading underscores, the
// shortest, the first by spelling.
func (k *Kernel) Lookup(addr uint64) (name, module string, offset uint64, ok bool) {
	name, module, offset, ok = k.table.Load().find(addr)
	// Programs and modules come and go: what is named after one may be stale.
	if (!ok || module != "") && k.refresh(!ok || module == "[bpf]") {
		name, module, offset, ok = k.table.Load().find(addr)
	}
	if ok {
		name = demangle.Name(name)
	}
	return name, module, offset, ok
}

// Bytes is the memory held.
func (k *Kernel) Bytes() int {
	t := k.table.Load()
	return 4*cap(t.offs) + 4*cap(t.names) + cap(t.blob) + 16*cap(t.segments)
}

// refresh reads the symbols again when modules changed, or, with unknown set,
// when they may have; it says if they did.
func (k *Kernel) refresh(unknown bool) bool {
	if !k.mu.TryLock() {
		return false // somebody else is at it
	}
	defer k.mu.Unlock()
	now := k.now()
	due := unknown && now.Sub(k.loaded) >= k.interval
	if now.Sub(k.checked) >= modulesInterval {
		k.checked = now
		if h := k.hashModules(); h != k.modHash {
			k.modHash, due = h, true
		}
	}
	if !due {
		return false
	}
	k.loaded = now
	t, err := k.read()
	if err != nil {
		return false // what is known stays
	}
	if h := t.hash(k.seed); h != k.symHash {
		k.symHash, k.interval = h, reloadInterval
		k.table.Store(t)
		return true
	}
	k.interval = min(2*k.interval, maxReloadInterval)
	return false
}

// hashModules hashes the names and addresses in /proc/modules. Reference
// counts and states, which change all the time, are left out. A kernel
// without modules has no such file: that is a constant, too.
func (k *Kernel) hashModules() uint64 {
	data, err := os.ReadFile(k.modules)
	if err != nil {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(k.seed)
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) >= 6 { // name size refcount users state address
			_, _ = h.Write(fields[0])
			_, _ = h.Write(fields[5])
		}
	}
	return h.Sum64()
}

func (k *Kernel) read() (*kernelTable, error) {
	f, err := os.Open(k.symbols)
	if err != nil {
		return nil, &profiler.Fault{What: "kernel functions cannot be named", Why: err, Fix: "mount /proc, and use a kernel with CONFIG_KALLSYMS"}
	}
	defer func() { _ = f.Close() }()
	t, err := parseKallsyms(io.LimitReader(f, maxKernelBytes))
	switch {
	case errors.Is(err, ErrKernelHidden):
		return nil, &profiler.Fault{
			What: "kernel functions cannot be named", Why: err,
			Fix: "run as root, give the agent CAP_SYSLOG, or: sysctl -w kernel.kptr_restrict=0",
		}
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", k.symbols, err)
	}
	return t, nil
}

// kernelTable is the text symbols, sorted by address. Names lie in one blob
// as kallsyms has them: "name\n" or "name\t[module]\n".
type kernelTable struct {
	segments []segment
	offs     []uint32 // from the segment's base
	names    []uint32 // into blob; noName where code ends
	blob     []byte
}

// segment is a run of addresses within 4 GiB of each other: the kernel, its
// modules, and on some machines BPF programs are further apart.
type segment struct {
	base  uint64
	first int // index of its first symbol
}

const noName = math.MaxUint32

func (t *kernelTable) find(addr uint64) (name, module string, offset uint64, ok bool) {
	s := sort.Search(len(t.segments), func(i int) bool { return t.segments[i].base > addr }) - 1
	if s < 0 {
		return "", "", 0, false
	}
	low, high := t.segments[s].first, len(t.offs)
	if s+1 < len(t.segments) {
		high = t.segments[s+1].first
	}
	rel := addr - t.segments[s].base
	i := low + sort.Search(high-low, func(i int) bool { return uint64(t.offs[low+i]) > rel }) - 1
	if i < low || t.names[i] == noName {
		return "", "", 0, false
	}
	offset = rel - uint64(t.offs[i])
	if offset >= maxKernelFunction {
		return "", "", 0, false
	}
	entry := t.blob[t.names[i]:]
	entry = entry[:max(bytes.IndexByte(entry, '\n'), 0)]
	n, mod, _ := bytes.Cut(entry, []byte{'\t'})
	return string(n), string(mod), offset, true
}

func (t *kernelTable) hash(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.Write(t.blob)
	for _, s := range t.segments {
		maphash.WriteComparable(&h, s)
	}
	for _, o := range t.offs {
		_, _ = h.Write([]byte{byte(o), byte(o >> 8), byte(o >> 16), byte(o >> 24)})
	}
	return h.Sum64()
}

// kernelSymbol is a symbol while the table is built.
type kernelSymbol struct {
	addr  uint64
	name  uint32
	score uint32 // see score; 0 for the end of code
}

// parseKallsyms reads lines of "address type name[\t[module]]". Lines of
// another form are skipped.
func parseKallsyms(r io.Reader) (*kernelTable, error) {
	t := &kernelTable{blob: make([]byte, 0, 3<<20)}
	symbols := make([]kernelSymbol, 0, 96<<10)
	text, sorted, zero := false, true, true
	buf := make([]byte, 256<<10)
	kept := 0
	for {
		n, err := r.Read(buf[kept:])
		data := buf[:kept+n]
		if err != nil && err != io.EOF {
			return nil, err
		}
		for {
			end := bytes.IndexByte(data, '\n')
			if end < 0 {
				break
			}
			line := data[:end+1]
			data = data[end+1:]
			addr, kind, name, ok := kallsymsLine(line)
			if !ok {
				continue
			}
			zero = zero && addr == 0
			isText := kind|0x20 == 't' || kind|0x20 == 'w'
			switch {
			case isText && generated(name):
				continue // where it is the only name, the address is padding
			case isText:
			case text:
				// Data begins: what lies behind is no code.
			default:
				continue
			}
			if len(symbols) > 0 && addr < symbols[len(symbols)-1].addr {
				sorted = false
			}
			s := kernelSymbol{addr: addr, name: noName}
			if isText {
				s.name, s.score = uint32(len(t.blob)), score(kind, name)
				t.blob = append(t.blob, name...)
			}
			symbols = append(symbols, s)
			text = isText
		}
		kept = copy(buf, data)
		if kept == len(buf) {
			kept = 0 // a line of 256 KiB is none
		}
		if err == io.EOF {
			break
		}
	}
	if zero {
		return nil, ErrKernelHidden
	}
	if !sorted {
		slices.SortStableFunc(symbols, func(a, b kernelSymbol) int { return cmp.Compare(a.addr, b.addr) })
	}
	t.build(symbols)
	return t, nil
}

// build keeps one symbol of each address. The names of the others are left
// in the blob: there are few.
func (t *kernelTable) build(symbols []kernelSymbol) {
	t.offs = make([]uint32, 0, len(symbols))
	t.names = make([]uint32, 0, len(symbols))
	for i := 0; i < len(symbols); {
		win := symbols[i]
		addr := win.addr
		for i++; i < len(symbols) && symbols[i].addr == addr; i++ {
			s := symbols[i]
			if c := cmp.Compare(s.score, win.score); c > 0 || c == 0 && s.score > 0 && bytes.Compare(t.line(s.name), t.line(win.name)) < 0 {
				win = s
			}
		}
		if n := len(t.segments); n == 0 || addr-t.segments[n-1].base > math.MaxUint32 {
			t.segments = append(t.segments, segment{base: addr, first: len(t.offs)})
		}
		t.offs = append(t.offs, uint32(addr-t.segments[len(t.segments)-1].base))
		t.names = append(t.names, win.name)
	}
	t.blob = append(make([]byte, 0, len(t.blob)), t.blob...)
	t.offs = append(make([]uint32, 0, len(t.offs)), t.offs...)
	t.names = append(make([]uint32, 0, len(t.names)), t.names...)
}

func (t *kernelTable) line(name uint32) []byte {
	entry := t.blob[name:]
	return entry[:bytes.IndexByte(entry, '\n')]
}

// kallsymsLine splits a line; name is the rest of it with its module and \n.
func kallsymsLine(line []byte) (addr uint64, kind byte, name []byte, ok bool) {
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			if i == 0 || i > 16 || i+4 >= len(line) || c != ' ' || line[i+2] != ' ' {
				return 0, 0, nil, false
			}
			return addr, line[i+1], line[i+3:], true
		}
		addr = addr<<4 | uint64(c)
	}
	return 0, 0, nil, false
}

// generated says if a symbol is the compiler's own: the padding before a
// function (-fpatchable-function-entry, kCFI) or a local label.
func generated(name []byte) bool {
	if len(name) < 3 || name[0] != '_' && name[0] != '.' && name[0] != '$' {
		return false
	}
	s := string(name[:min(len(name), 8)])
	return strings.HasPrefix(s, "__pfx_") || strings.HasPrefix(s, "__cfi_") || strings.HasPrefix(s, ".L") || s[0] == '$'
}

// score rates a name among others at its address; more is better. It is
// above 0 and leaves ties to the spelling.
func score(kind byte, name []byte) uint32 {
	if i := bytes.IndexAny(name, "\t\n"); i >= 0 {
		name = name[:i]
	}
	low := len(name) - len(bytes.TrimLeft(name, "_"))
	s := uint32(1)
	s += uint32(1023 - min(len(name), 1023))
	s += uint32(31-min(low, 31)) << 10
	if kind < 'a' {
		s += 1 << 15
	}
	return s
}
