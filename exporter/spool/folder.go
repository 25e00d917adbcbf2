package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Names in the folder. A request's file is its sequence number, in as many
// digits for all, so that names sort as requests came.
const (
	ending      = ".spool"
	tempEnding  = ".tmp"
	digits      = 16
	rejectedDir = "rejected"
)

// maxSequence leaves as many numbers above itself as below 10^15: a file named
// with the highest number there is does not leave the next one without a name.
// Numbers begin at the microseconds since 1970, which reach it in 2255.
const maxSequence = 9_000_000_000_000_000

// block is what file systems give to files: a small file takes as much.
const block = 4096

// onDisk is the room that a file of n bytes takes.
func onDisk(n int64) int64 { return (n + block - 1) / block * block }

// errHeld says that another agent uses the folder.
var errHeld = errors.New("another kalypso-agent uses it")

// fileName is the name of the file of a sequence number.
func fileName(sequence uint64) string { return fmt.Sprintf("%0*d%s", digits, sequence, ending) }

// parseName gives the sequence number of a file by its name, and what the name
// ends in.
func parseName(name string) (sequence uint64, end string, ok bool) {
	if len(name) < digits {
		return 0, "", false
	}
	number, end := name[:digits], name[digits:]
	if end != ending && end != tempEnding || strings.Trim(number, "0123456789") != "" {
		return 0, "", false
	}
	sequence, err := strconv.ParseUint(number, 10, 64)
	return sequence, end, err == nil && sequence <= maxSequence
}

// file is a file on the disk that no request waits in.
type file struct {
	name  string
	bytes int64 // the room that it takes
}

// folder is the spool's folder: the files of requests that wait, and below it
// those that were set aside. It is locked as long as it is open. Methods are
// not safe for concurrent use.
type folder struct {
	dir      string
	maxAside int64    // bytes that files set aside may take
	root     *os.Root // nil: not open. Nothing outside the folder can be reached by it
	handle   *os.File // the folder itself: carries the lock
	aside    []file   // oldest first
	dropped  uint64   // files that were set aside, or were to be, and are gone for want of room
}

// open makes the folder where it is missing, and locks it.
func (f *folder) open() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make the spool's folder: %w", err)
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return fmt.Errorf("open the spool's folder: %w", err)
	}
	handle, err := root.Open(".")
	if err != nil {
		root.Close()
		return fmt.Errorf("open the spool's folder: %w", err)
	}
	f.root, f.handle = root, handle
	// The folder is its own lock file: that takes no room on a full disk and
	// works on one that is read-only. The kernel drops the lock with the
	// process, however that ends.
	switch err := unix.Flock(int(handle.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		f.close()
		return fmt.Errorf("lock %s: %w", f.dir, errHeld)
	case err != nil:
		f.close()
		return fmt.Errorf("lock %s: %w", f.dir, err)
	}
	f.listAside()
	return nil
}

// close gives the lock back.
func (f *folder) close() {
	if f.root == nil {
		return
	}
	f.handle.Close()
	f.root.Close()
	f.root, f.handle, f.aside = nil, nil, nil
}

// ready opens the folder again where it is not open, or where its name stands
// for another folder than when it was opened: it was removed, replaced, or
// another file system was mounted on it.
func (f *folder) ready() (opened bool, err error) {
	if f.root != nil {
		now, err := os.Stat(f.dir)
		if err == nil {
			var was os.FileInfo
			if was, err = f.handle.Stat(); err == nil && os.SameFile(now, was) {
				return false, nil
			}
		}
		f.close()
	}
	if err := f.open(); err != nil {
		return false, err
	}
	return true, nil
}

// faultOf is what a folder that cannot be used means to the person who chose
// it, and nil where that may pass: the agent goes on without it.
func faultOf(dir string, err error) error {
	fix := "give the agent another folder with --spool.dir"
	switch {
	case errors.Is(err, errHeld):
		return &profiler.Fault{What: "cannot use the spool " + dir, Why: errHeld, Fix: "stop the other agent, or " + fix}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO),
		errors.Is(err, unix.ESTALE), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return nil
	}
	return &profiler.Fault{What: "cannot use the spool " + dir, Why: reason(err), Fix: fix + ", or let it write there"}
}

// reason is the error without the path that it is about.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// list calls each for everything in the folder, in no order.
func (f *folder) list(dir string, each func(fs.DirEntry)) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return fmt.Errorf("list the spool: %w", err)
	}
	defer d.Close()
	for {
		// Some at a time: the folder may be full of files that are not ours.
		some, err := d.ReadDir(256)
		for _, e := range some {
			each(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the spool: %w", err)
		}
	}
}

