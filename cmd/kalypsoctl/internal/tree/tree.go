// Package tree writes a set of files into a folder so that the folder then has
// these and none of an earlier set. Which files are its own it knows by a list
// with their digests, SHA256SUMS, which "sha256sum -c" reads as well. Files that
// are not on the list it leaves alone, and refuses to replace.
package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Sums is the name of the list.
const Sums = "SHA256SUMS"

// Files are texts by their paths, with slashes.
type Files map[string]string

// Add adds an object's text under a name made of words. Where that name is
// taken a number follows: objects of two API groups can have one kind.
func (f Files) Add(text string, folder []string, words ...string) {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
	stem := path.Join(append(slices.Clone(folder), fileName(strings.Join(words, "-")))...)
	name := stem + ".yaml"
	for n := 2; f.has(name); n++ {
		name = fmt.Sprintf("%s-%d.yaml", stem, n)
	}
	f[name] = text
}

func (f Files) has(name string) bool {
	_, ok := f[name]
	return ok
}

// fileName keeps of a name what every file system takes: names of roles have
// colons.
func fileName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, strings.ToLower(name))
}

// Write makes dir have these files.
func Write(dir string, files Files) error {
	if err := write(dir, files); err != nil {
		var fault *profiler.Fault
		if errors.As(err, &fault) {
			return err
		}
		return &profiler.Fault{What: "cannot write to " + dir, Why: err, Fix: "-d DIR names another folder"}
	}
	return nil
}

func write(dir string, files Files) error {
	old, err := earlier(dir)
	if err != nil {
		return err
	}
	var names []string
	for name := range files {
		names = append(names, name)
		if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name))); err == nil && !old[name] {
			return &profiler.Fault{What: "will not replace " + filepath.Join(dir, name), Why: errors.New("it is not in " + filepath.Join(dir, Sums)), Fix: "-d DIR names another folder"}
		}
	}
	slices.Sort(names)
	// The list first, of both: whatever ends this, nothing is left that the next
	// time is taken for somebody else's.
	var sums, both bytes.Buffer
	for _, name := range names {
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256([]byte(files[name])), name)
	}
	both.Write(sums.Bytes())
	for name := range old {
		if !files.has(name) {
			fmt.Fprintf(&both, "%x  %s\n", sha256.Sum256(nil), name)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, Sums), both.Bytes(), 0o644); err != nil {
		return err
	}
	for _, name := range names {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(files[name]), 0o644); err != nil {
			return err
		}
	}
	for name := range old {
		if !files.has(name) {
			if err := remove(dir, name); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, Sums), sums.Bytes(), 0o644)
}

// remove deletes a file of an earlier set, and the folders that it leaves empty.
func remove(dir, name string) error {
	err := os.Remove(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		if os.Remove(filepath.Join(dir, filepath.FromSlash(parent))) != nil {
			return nil // not empty
		}
	}
	return nil
}

// earlier are the files of the earlier set. A name that leaves the folder is
// nobody's honest list.
func earlier(dir string) (map[string]bool, error) {
	list := filepath.Join(dir, Sums)
	data, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	old := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		_, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || !filepath.IsLocal(filepath.FromSlash(name)) {
			return nil, &profiler.Fault{What: list + " is not a list that kalypsoctl wrote", Fix: "-d DIR names another folder"}
		}
		old[name] = true
	}
	return old, nil
}
