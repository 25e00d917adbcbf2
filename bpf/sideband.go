package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sideband is the kernel's own record of what processes do: forks, execs,
// exits, executable mappings, as perf writes them beside its samples. Nothing
// is asked of the process, so one that is gone a moment later is known all the
// same. Costs one record per process event, and per executable mapping.
type Sideband struct {
	rings    map[int]*ring     // by CPU
	held     []ProcessEvent    // newer than the last drain's start: their elders may still be unread
	scratch  []ProcessEvent    // of Drain
	paths    map[string]string // of mappings, so that the same few are not made anew for each process
	lost     uint64
	followed time.Time // when the list of CPUs was last looked at
}

// ProcessEventKind says what happened.
type ProcessEventKind uint8

// The kinds.
const (
	EventFork ProcessEventKind = iota // Parent made PID: mappings are inherited
	EventExec                         // PID runs a new program: all mappings are gone
	EventExit                         // the last thread that perf tells of is gone
	EventMap                          // a new executable mapping
)

// ProcessEvent is one thing that happened to a process.
type ProcessEvent struct {
	Kind   ProcessEventKind
	Time   uint64 // CLOCK_MONOTONIC, ns
	PID    uint32
	Parent uint32 // EventFork
	// EventMap
	Start, End, Offset uint64
	Device, Inode      uint64
	Path               string
}

// ringBytes are the data of one CPU's ring: some 200 processes from fork to exit,
// which with its first page stays under the 516 KiB per CPU that any user may lock
// (kernel.perf_event_mlock_kb), with pages of 64 KiB too.
const ringBytes = 256 << 10

type ring struct {
	fd   int
	data []byte // one page of header, then the ring
}

// OpenSideband starts recording on every CPU that is online, and on those that
// come online later.
func OpenSideband() (*Sideband, error) {
	s := &Sideband{rings: map[int]*ring{}, paths: map[string]string{}}
	if err := s.follow(nil); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// follow opens rings on CPUs that came online, and closes those of CPUs that
// went, once it has called drain on them.
func (s *Sideband) follow(drain func(*ring)) error {
	online, err := onlineCPUs()
	if err != nil {
		return err
	}
	for cpu, r := range s.rings {
		if !online[cpu] {
			drain(r)
			if err := r.close(); err != nil {
				return err
			}
			delete(s.rings, cpu)
		}
	}
	for cpu := range online {
		if s.rings[cpu] != nil {
			continue
		}
		r, err := openRing(cpu)
		if errors.Is(err, unix.ENODEV) {
			continue // went offline meanwhile
		}
		if err != nil {
			return fmt.Errorf("record process events on CPU %d: %w", cpu, err)
		}
		s.rings[cpu] = r
		if !s.followed.IsZero() {
			s.lost++ // it has been online for a moment already
		}
	}
	s.followed = time.Now()
	return nil
}

// followEvery is how often the list of CPUs is looked at. Reading it takes the
// kernel 50 us, which each second would be a fiftieth of what an idle agent
// costs.
const followEvery = 5 * time.Second

func openRing(cpu int) (*ring, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_DUMMY,
		Size:        uint32(unix.PERF_ATTR_SIZE_VER5),
		Sample_type: unix.PERF_SAMPLE_TIME,
		Bits: unix.PerfBitMmap | unix.PerfBitMmap2 | unix.PerfBitComm | unix.PerfBitCommExec | unix.PerfBitTask |
			unix.PerfBitSampleIDAll | unix.PerfBitUseClockID | unix.PerfBitWatermark | unix.PerfBitExcludeKernel,
		Wakeup:  math.MaxInt32, // read by polling
		Clockid: unix.CLOCK_MONOTONIC,
	}
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	size := unix.Getpagesize() + ringBytes
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("map %d bytes of ring buffer: %w", size, err)
	}
	return &ring{fd: fd, data: data}, nil
}

func (r *ring) close() error { return errors.Join(unix.Munmap(r.data), unix.Close(r.fd)) }

// Close stops recording.
func (s *Sideband) Close() error {
	var errs []error
	for _, r := range s.rings {
		errs = append(errs, r.close())
	}
	s.rings = nil
	return errors.Join(errs...)
}

// Lost is how many records the kernel had no room for, and how often a CPU was
// online for a moment before its records were.
func (s *Sideband) Lost() uint64 { return s.lost }

