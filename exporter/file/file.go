// Package file keeps profiles as files: each window becomes one pprof file in a
// folder, with all workloads in it. The folder is bounded: the oldest files
// make room. It owns the files that are named as it names them, and touches no
// others; what is in a file is package format's.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Defaults of Config. A window of 10,000 samples is a file of about 130 kB: a
// day of windows of 15 seconds fits.
const (
	DefaultMaxBytes = 1 << 30
	DefaultMaxFiles = 10_000
)

// A file is named by the time when its window ended, in UTC, so that names sort
// by time: kalypso-20261122T203115.000000Z.pb.gz. Windows that end in the same
// millisecond are two.
const (
	prefix     = "kalypso-"
	timeLayout = "20060102T150405.000000Z"
	tempEnding = ".tmp"
)

var ending = format.Pprof{}.Ending()

func fileName(t time.Time) string { return prefix + t.UTC().Format(timeLayout) + ending }

// ours says whether the folder made a file of this name.
func ours(name string) bool {
	t, err := time.Parse(prefix+timeLayout+ending, name)
	return err == nil && fileName(t) == name
}

// Encoder makes one pprof file of all profiles of a window. Its samples are
// labelled with the names of their services; format.ReadProfiles gives the
// profiles back, with all that is known of their workloads.
type Encoder struct{}

// Encode gives one request, or none where there are no samples.
func (Encoder) Encode(profiles []*profiler.Profile) (requests []*exporter.Request, dropped uint64, err error) {
	r := &exporter.Request{Profiles: len(profiles)}
	for _, p := range profiles {
		for i := range p.Samples {
			r.Samples += p.Samples[i].Count
		}
		if end := p.Start.Add(p.Duration); r.Time.IsZero() || end.Before(r.Time) {
			r.Time = end
		}
	}
	if r.Samples == 0 {
		return nil, 0, nil
	}
	var file bytes.Buffer
	if err := format.WriteProfiles(&file, profiles); err != nil {
		return nil, r.Samples, fmt.Errorf("encode a window: %w", err)
	}
	r.Body = file.Bytes()
	return []*exporter.Request{r}, 0, nil
}

// Config says where the files go and how many there may be.
type Config struct {
	Dir      string // made where it is missing
	MaxBytes int64  // of all files
	MaxFiles int
}

// Folder is where the files are. It is the Sender of what Encoder makes.
type Folder struct {
	cfg Config

	mu    sync.Mutex
	files []kept // oldest first
	bytes int64
}

type kept struct {
	name  string
	bytes int64
}

// Open makes the folder and tries to write to it. The error is a Fault where
// that cannot be done.
func Open(cfg Config) (*Folder, error) {
	if cfg.MaxBytes < 0 || cfg.MaxFiles < 0 {
		return nil, errors.New("a negative limit of the folder of profiles")
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.MaxFiles == 0 {
		cfg.MaxFiles = DefaultMaxFiles
	}
	f := &Folder{cfg: cfg}
	err := errors.New("no folder is given")
	if cfg.Dir != "" {
		err = errors.Join(f.try(), f.list())
	}
	if err != nil {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("cannot write profiles to the folder %q", cfg.Dir),
			Why:  reason(err),
			Fix:  "--export file:DIR takes a folder that the agent may make or write to",
		}
	}
	f.makeRoom(0, 0)
	return f, nil
}

// reason is the error without the path that it is about.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// try writes a file and removes it.
func (f *Folder) try() error {
	if err := os.MkdirAll(f.cfg.Dir, 0o750); err != nil {
		return err
	}
	t, err := os.CreateTemp(f.cfg.Dir, prefix+"*"+tempEnding)
	if err != nil {
		return err
	}
	return errors.Join(t.Close(), os.Remove(t.Name()))
}

// list finds the files of earlier runs. What an agent that was killed did not
// finish is removed.
func (f *Folder) list() error {
	entries, err := os.ReadDir(f.cfg.Dir) // sorted by name, and so by time
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() {
			continue
		}
		if unfinished, ok := strings.CutSuffix(name, tempEnding); ok && ours(unfinished) {
			_ = os.Remove(filepath.Join(f.cfg.Dir, name))
		}
		if info, err := e.Info(); err == nil && ours(name) {
			f.files = append(f.files, kept{name, info.Size()})
			f.bytes += info.Size()
		}
	}
	return nil
}

// Send writes a file. One that is there for the same time is replaced: a
// request that is sent twice is one file.
func (f *Folder) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return exporter.Receipt{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	size := int64(len(r.Body))
	if size > f.cfg.MaxBytes {
		return exporter.Receipt{}, &exporter.RefusedError{
			Err: fmt.Errorf("a profile of %d bytes in a folder for %d", size, f.cfg.MaxBytes),
		}
	}
	name := fileName(r.Time)
	f.forget(name)
	f.makeRoom(1, size)
	if err := f.write(name, r.Body); err != nil {
		return exporter.Receipt{}, fmt.Errorf("write a profile: %w", err)
	}
	f.files = append(f.files, kept{name, size})
	f.bytes += size
	slices.SortFunc(f.files, func(a, b kept) int { return strings.Compare(a.name, b.name) })
	return exporter.Receipt{}, nil
}

// Close does nothing: no file stays open.
func (f *Folder) Close() error { return nil }

// write makes a file that is there whole or not at all.
func (f *Folder) write(name string, data []byte) error {
	path := filepath.Join(f.cfg.Dir, name)
	temp := path + tempEnding
	if err := os.MkdirAll(f.cfg.Dir, 0o750); err != nil {
		return err
	}
	_ = os.Remove(temp) // of an earlier try
	t, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	_, err = t.Write(data)
	if err == nil {
		// The spool lets go of its copy now.
		err = t.Sync()
	}
	err = errors.Join(err, t.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

// makeRoom removes the oldest files until there is room for some more.
func (f *Folder) makeRoom(files int, bytes int64) {
	for len(f.files) > 0 && (len(f.files)+files > f.cfg.MaxFiles || f.bytes+bytes > f.cfg.MaxBytes) {
		// One that cannot be removed is counted again at the next start.
		_ = os.Remove(filepath.Join(f.cfg.Dir, f.files[0].name))
		f.bytes -= f.files[0].bytes
		f.files = f.files[1:]
	}
}

// forget takes a file that is about to be replaced out of the account.
func (f *Folder) forget(name string) {
	i := slices.IndexFunc(f.files, func(k kept) bool { return k.name == name })
	if i >= 0 {
		f.bytes -= f.files[i].bytes
		f.files = slices.Delete(f.files, i, i+1)
	}
}
