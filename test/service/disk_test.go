package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// samplesIn is the number of samples that the header of a spool file tells:
// docs/reference/spool.md. A file that is gone has none.
func samplesIn(t *testing.T, name string) (uint64, bool) {
	t.Helper()
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var header [24]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return binary.LittleEndian.Uint64(header[16:]), true
}

// cpuTime is the CPU time that a process used so far.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	// clock_getcpuclockid(3): the inverted PID above three bits, of which 2 is
	// the scheduler's time.
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// smallDisk mounts a file system of so many KiB.
func smallDisk(t *testing.T, kib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("kalypso", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=700", kib)); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill leaves so many KiB free, and gives the file that takes the rest.
func fill(t *testing.T, dir string, kib int64) string {
	t.Helper()
	name := filepath.Join(dir, "filler")
	until(t, 10*time.Second, "the disk can be filled", func() bool {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(name, make([]byte, int64(st.Bavail)*st.Bsize-kib<<10), 0o600)
		if errors.Is(err, unix.ENOSPC) && os.Remove(name) == nil {
			return false // the agent took some of it meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	})
	return name
}

// TestDiskTrouble: the backend is away, and what is to wait for it meets a disk
// that does not work. All of it waits in memory, and nothing is lost.
func TestDiskTrouble(t *testing.T) {
	require(t)
	t.Parallel()
	const broken, works = "the spool's folder does not work, requests are kept in memory", "the spool's folder works again"
	remount := func(t *testing.T, dir string, flags uintptr) {
		t.Helper()
		until(t, 10*time.Second, "the disk can be remounted", func() bool {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "") == nil // busy while a file is written
		})
	}
	for _, tt := range []struct {
		name    string
		begin   func(t *testing.T, dir string)
		end     func(t *testing.T, dir string)
		because string
	}{
		{
			name: "disk full", because: "no space left on device",
			begin: func(t *testing.T, dir string) { fill(t, dir, 8) },
			end: func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "filler")); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			},
		},
		{
			name: "disk read-only", because: "read-only file system",
			begin: func(t *testing.T, dir string) { remount(t, dir, unix.MS_RDONLY) },
			end:   func(t *testing.T, dir string) { remount(t, dir, 0) },
		},
	} {
		for _, mend := range []bool{true, false} {
			name := tt.name
			if mend {
				name += ", and mended before the backend is back"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := otlptest.Start(t, otlptest.Options{Away: true})
				disk := smallDisk(t, 256)
				a := start(t, command{endpoint: r.Endpoint(), spool: filepath.Join(disk, "spool")})
				until(t, time.Minute, "a window in the spool", func() bool { return spooled(t, filepath.Join(a.spool, "otlp")).files > 0 })
				tt.begin(t, disk)
				if line := string(a.log.wait(broken, time.Minute)); !strings.Contains(line, tt.because) {
					t.Errorf("the log does not say %q: %s", tt.because, line)
				}
				time.Sleep(2 * time.Second)
				if mend {
					tt.end(t, disk)
					a.log.wait(works, 20*time.Second)
				}
				s := &scene{t, r, a, "grpc"}
				s.back(r.Listen)
				n := a.stop()
				if n.Undelivered() > 0 || n.OTLP.Waiting > 0 || n.OTLP.Refused > 0 {
					t.Errorf("%+v", n)
				}
				account(t, r, n)
				tt.end(t, disk)
			})
		}
	}
}

// TestDiskFullAtTheEnd: what neither the backend nor the disk takes is lost
// when the agent ends, and it says how much.
func TestDiskFullAtTheEnd(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	disk := smallDisk(t, 256)
	fill(t, disk, 12)
	a := start(t, command{endpoint: r.Endpoint(), spool: filepath.Join(disk, "spool")})
	a.log.wait("the spool's folder does not work, requests are kept in memory", 20*time.Second)
	time.Sleep(2 * time.Second)
	a.signal(unix.SIGTERM)
	if code := a.wait(25 * time.Second); code != 1 {
		t.Errorf("exit code %d, want 1: samples are lost", code)
	}
	n := a.totals()
	n.Check(t)
	if n.OTLP.Lost == 0 || n.OTLP.Evicted > 0 {
		t.Errorf("nothing was lost, or under another reason: %+v", n)
	}
	if want := fmt.Sprintf("%d samples in", n.OTLP.Lost); !strings.Contains(a.log.text(), want) {
		t.Errorf("the agent does not say that it loses %s requests", want)
	}
	if left := spooled(t, filepath.Join(a.spool, "otlp")).samples; left != n.OTLP.Waiting {
		t.Errorf("%d samples are in the spool, %d are said to wait", left, n.OTLP.Waiting)
	}
}