// Drain appends everything that happened before the call, oldest first.
func (s *Sideband) Drain(dst []ProcessEvent) ([]ProcessEvent, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return dst, fmt.Errorf("read the clock: %w", err)
	}
	now := uint64(ts.Nano())
	events := append(s.scratch[:0], s.held...)
	for _, r := range s.rings {
		events = s.drainRing(r, events)
	}
	if time.Since(s.followed) > followEvery {
		if err := s.follow(func(r *ring) { events = s.drainRing(r, events) }); err != nil {
			s.held = append(s.held[:0], events...)
			return dst, err
		}
	}
	slices.SortStableFunc(events, func(a, b ProcessEvent) int {
		switch {
		case a.Time < b.Time:
			return -1
		case a.Time > b.Time:
			return 1
		}
		return 0
	})
	n := 0
	for n < len(events) && events[n].Time <= now {
		n++
	}
	dst = append(dst, events[:n]...)
	s.held, s.scratch = append(s.held[:0], events[n:]...), events
	return dst, nil
}

// Offsets in the ring's first page: struct perf_event_mmap_page.
const (
	headOffset = 1024
	tailOffset = 1032
)

func (s *Sideband) drainRing(r *ring, events []ProcessEvent) []ProcessEvent {
	page := unix.Getpagesize()
	head := atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.data[headOffset])))
	tail := *(*uint64)(unsafe.Pointer(&r.data[tailOffset]))
	data := r.data[page:]
	size := uint64(len(data))
	var wrapped []byte
	for tail < head {
		at := tail % size
		length := uint64(order.Uint16(data[at+6:])) // headers are 8-byte aligned: they never wrap
		if length < 8 || tail+length > head {
			tail = head // not what the kernel writes: give up on what is there
			break
		}
		rec := data[at:min(at+length, size)]
		if at+length > size {
			wrapped = append(append(wrapped[:0], rec...), data[:at+length-size]...)
			rec = wrapped
		}
		events = s.parse(rec, events)
		tail += length
	}
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&r.data[tailOffset])), tail)
	return events
}

// parse appends the event that rec holds, if it is one that we want. Layouts:
// include/uapi/linux/perf_event.h, enum perf_event_type; each ends in the time
// (sample_id_all).
func (s *Sideband) parse(rec []byte, events []ProcessEvent) []ProcessEvent {
	kind, misc := order.Uint32(rec), order.Uint16(rec[4:])
	if len(rec) < 16+8 {
		return events
	}
	body, e := rec[8:], ProcessEvent{Time: order.Uint64(rec[len(rec)-8:])}
	switch kind {
	case unix.PERF_RECORD_LOST:
		s.lost += order.Uint64(body[8:])
		return events
	case unix.PERF_RECORD_COMM:
		const commExec = 1 << 13 // PERF_RECORD_MISC_COMM_EXEC
		if misc&commExec == 0 {
			return events
		}
		e.Kind, e.PID = EventExec, order.Uint32(body)
	case unix.PERF_RECORD_FORK, unix.PERF_RECORD_EXIT:
		if len(body) < 24 {
			return events
		}
		pid, ppid, tid := order.Uint32(body), order.Uint32(body[4:]), order.Uint32(body[8:])
		if kind == unix.PERF_RECORD_FORK {
			if pid == ppid {
				return events // a thread
			}
			e.Kind, e.PID, e.Parent = EventFork, pid, ppid
		} else {
			if pid != tid {
				return events
			}
			e.Kind, e.PID = EventExit, pid
		}
	case unix.PERF_RECORD_MMAP2:
		if len(body) < 64+8 {
			return events
		}
		const protExec = 4
		if order.Uint32(body[56:])&protExec == 0 {
			return events
		}
		e.Kind, e.PID = EventMap, order.Uint32(body)
		e.Start = order.Uint64(body[8:])
		e.End = e.Start + order.Uint64(body[16:])
		e.Offset = order.Uint64(body[24:])
		e.Device = unix.Mkdev(order.Uint32(body[32:]), order.Uint32(body[36:]))
		e.Inode = order.Uint64(body[40:])
		name, _, _ := bytes.Cut(body[64:len(body)-8], []byte{0})
		e.Path = s.path(name)
	default:
		return events
	}
	// A process outside of our PID namespace is PID 0 (-1 once it is dead):
	// perf_event_pid_type() in kernel/events/core.c.
	if e.PID == 0 || e.PID == math.MaxUint32 {
		return events
	}
	return append(events, e)
}

// maxPaths bounds the paths that are remembered.
const maxPaths = 1024

func (s *Sideband) path(name []byte) string {
	if path, ok := s.paths[string(name)]; ok {
		return path
	}
	if len(s.paths) >= maxPaths {
		clear(s.paths)
	}
	path := string(name)
	s.paths[path] = path
	return path
}
