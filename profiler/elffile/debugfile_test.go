package elffile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

const secret = `
__attribute__((noinline)) static int hidden(int x) { return x * 7 + 1; }
int shown(int x) { return hidden(x) + hidden(x + 1); }
int main(int argc, char **argv) { return shown(argc); }
`

// target is a fake root folder with a stripped program in /opt/app.
type target struct {
	root    string
	program string            // in the agent's name space
	debug   string            // the debug file, outside of root
	at      map[string]uint64 // addresses of symbols
}

func newTarget(t *testing.T, flags ...string) target {
	t.Helper()
	path := compile(t, secret, append([]string{"-g", "-O1", "-rdynamic"}, flags...)...)
	g := target{root: t.TempDir(), debug: path + ".debug", at: addresses(t, path)}
	run(t, "objcopy", "--only-keep-debug", path, g.debug)
	g.program = filepath.Join(g.root, "opt/app/program")
	mkdir(t, filepath.Dir(g.program))
	run(t, "strip", "-o", g.program, path)
	return g
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (g target) put(t *testing.T, file, path string) {
	t.Helper()
	path = filepath.Join(g.root, path)
	mkdir(t, filepath.Dir(path))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// link adds .gnu_debuglink with the checksum of the debug file.
func (g target) link(t *testing.T) {
	t.Helper()
	run(t, "objcopy", "--add-gnu-debuglink="+g.debug, g.program)
}

func (g target) open(t *testing.T) *elffile.File {
	t.Helper()
	f, err := elffile.OpenIn(g.root, "/opt/app/program")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (g target) wantDebug(t *testing.T, f *elffile.File) {
	t.Helper()
	d, err := f.OpenDebug(g.root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	wantSymbol(t, f, g.at["hidden"]+1, "")
	wantSymbol(t, d, g.at["hidden"]+1, "hidden")
	wantSymbol(t, d, g.at["shown"]+1, "shown")
	if _, err := d.SectionData(".debug_info"); err != nil {
		t.Error(err)
	}
	if _, err := d.SectionData(".text"); !errors.Is(err, elffile.ErrNoSection) {
		t.Errorf("SectionData(.text) of a debug file = %v, want ErrNoSection", err)
	}
}

func (g target) wantNone(t *testing.T, f *elffile.File) {
	t.Helper()
	if d, err := f.OpenDebug(g.root); !errors.Is(err, elffile.ErrNoDebugFile) {
		t.Errorf("OpenDebug = %v, %v, want ErrNoDebugFile", d, err)
	}
}

func buildIDName(id string) string {
	return "/usr/lib/debug/.build-id/" + id[:2] + "/" + id[2:] + ".debug"
}

func TestOpenDebug(t *testing.T) {
	t.Run("by build ID", func(t *testing.T) {
		g := newTarget(t)
		f := g.open(t)
		g.wantNone(t, f)
		g.put(t, g.debug, buildIDName(f.BuildID()))
		g.wantDebug(t, f)
	})
	t.Run("by build ID through an absolute link inside the root", func(t *testing.T) {
		g := newTarget(t)
		f := g.open(t)
		g.put(t, g.debug, "/srv/real.debug")
		name := filepath.Join(g.root, buildIDName(f.BuildID()))
		mkdir(t, filepath.Dir(name))
		if err := os.Symlink("/srv/real.debug", name); err != nil {
			t.Fatal(err)
		}
		g.wantDebug(t, f)
	})
	t.Run("a wrong build ID is refused", func(t *testing.T) {
		g, other := newTarget(t), newTarget(t, "-O2")
		f := g.open(t)
		g.put(t, other.debug, buildIDName(f.BuildID()))
		g.wantNone(t, f)
	})
	for _, place := range []string{"/opt/app/", "/opt/app/.debug/", "/usr/lib/debug/opt/app/"} {
		t.Run("by debug link in "+place, func(t *testing.T) {
			g := newTarget(t)
			g.link(t)
			g.put(t, g.debug, place+filepath.Base(g.debug))
			g.wantDebug(t, g.open(t))
		})
		t.Run("by checksum, without build ID, in "+place, func(t *testing.T) {
			g := newTarget(t, "-Wl,--build-id=none")
			g.link(t)
			g.put(t, g.debug, place+filepath.Base(g.debug))
			f := g.open(t)
			if f.BuildID() != "" {
				t.Fatalf("build ID %s", f.BuildID())
			}
			g.wantDebug(t, f)
			g.put(t, newTarget(t, "-O2", "-Wl,--build-id=none").debug, place+filepath.Base(g.debug))
			g.wantNone(t, f)
		})
	}
	t.Run("the program was opened by a path through the root", func(t *testing.T) {
		g := newTarget(t)
		g.link(t)
		g.put(t, g.debug, "/opt/app/.debug/"+filepath.Base(g.debug))
		g.wantDebug(t, open(t, g.program))
	})
}

// TestDebugLinkStaysInRoot gives the target links that would lead to the debug
// file outside of its root if they were followed there.
func TestDebugLinkStaysInRoot(t *testing.T) {
	t.Run("a path as name", func(t *testing.T) {
		g := newTarget(t)
		g.link(t)
		data, err := os.ReadFile(g.program)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(g.debug)
		evil := "../" + name[:len(name)-3]
		g.put(t, g.debug, "/opt/"+name[:len(name)-3])
		data = []byte(strings.Replace(string(data), name+"\x00", evil+"\x00", 1))
		if err := os.WriteFile(g.program, data, 0o644); err != nil {
			t.Fatal(err)
		}
		g.wantNone(t, g.open(t))
	})
	for name, dest := range map[string]string{"absolute": "", "relative": strings.Repeat("../", 20)} {
		t.Run("a link out of the root, "+name, func(t *testing.T) {
			g := newTarget(t)
			f := g.open(t)
			link := filepath.Join(g.root, buildIDName(f.BuildID()))
			mkdir(t, filepath.Dir(link))
			if err := os.Symlink(dest+g.debug, link); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(g.debug); err != nil {
				t.Fatal(err)
			}
			g.wantNone(t, f)
		})
	}
}

func TestOpenAlt(t *testing.T) {
	alt := compile(t, secret, "-g")
	altFile := open(t, alt)
	id := make([]byte, 0, 20)
	for i := 0; i+1 < len(altFile.BuildID()); i += 2 {
		var b byte
		for _, c := range altFile.BuildID()[i : i+2] {
			b = b<<4 | byte(strings.IndexRune("0123456789abcdef", c))
		}
		id = append(id, b)
	}
	with := func(t *testing.T, name string) (target, *elffile.File) {
		g := newTarget(t)
		section := filepath.Join(t.TempDir(), "alt")
		if err := os.WriteFile(section, append([]byte(name+"\x00"), id...), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "objcopy", "--add-section", ".gnu_debugaltlink="+section, g.program)
		return g, g.open(t)
	}
	for link, place := range map[string]string{
		"/usr/lib/debug/.dwz/common.debug": "/usr/lib/debug/.dwz/common.debug",
		"../shared/common.debug":           "/opt/shared/common.debug",
		"../../.dwz/common.debug":          "/usr/lib/debug/.dwz/common.debug",
		"/nowhere":                         buildIDName(altFile.BuildID()),
	} {
		t.Run(link, func(t *testing.T) {
			g, f := with(t, link)
			if _, err := f.OpenAlt(g.root); !errors.Is(err, elffile.ErrNoDebugFile) {
				t.Fatalf("OpenAlt without the file = %v, want ErrNoDebugFile", err)
			}
			g.put(t, newTarget(t).debug, place)
			if _, err := f.OpenAlt(g.root); !errors.Is(err, elffile.ErrNoDebugFile) {
				t.Fatalf("OpenAlt with another build ID = %v, want ErrNoDebugFile", err)
			}
			g.put(t, alt, place)
			a, err := f.OpenAlt(g.root)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.Close() }()
			if a.BuildID() != altFile.BuildID() {
				t.Errorf("build ID %s, want %s", a.BuildID(), altFile.BuildID())
			}
		})
	}
	if _, err := newTarget(t).open(t).OpenAlt(""); !errors.Is(err, elffile.ErrNoSection) {
		t.Errorf("OpenAlt without a link = %v, want ErrNoSection", err)
	}
}

// addMiniDebug does what Fedora's find-debuginfo does: the functions that are
// not in .dynsym, in a file without contents, compressed with xz.
func addMiniDebug(t *testing.T, g target, xz ...string) {
	t.Helper()
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	if err := os.WriteFile(keep, []byte("hidden\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mini := filepath.Join(dir, "mini")
	run(t, "objcopy", "-S", "--remove-section=.comment", "--keep-symbols="+keep, g.debug, mini)
	run(t, "xz", append(xz, mini)...)
	run(t, "objcopy", "--add-section", ".gnu_debugdata="+mini+".xz", g.program)
}

func TestMiniDebugInfo(t *testing.T) {
	for name, flags := range map[string][]string{
		"default": nil, "CRC-32": {"--check=crc32"}, "SHA-256": {"--check=sha256"}, "no check": {"--check=none"},
		"blocks": {"--block-size=512"}, "threads": {"-T2", "--block-size=1KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newTarget(t)
			addMiniDebug(t, g, flags...)
			f := g.open(t)
			wantSymbol(t, f, g.at["hidden"]+1, "hidden")
			wantSymbol(t, f, g.at["shown"]+1, "shown")
			if n := f.Bytes(); n > 32<<10 {
				t.Errorf("%d bytes held, want no more than the headers and names", n)
			}
		})
	}
	t.Run("a dictionary of 1.5 GiB is refused", func(t *testing.T) {
		g := newTarget(t)
		addMiniDebug(t, g, "--lzma2=preset=0,dict=1536MiB", "-M", "0")
		wantSymbol(t, g.open(t), g.at["hidden"]+1, "")
	})
}