// TestSpoolFolderRemoved: files that somebody removes are counted, and the
// folder is made again.
func TestSpoolFolderRemoved(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	a := start(t, command{endpoint: r.Endpoint()})
	folder := filepath.Join(a.spool, "otlp")
	until(t, time.Minute, "two windows in the spool", func() bool { return spooled(t, folder).files >= 2 })
	until(t, 10*time.Second, "the folder is removed", func() bool { return os.RemoveAll(a.spool) == nil }) // it may get a file meanwhile
	until(t, time.Minute, "two windows in a new folder", func() bool { return spooled(t, folder).files >= 2 })
	(&scene{t, r, a, "grpc"}).back(r.Listen)
	n := a.stop()
	if n.OTLP.Unreadable == 0 || n.Undelivered() != n.OTLP.Unreadable || n.OTLP.Waiting > 0 {
		t.Errorf("%+v", n)
	}
	account(t, r, n)
}

// TestSpoolFull: beyond --spool.max the oldest make room, and are counted. The
// least that can be set takes a minute to fill.
func TestSpoolFull(t *testing.T) {
	require(t)
	if !inLong() {
		t.Skip(long + "=1 runs this")
	}
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	// Labels that do not compress make windows larger.
	random := rand.New(rand.NewPCG(1, 2))
	var labels []string
	for i := range 8 {
		value := make([]byte, 1000)
		for j := range value {
			value[j] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-"[random.IntN(64)]
		}
		labels = append(labels, fmt.Sprintf("label%02d=%s", i, value))
	}
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--spool.max", "1Mi", "--labels", strings.Join(labels, ",")}})
	a.log.wait("no room in the spool, its oldest request is dropped", 5*time.Minute)
	var size int64
	names, err := filepath.Glob(filepath.Join(a.spool, "otlp", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if st, err := os.Stat(name); err == nil {
			size += (st.Size() + 4095) &^ 4095
		}
	}
	if size > 1<<20 {
		t.Errorf("the spool takes %d bytes, want at most 1 MiB", size)
	}
	(&scene{t, r, a, "grpc"}).back(r.Listen)
	n := a.stop()
	if n.OTLP.Evicted == 0 || n.Undelivered() != n.OTLP.Evicted || n.OTLP.Waiting > 0 {
		t.Errorf("%+v", n)
	}
	account(t, r, n)
}

// TestSpoolDamaged: of files that were damaged between two runs, at each part
// of a file, the rest arrives, and samples whose number is known are counted.
func TestSpoolDamaged(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	a := start(t, command{endpoint: r.Endpoint()})
	folder := filepath.Join(a.spool, "otlp")
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 0x40; return b }
	}
	damages := []struct {
		what   string
		header bool // it is unsound, so that the number of samples is not known
		do     func([]byte) []byte
	}{
		{"magic", true, flip(0)},
		{"version", true, flip(8)},
		{"samples", true, flip(16)},
		{"checksum of the body", true, flip(40)},
		{"checksum of the header", true, flip(44)},
		{"begin of the body", false, flip(48)},
		{"end of the file cut off", false, func(b []byte) []byte { return b[:len(b)-7] }},
		{"longer", false, func(b []byte) []byte { return append(b, 0) }},
		{"empty", true, func([]byte) []byte { return nil }},
	}
	until(t, 60*time.Second, "enough windows", func() bool { return spooled(t, folder).files > len(damages)+1 })
	first := a.stop()
	first.Check(t)
	var unknown, unreadable uint64
	left := spooled(t, folder)
	for i, d := range damages {
		n, _ := samplesIn(t, left.names[i])
		b, err := os.ReadFile(left.names[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left.names[i], d.do(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if d.header {
			unknown += n
		} else {
			unreadable += n
		}
	}
	r.Listen()
	b := start(t, command{endpoint: r.Endpoint(), spool: a.spool})
	(&scene{t, r, b, "grpc"}).catchUp(b.began)
	n := b.stop()
	n.Check(t)
	received(t, r, n.OTLP.Delivered, 0)
	if n.OTLP.Recovered+unknown != first.OTLP.Waiting || n.OTLP.Unreadable != unreadable || n.OTLP.Waiting > 0 {
		t.Errorf("%d waited, %d of them in files without a sound header, %d in damaged ones: %+v", first.OTLP.Waiting, unknown, unreadable, n.OTLP)
	}
	if said := len(b.log.with("a spool file cannot be used")); said != len(damages) {
		t.Errorf("%d damaged files are named, want %d", said, len(damages))
	}
}
