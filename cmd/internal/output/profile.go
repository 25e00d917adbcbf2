package output

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Endings lists the endings of all formats.
func Endings() string {
	text := ""
	for i, x := range format.Formats() {
		if i > 0 {
			text += ", "
		}
		text += x.Ending()
	}
	return text
}

// Profile is what -o names: a format and where it goes.
type Profile struct {
	format format.Format
	stdout bool
	file   *File
}

// NewProfile is the output that a name asks for: a file by its ending, folded
// stacks on standard output where it is "-", nothing where it is empty.
func NewProfile(path string) (*Profile, error) {
	if path == "" {
		return &Profile{file: &File{}}, nil
	}
	if path == "-" {
		return &Profile{format: format.Folded{}, stdout: true, file: &File{}}, nil
	}
	x, err := format.ForPath(path)
	if err != nil {
		return nil, err
	}
	file, err := NewFile(path)
	return &Profile{format: x, file: file}, err
}

// Discard takes away what was not written.
func (o *Profile) Discard() { o.file.Discard() }

// Write writes the profile.
func (o *Profile) Write(p *profiler.Profile) error {
	if o.stdout {
		w := bufio.NewWriter(os.Stdout)
		err := o.format.Write(w, p)
		if err == nil {
			err = w.Flush()
		}
		return Explain(err)
	}
	return o.file.Write(func(w io.Writer) error { return o.format.Write(w, p) })
}

// Explain explains an error of writing to standard output or error.
func Explain(err error) error {
	var path *fs.PathError
	if !errors.As(err, &path) {
		return err
	}
	return &profiler.Fault{What: "cannot write to " + path.Path, Why: path.Err, Fix: "redirect it to a place with room, or write a file with -o"}
}
