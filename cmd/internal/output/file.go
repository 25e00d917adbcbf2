// Package output is where a verb's result goes: a file that appears whole or not
// at all, in the format that its name asks for, or standard output. It knows
// nothing of how profiles are made.
package output

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kalypso-dev/kalypso/profiler"
)

// File is a file that appears whole or not at all. It is made before the
// recording, so that a place that cannot be written to is known at once, and
// without a name where the file system can: whatever ends the agent, nothing
// is left behind.
type File struct {
	name  string // as given
	path  string // what it becomes; empty for a pipe or a device
	temp  *os.File
	named string // where temp is until then; empty: nowhere
}

// NewFile makes the file that will have a name; without a name there is none,
// and nothing is written.
func NewFile(name string) (*File, error) {
	if name == "" {
		return &File{}, nil
	}
	fault := func(err error) error {
		return &profiler.Fault{What: "cannot write " + name, Why: WithoutPath(err), Fix: "give a file in a folder that exists and that you may write to"}
	}
	o := &File{name: name, path: name}
	st, err := os.Stat(name)
	switch {
	case err == nil && st.IsDir():
		return nil, fault(errors.New("it is a folder"))
	case err == nil && !st.Mode().IsRegular(): // a pipe, /dev/null
		o.path = ""
		if o.temp, err = os.OpenFile(name, os.O_WRONLY, 0); err != nil {
			return nil, fault(err)
		}
		return o, nil
	case err == nil: // what a link leads to is replaced, not the link
		if o.path, err = filepath.EvalSymlinks(name); err != nil {
			return nil, fault(err)
		}
	}
	dir := filepath.Dir(o.path)
	switch o.temp, err = nameless(dir, name); {
	case err != nil:
		return nil, fault(err)
	case o.temp != nil:
		return o, nil
	}
	if o.temp, err = os.CreateTemp(dir, ".kalypso-*"); err != nil {
		return nil, fault(err)
	}
	o.named = o.temp.Name()
	if err := o.temp.Chmod(0o644); err != nil {
		o.Discard()
		return nil, fault(err)
	}
	return o, nil
}

// WithoutPath is the error without the path that it is about.
func WithoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// Write writes the file with fn and gives it its name.
func (o *File) Write(fn func(io.Writer) error) error {
	if o.temp == nil {
		return nil
	}
	defer o.Discard()
	w := bufio.NewWriterSize(o.temp, 1<<16)
	err := fn(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil && o.path != "" {
		err = o.publish()
	}
	if err == nil {
		err = o.temp.Close()
	}
	if err != nil {
		return &profiler.Fault{What: "cannot write " + o.name, Why: WithoutPath(err), Fix: "free some space there, or write elsewhere"}
	}
	o.temp, o.named = nil, ""
	return nil
}

// publish gives the written file its name, in place of a file that has it.
func (o *File) publish() error {
	if o.named == "" {
		// A link cannot replace a file, a rename can.
		named := filepath.Join(filepath.Dir(o.path), fmt.Sprintf(".kalypso-%d-%d", os.Getpid(), o.temp.Fd()))
		if err := link(o.temp, named); err != nil {
			return err
		}
		o.named = named
	}
	if err := os.Rename(o.named, o.path); err != nil {
		return err
	}
	o.named = ""
	return nil
}

// Discard takes away what was not written to the end.
func (o *File) Discard() {
	if o == nil || o.temp == nil {
		return
	}
	_ = o.temp.Close()
	if o.named != "" {
		_ = os.Remove(o.named)
	}
	o.temp = nil
}
