package bpf

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// reader reads a ring buffer, and waits for it in Go's own poller.
// ringbuf.Reader waits in a system call of its own: the runtime believes for
// 10 ms that it may return at any moment, and its monitor looks every 20 us
// whether it has. At 97 Hz and two CPUs that was a third of the agent's time.
type reader struct {
	ring *ringbuf.Reader // never waits
	file *os.File        // the ring buffer once more, for the poller
	conn syscall.RawConn
}

// past makes ringbuf.Reader give what there is.
var past = time.Unix(1, 0)

func newReader(m *ebpf.Map) (*reader, error) {
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, err
	}
	ring.SetDeadline(past)
	r := &reader{ring: ring}
	if err := r.poll(m.FD()); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// poll hands the ring buffer to Go's poller.
func (r *reader) poll(mapFD int) error {
	fd, err := unix.FcntlInt(uintptr(mapFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate its descriptor: %w", err)
	}
	// Only what does not block is polled.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("make its descriptor non-blocking: %w", err)
	}
	r.file = os.NewFile(uintptr(fd), "ring buffer")
	if r.conn, err = r.file.SyscallConn(); err != nil {
		return err
	}
	return r.file.SetReadDeadline(time.Time{}) // os.ErrNoDeadline: it is not polled
}

func (r *reader) close() error {
	var err error
	if r.file != nil {
		err = r.file.Close()
	}
	return errors.Join(err, r.ring.Close())
}

func (r *reader) setDeadline(t time.Time) { _ = r.file.SetReadDeadline(t) } // fails where it is closed, as read does then

// read gives the next record, or waits for the kernel to say that there are
// some. The ring buffer is looked at before and after waiting: records that the
// kernel says nothing of are found at the deadline.
func (r *reader) read(rec *ringbuf.Record) error {
	var err error
	look := func(uintptr) bool {
		err = r.ring.ReadInto(rec)
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	waited := r.conn.Read(look)
	if errors.Is(waited, os.ErrDeadlineExceeded) {
		look(0)
		return err
	}
	if waited != nil {
		return waited
	}
	return err
}

// flush wakes read by a deadline that has passed. Should read set its own
// afterwards, it looks at the ring buffer once more before it waits, and finds
// what was flushed.
func (r *reader) flush() error {
	if err := r.ring.Flush(); err != nil {
		return err
	}
	return r.file.SetReadDeadline(past)
}
