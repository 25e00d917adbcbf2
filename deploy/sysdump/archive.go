package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// archive gathers files, each compressed by itself: members of gzip that follow
// each other are one file to every reader. So the size is known before a file is
// taken, and the summary can be first although it is written last.
type archive struct {
	folder string
	at     time.Time
	limit  int64 // of all members together
	redact *redactor

	mu      sync.Mutex
	members []member
	size    int64
	left    []string // what was left out, and why
}

type member struct {
	name  string
	bytes int // before compression
	data  []byte
}

// summaryRoom is kept for the summary, which is written when the rest is full.
const summaryRoom = 256 << 10

// add redacts a file and takes it, if there is room.
func (a *archive) add(name string, text []byte) error {
	return a.keep(name, a.redact.text(text))
}

// keep takes a file that was redacted already.
func (a *archive) keep(name string, text []byte) error {
	data, err := a.pack(name, text)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size+int64(len(data))+summaryRoom > a.limit {
		a.left = append(a.left, fmt.Sprintf("%s (%s): the size limit", name, size(int64(len(text)))))
		return nil
	}
	a.size += int64(len(data))
	a.members = append(a.members, member{name, len(text), data})
	return nil
}

// leftOut notes what is not in the archive.
func (a *archive) leftOut(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = append(a.left, fmt.Sprintf(format, args...))
}

// pack is one file of a tar archive, without the archive's end.
func (a *archive) pack(name string, text []byte) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	head := &tar.Header{Typeflag: tar.TypeReg, Name: a.folder + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: a.at, Format: tar.FormatPAX}
	if err := t.WriteHeader(head); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	if _, err := t.Write(text); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	// Flush pads the file to whole blocks; Close would end the archive.
	if err := t.Flush(); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// write writes the summary, then all files by name, and gives the size.
func (a *archive) write(w io.Writer, summary []byte) (int64, error) {
	first, err := a.pack(summaryName, summary)
	if err != nil {
		return 0, err
	}
	slices.SortStableFunc(a.members, func(x, y member) int { return bytes.Compare([]byte(x.name), []byte(y.name)) })
	var written int64
	put := func(data []byte) error {
		n, err := w.Write(data)
		written += int64(n)
		if err != nil {
			return fmt.Errorf("write the archive: %w", err)
		}
		return nil
	}
	if err := put(first); err != nil {
		return written, err
	}
	for _, m := range a.members {
		if err := put(m.data); err != nil {
			return written, err
		}
	}
	var end bytes.Buffer
	z := gzip.NewWriter(&end)
	if err := tar.NewWriter(z).Close(); err != nil {
		return written, fmt.Errorf("end the archive: %w", err)
	}
	if err := z.Close(); err != nil {
		return written, fmt.Errorf("end the archive: %w", err)
	}
	return written, put(end.Bytes())
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
