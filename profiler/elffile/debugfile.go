package elffile

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"strings"
)

// ErrNoDebugFile says that no separate debug file was found for a file.
var ErrNoDebugFile = errors.New("no separate debug file")

const (
	debugRoot = "/usr/lib/debug"
	// maxLinkBytes bounds .gnu_debuglink and .gnu_debugaltlink: a path and an
	// ID.
	maxLinkBytes = 8 << 10
	// maxChecksumBytes bounds a debug file that must be read whole because only
	// its checksum can tell if it belongs to the executable (3 s from a fast
	// disk).
	maxChecksumBytes = 2 << 30
)

// OpenDebug opens the separate debug file of f, with the symbols and DWARF
// that were stripped from it. It looks, as gdb does, for the build ID below
// /usr/lib/debug/.build-id, then for the name in .gnu_debuglink beside the
// file, in .debug beside it, and below /usr/lib/debug: first inside root, the
// root folder of a process that runs the file ("/proc/PID/root"), then in the
// agent's own root. A candidate counts only if its build ID is the same or,
// where one of the two has none, its checksum. The caller closes it.
func (f *File) OpenDebug(root string) (*File, error) {
	link, crc, hasLink := f.debugLink()
	var names []string
	if n, ok := buildIDPath(f.buildID); ok {
		names = append(names, n)
	}
	if hasLink {
		dir := path.Dir(f.pathInRoot(root))
		names = append(names, path.Join(dir, link), path.Join(dir, ".debug", link), path.Join(debugRoot, dir, link))
		// Where /lib is a link to /usr/lib, packages use either name.
		if strings.HasPrefix(dir, "/usr/") {
			names = append(names, path.Join(debugRoot, strings.TrimPrefix(dir, "/usr"), link))
		} else {
			names = append(names, path.Join(debugRoot, "/usr", dir, link))
		}
	}
	d := firstIn(root, names, func(d *File) bool {
		if d.Machine() != f.Machine() || d.ELF.Class != f.ELF.Class {
			return false
		}
		if f.buildID != "" && d.buildID != "" {
			return f.buildID == d.buildID
		}
		return hasLink && d.checksum(crc)
	})
	if d == nil {
		return nil, fmt.Errorf("look for the debug file of %s: %w", f.path, ErrNoDebugFile)
	}
	return d, nil
}

// OpenAlt opens the file that .gnu_debugaltlink names: the DWARF that the dwz
// tool took out of several debug files of a package. f is the file with the
// DWARF; root is as for OpenDebug. It gives ErrNoSection when f has no such
// link. The caller closes it.
func (f *File) OpenAlt(root string) (*File, error) {
	data, err := f.linkData(".gnu_debugaltlink")
	if err != nil {
		return nil, err
	}
	name, id, ok := bytes.Cut(data, []byte{0})
	if !ok || len(name) == 0 || len(id) == 0 {
		return nil, fmt.Errorf("read .gnu_debugaltlink of %s: malformed", f.path)
	}
	want := hex.EncodeToString(id)
	var names []string
	if n, ok := buildIDPath(want); ok {
		names = append(names, n)
	}
	link := string(name)
	if path.IsAbs(link) {
		names = append(names, path.Clean(link))
	} else {
		// Relative to the debug file, whose own path may be the build ID's
		// link to it: then only the usual place is left to try.
		names = append(names, path.Join(path.Dir(f.pathInRoot(root)), link))
	}
	names = append(names, path.Join(debugRoot, ".dwz", path.Base(link)))
	alt := firstIn(root, names, func(a *File) bool { return a.buildID == want })
	if alt == nil {
		return nil, fmt.Errorf("look for %s, build ID %s: %w", link, want, ErrNoDebugFile)
	}
	return alt, nil
}

// firstIn opens the first of names, in root and then in the agent's own root,
// that fits.
func firstIn(root string, names []string, fits func(*File) bool) *File {
	roots := []string{root, ""}
	if root == "" || root == "/" {
		roots = roots[1:]
	}
	for _, r := range roots {
		for _, n := range names {
			d, err := OpenIn(r, n)
			if err != nil {
				continue
			}
			if fits(d) {
				return d
			}
			_ = d.Close()
		}
	}
	return nil
}

// buildIDPath is where debug packages put the file with a build ID in hex.
func buildIDPath(id string) (string, bool) {
	if len(id) < 4 {
		return "", false
	}
	if _, err := hex.DecodeString(id); err != nil {
		return "", false // Go's own build ID
	}
	return debugRoot + "/.build-id/" + id[:2] + "/" + id[2:] + ".debug", true
}

// pathInRoot is f's path as seen from the root folder root.
func (f *File) pathInRoot(root string) string {
	p := f.path
	if f.root != "" {
		return path.Join("/", p)
	}
	if root != "" && root != "/" {
		if rest, ok := strings.CutPrefix(p, strings.TrimSuffix(root, "/")+"/"); ok {
			return path.Join("/", rest)
		}
	}
	// /proc/PID/map_files/… and /proc/PID/exe are links to the real path.
	if strings.HasPrefix(p, "/proc/") {
		if target, err := os.Readlink(p); err == nil && path.IsAbs(target) {
			p = strings.TrimSuffix(target, " (deleted)")
		}
	}
	return path.Join("/", p)
}

func (f *File) linkData(section string) ([]byte, error) {
	if s := f.Section(section); s != nil && (s.Size > maxLinkBytes || s.FileSize > maxLinkBytes) {
		return nil, fmt.Errorf("%s of %s has %d bytes: %w", section, f.path, s.Size, ErrTooLarge)
	}
	return f.SectionData(section)
}

// debugLink reads .gnu_debuglink: a file name, zeros up to a multiple of four,
// the CRC-32 of the whole debug file. A name that is a path is refused.
func (f *File) debugLink() (name string, crc uint32, ok bool) {
	data, err := f.linkData(".gnu_debuglink")
	if err != nil {
		return "", 0, false
	}
	end := bytes.IndexByte(data, 0)
	at := (end + 4) &^ 3
	if end <= 0 || at+4 > len(data) {
		return "", 0, false
	}
	name = string(data[:end])
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return "", 0, false
	}
	return name, f.ELF.ByteOrder.Uint32(data[at:]), true
}

// checksum says if the whole file has the CRC-32 want.
func (f *File) checksum(want uint32) bool {
	if f.size > maxChecksumBytes {
		return false
	}
	h := crc32.NewIEEE()
	_, err := io.Copy(h, io.NewSectionReader(f.reader, 0, f.size))
	return err == nil && h.Sum32() == want
}