// listAside finds the files that were set aside. Where they cannot be listed
// none are known, and none count against the bound.
func (f *folder) listAside() {
	f.aside = nil
	_ = f.list(rejectedDir, func(e fs.DirEntry) {
		if _, end, ok := parseName(e.Name()); !ok || end != ending || !e.Type().IsRegular() {
			return
		}
		if info, err := e.Info(); err == nil {
			f.aside = append(f.aside, file{e.Name(), onDisk(info.Size())})
		}
	})
	slices.SortFunc(f.aside, func(a, b file) int { return strings.Compare(a.name, b.name) })
}

// write makes a file that is there whole or not at all: it gets its name when
// all of it is written. Synced, it has what it should if its name outlives a
// crash of the machine.
func (f *folder) write(name string, data []byte, sync bool) error {
	temp := strings.TrimSuffix(name, ending) + tempEnding
	err := f.writeTemp(temp, data, sync)
	if errors.Is(err, fs.ErrExist) { // left by an earlier try on a disk that would not remove it
		_ = f.root.Remove(temp)
		err = f.writeTemp(temp, data, sync)
	}
	if err == nil {
		err = f.root.Rename(temp, name)
	}
	if err != nil {
		_ = f.root.Remove(temp)
		return fmt.Errorf("write a spool file: %w", err)
	}
	return nil
}

func (f *folder) writeTemp(temp string, data []byte, sync bool) error {
	file, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil && sync {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// syncNames brings the names in the folder to the disk, where the file system
// can: fsync(2) of a folder is EINVAL where it cannot.
func (f *folder) syncNames() error {
	if err := f.handle.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync the spool's folder: %w", err)
	}
	return nil
}

// sync brings a file that was written to the disk.
func (f *folder) sync(name string) error {
	file, err := f.openFile(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("sync a spool file: %w", err)
	}
	return f.syncNames()
}

// openFile opens a file for reading. It neither waits for a writer, should the
// name have become that of a pipe, nor takes anything but a regular file.
func (f *folder) openFile(name string) (*os.File, error) {
	if f.root == nil {
		return nil, fmt.Errorf("open spool file %s: %w", name, os.ErrClosed)
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open spool file: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = corrupt("not a regular file")
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open spool file: %w", err)
	}
	return file, nil
}

// readHeader reads the header of a file, and how long the file is. The header
// is valid where the error is nil, and where the file is not as long as it
// says.
func (f *folder) readHeader(name string) (h header, size int64, err error) {
	file, err := f.openFile(name)
	if err != nil {
		return header{}, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return header{}, 0, fmt.Errorf("read spool file: %w", err)
	}
	start, err := io.ReadAll(io.LimitReader(file, maxHeader))
	if err != nil {
		return header{}, 0, fmt.Errorf("read spool file: %w", err)
	}
	h, err = parseHeader(start)
	return h, info.Size(), err
}

// read reads a file that is to be size bytes long.
func (f *folder) read(name string, size int64) ([]byte, error) {
	file, err := f.openFile(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := make([]byte, size)
	switch _, err := io.ReadFull(file, data); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, corrupt("shorter than its header says")
	case err != nil:
		return nil, fmt.Errorf("read spool file: %w", err)
	}
	return data, nil
}

// remove removes a file. One that is gone is no error.
func (f *folder) remove(name string) error {
	if f.root == nil {
		return fmt.Errorf("remove spool file %s: %w", name, os.ErrClosed)
	}
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove spool file: %w", err)
	}
	return nil
}

// setAside moves a file to where files wait for a person to look at them. The
// oldest there make room; a file that is larger than all the room is removed.
func (f *folder) setAside(name string, size int64) error {
	room := onDisk(size)
	if room > f.maxAside {
		f.dropped++
		return f.remove(name)
	}
	for f.asideBytes()+room > f.maxAside && f.dropAside() {
	}
	if f.root == nil {
		return fmt.Errorf("set aside spool file %s: %w", name, os.ErrClosed)
	}
	if err := f.root.Mkdir(rejectedDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("set aside spool file: %w", err)
	}
	if err := f.root.Rename(name, path.Join(rejectedDir, name)); err != nil {
		return fmt.Errorf("set aside spool file: %w", err)
	}
	f.aside = append(f.aside, file{name, room})
	return nil
}

// dropAside removes the oldest file that was set aside. It says whether there
// was one.
func (f *folder) dropAside() bool {
	if len(f.aside) == 0 {
		return false
	}
	// One that stays on the disk is found again at the next start.
	_ = f.remove(path.Join(rejectedDir, f.aside[0].name))
	f.aside = f.aside[1:]
	f.dropped++
	return true
}

func (f *folder) asideBytes() int64 {
	var n int64
	for i := range f.aside {
		n += f.aside[i].bytes
	}
	return n
}
