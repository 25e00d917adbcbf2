package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/profiler"
)

// leave leaves requests in a folder, as an agent does that ends while its
// backend is away, and gives the names of their files.
func leave(t *testing.T, dir string, numbers ...int) []string {
	t.Helper()
	away := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
		return exporter.Receipt{}, errAway
	}}
	s := open(t, Config{Sender: away, Dir: dir})
	put(t, s, numbers...)
	drain(t, s)
	files := spoolFiles(t, dir)
	if len(files) != len(numbers) {
		t.Fatalf("%d files for %d requests", len(files), len(numbers))
	}
	return files
}

func TestRequestsOutliveTheAgentAndKeepTheirOrder(t *testing.T) {
	dir := t.TempDir()
	leave(t, dir, 0, 1, 2)
	leave2 := func(numbers ...int) {
		away := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{}, errAway
		}}
		s := open(t, Config{Sender: away, Dir: dir})
		put(t, s, numbers...)
		drain(t, s)
	}
	leave2(3, 4)
	b := &backend{}
	s := open(t, Config{Sender: b, Dir: dir})
	if st := balance(t, s, b); st.Recovered != (Count{5, 5010}) || st.Disk.Samples != 5010 {
		t.Errorf("%+v", st)
	}
	put(t, s, 5)
	drain(t, s)
	if diff := cmp.Diff(upTo(6), b.taken()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := names(t, dir); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

func TestOrderIsKeptWhenTheClockGoesBack(t *testing.T) {
	dir := t.TempDir()
	// A file that a clock in the far future named.
	future := fileName(uint64(time.Now().AddDate(100, 0, 0).UnixMicro()))
	if err := os.Rename(filepath.Join(dir, leave(t, dir, 0)[0]), filepath.Join(dir, future)); err != nil {
		t.Fatal(err)
	}
	leaveMore := open(t, Config{Sender: &backend{}, Dir: dir})
	put(t, leaveMore, 1, 2)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := leaveMore.Close(ended); err != nil {
		t.Fatal(err)
	}
	b := &backend{}
	drain(t, open(t, Config{Sender: b, Dir: dir}))
	if diff := cmp.Diff(upTo(3), b.taken()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestOneAgentToAFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Sender: &backend{}, Dir: dir})
	_, err := Open(Config{Sender: &backend{}, Dir: dir})
	var fault *profiler.Fault
	if !errors.As(err, &fault) || !errors.Is(err, errHeld) || !strings.Contains(fault.What, dir) || !strings.Contains(fault.Fix, "--spool.dir") {
		t.Errorf("a second agent: %v", err)
	}
	drain(t, s)
	drain(t, open(t, Config{Sender: &backend{}, Dir: dir}))
}

func TestFolderThatCannotBeOne(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"a file": file, "below a file": filepath.Join(file, "spool")} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(Config{Sender: &backend{}, Dir: dir})
			var fault *profiler.Fault
			if !errors.As(err, &fault) || fault.Fix == "" || !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("no sender", func(t *testing.T) {
		if _, err := Open(Config{}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a negative limit", func(t *testing.T) {
		if _, err := Open(Config{Sender: &backend{}, MaxAge: -1}); err == nil {
			t.Error("no error")
		}
	})
}

func TestNobodyElseMayReadTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "spool")
	b := &backend{answer: func(_ context.Context, _ int, r *exporter.Request) (exporter.Receipt, error) {
		if number(r) == 0 {
			return exporter.Receipt{}, &exporter.RefusedError{Err: errors.New("no")}
		}
		return exporter.Receipt{}, errAway
	}}
	s := open(t, Config{Sender: b, Dir: dir})
	put(t, s, 0, 1)
	drain(t, s)
	seen := map[string]fs.FileMode{}
	if err := filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		name := filepath.Base(path)
		if !d.IsDir() {
			name = "file in " + filepath.Base(filepath.Dir(path))
		}
		seen[name] = info.Mode().Perm()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{
		"var": 0o700, "spool": 0o700, rejectedDir: 0o700, "file in spool": 0o600, "file in " + rejectedDir: 0o600,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestParseName(t *testing.T) {
	for _, tt := range []struct {
		name string
		want uint64
		end  string
		ok   bool
	}{
		{"1795379475123456.spool", 1795379475123456, ending, true},
		{"0000000000000000.tmp", 0, tempEnding, true},
		{"9000000000000000.spool", maxSequence, ending, true},
		{"9000000000000001.spool", 0, "", false},
		{"9999999999999999.spool", 0, "", false},
		{"17953794751234567.spool", 0, "", false},
		{"795379475123456.spool", 0, "", false},
		{"+795379475123456.spool", 0, "", false},
		{"1795379475123456.spool~", 0, "", false},
		{"1795379475123456", 0, "", false},
		{".spool", 0, "", false},
		{"", 0, "", false},
	} {
		sequence, end, ok := parseName(tt.name)
		if ok != tt.ok || ok && (sequence != tt.want || end != tt.end) {
			t.Errorf("%q: %d, %q, %v", tt.name, sequence, end, ok)
		}
	}
}

// TestDamagedFile damages the middle one of three files in every way, and wants
// the other two delivered and all three accounted for.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	file := leave(t, dir, 0, 1, 2)[1]
	whole, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	type damage struct {
		name string
		data []byte
		keep bool // its header is sound, so its samples are known
	}
	var damages []damage
	for i := range whole {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 0x10
		damages = append(damages, damage{fmt.Sprintf("a bit of byte %d flipped", i), flipped, i >= headerSize})
		damages = append(damages, damage{fmt.Sprintf("cut off at %d", i), whole[:i], i >= headerSize})
	}
	le := binary.LittleEndian
	lie := func(offset int, value uint32) []byte {
		out := bytes.Clone(whole)
		le.PutUint32(out[offset:], value)
		return sealed(out, headerSize)
	}
	damages = append(damages,
		damage{"longer than it says", append(bytes.Clone(whole), 'x'), true},
		damage{"all zeros", make([]byte, len(whole)), false},
		damage{"garbage", bytes.Repeat([]byte("garbage "), 10_000), false},
		damage{"a body of 4 GiB", lie(32, 0xffffffff), false},
		damage{"a body of 64 MiB", lie(32, MaxBody), true},
		damage{"stored in 4 GiB", lie(36, 0xffffffff), false},
		damage{"stored in 64 MiB", lie(36, MaxBody), true},
	)
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			dir := t.TempDir()
			files := leave(t, dir, 0, 1, 2)
			if err := os.WriteFile(filepath.Join(dir, files[1]), d.data, 0o600); err != nil {
				t.Fatal(err)
			}
			log, text := logTo(t)
			b := &backend{}
			s := open(t, Config{Sender: b, Dir: dir, Log: log})
			drain(t, s)
			if diff := cmp.Diff([]int{0, 2}, b.taken()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			want := Count{Requests: 1}
			if d.keep {
				want.Samples = 1001
			}
			if st := balance(t, s, b); st.Unreadable != want || st.SetAsideFiles != 0 && st.SetAsideFiles != 1 {
				t.Errorf("want %+v unreadable: %+v", want, st)
			}
			if diff := cmp.Diff([]string{files[1]}, names(t, filepath.Join(dir, rejectedDir))); diff != "" {
				t.Errorf("set aside (-want +got)\n%s", diff)
			}
			if text.count(files[1]) == 0 {
				t.Error("the log does not name the file")
			}
			// It is not met again.
			again := open(t, Config{Sender: b, Dir: dir})
			drain(t, again)
			if st := balance(t, again, nil); st.Recovered.Requests != 0 {
				t.Errorf("at the next start: %+v", st)
			}
		})
	}
}

func TestFileDamagedWhileItWaits(t *testing.T) {
	dir := t.TempDir()
	b := &backend{}
	s := open(t, Config{Sender: b, Dir: dir})
	put(t, s, 0, 1, 2, 3, 4)
	files := spoolFiles(t, dir)
	flip := func(name string, offset int64) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{0xa5}, offset); err != nil {
			t.Fatal(err)
		}
	}
	flip(files[0], 3)
	flip(files[1], headerSize+12)
	if err := os.Remove(filepath.Join(dir, files[2])); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, files[3])); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, files[3]), 0o600); err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	if st := balance(t, s, b); st.Unreadable != (Count{4, 4006}) || st.Delivered != (Count{1, 1004}) {
		t.Errorf("%+v", st)
	}
}

func TestWhatIsNotTheSpoolsIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	leave(t, dir, 0)
	at := func(n int) string { return filepath.Join(dir, fileName(uint64(n))) }
	for _, err := range []error{
		os.Mkdir(at(1), 0o700),
		os.Symlink(secret, at(2)),
		os.Symlink("nowhere", at(3)),
		unix.Mkfifo(at(4), 0o600),
		os.WriteFile(filepath.Join(dir, "README"), []byte("mine"), 0o600),
		os.WriteFile(filepath.Join(dir, "9999999999999999.spool"), []byte("mine"), 0o600),
		os.Mkdir(filepath.Join(dir, "lost+found"), 0o700),
		os.WriteFile(filepath.Join(dir, "0000000000000005"+tempEnding), []byte("half a fi"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	log, text := logTo(t)
	b := &backend{}
	s := open(t, Config{Sender: b, Dir: dir, Log: log})
	put(t, s, 1)
	drain(t, s)
	if diff := cmp.Diff(upTo(2), b.taken()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	st := balance(t, s, b)
	if st.ForeignFiles != 7 || st.Unreadable.Requests != 0 || text.count("not its own") != 1 {
		t.Errorf("%+v", st)
	}
	want := []string{
		fileName(1), fileName(2), fileName(3), fileName(4), "9999999999999999.spool", "README", "lost+found",
	}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestFilesOfANewerVersionAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	newer := encoded(t, request(7))
	binary.LittleEndian.PutUint16(newer[8:], version+1)
	newer = sealed(newer, headerSize)
	name := filepath.Join(dir, fileName(5))
	if err := os.WriteFile(name, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	b := &backend{}
	s := open(t, Config{Sender: b, Dir: dir, MaxBytes: 8 * block})
	for n := range 20 {
		put(t, s, n)
	}
	drain(t, s)
	if st := balance(t, s, b); st.NewerFiles != 1 || st.Unreadable.Requests != 0 || len(b.taken()) != 8 {
		t.Errorf("%+v, took %v", st, b.taken())
	}
	if text, err := os.ReadFile(name); err != nil || !bytes.Equal(text, newer) {
		t.Errorf("it was changed: %v", err)
	}
}

func TestTheOldestMakesRoom(t *testing.T) {
	const size, limit = 20_000, 200_000
	away := func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
		return exporter.Receipt{}, errAway
	}
	fill := func(t *testing.T, s *Spool) (samples uint64) {
		for n := range 40 {
			r := incompressible(n, size)
			samples += r.Samples
			if err := s.Put(r); err != nil {
				t.Fatal(err)
			}
			if st := s.Stats(); st.Disk.Bytes > limit || st.Memory.Bytes > limit {
				t.Fatalf("over its bound: %+v", st)
			}
		}
		return samples
	}
	t.Run("in the folder", func(t *testing.T) {
		dir := t.TempDir()
		log, text := logTo(t)
		s := open(t, Config{Sender: &backend{answer: away}, Dir: dir, MaxBytes: limit, Log: log})
		samples := fill(t, s)
		var bytes int64
		for _, name := range spoolFiles(t, dir) {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			bytes += info.Size()
		}
		if st := balance(t, s, nil); bytes > limit || bytes < limit/2 || st.Evicted.Samples+st.Disk.Samples != samples || st.Memory.Requests > 0 {
			t.Errorf("%d bytes in the folder, %+v", bytes, st)
		}
		if text.count("no room") == 0 {
			t.Error("the log does not say so")
		}
		drain(t, s)
		b := &backend{}
		drain(t, open(t, Config{Sender: b, Dir: dir, MaxBytes: limit}))
		if diff := cmp.Diff(upTo(40)[40-len(b.taken()):], b.taken()); diff != "" || len(b.taken()) < 5 {
			t.Errorf("not the newest (-want +got)\n%s", diff)
		}
	})
	t.Run("in memory", func(t *testing.T) {
		b := &backend{}
		s := open(t, Config{Sender: b, MemoryBytes: limit})
		samples := fill(t, s)
		if st := balance(t, s, nil); st.Evicted.Samples+st.Memory.Samples != samples || st.Memory.Bytes < limit/2 {
			t.Errorf("%+v", st)
		}
		drain(t, s)
		if diff := cmp.Diff(upTo(40)[40-len(b.taken()):], b.taken()); diff != "" || len(b.taken()) < 5 {
			t.Errorf("not the newest (-want +got)\n%s", diff)
		}
	})
	t.Run("not the one that is being sent", func(t *testing.T) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
				time.Sleep(time.Second)
				return exporter.Receipt{}, nil
			}}
			s := open(t, Config{Sender: b, Dir: dir, MaxBytes: limit})
			run(t, s)
			samples := put(t, s, 1000)
			synctest.Wait()
			samples += fill(t, s)
			time.Sleep(time.Minute)
			if st := balance(t, s, b); st.Delivered.Samples+st.Evicted.Samples != samples || b.taken()[0] != 1000 {
				t.Errorf("%d samples put, %+v", samples, st)
			}
		})
	})
	t.Run("when the bound is lower than it was", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, Config{Sender: &backend{answer: away}, Dir: dir, MaxBytes: limit})
		fill(t, s)
		drain(t, s)
		s = open(t, Config{Sender: &backend{}, Dir: dir, MaxBytes: limit / 2})
		if st := balance(t, s, nil); st.Disk.Bytes > limit/2 || st.Evicted.Requests == 0 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("more than there is room for at all is an error", func(t *testing.T) {
		for name, cfg := range map[string]Config{
			"folder": {Sender: &backend{}, Dir: t.TempDir(), MaxBytes: limit},
			"memory": {Sender: &backend{}, MemoryBytes: limit},
		} {
			s := open(t, cfg)
			if err := s.Put(incompressible(0, 2*limit)); err == nil {
				t.Errorf("%s: no error", name)
			}
			if err := s.Put(&exporter.Request{Body: make([]byte, MaxBody+1)}); err == nil {
				t.Errorf("%s: no error for a body over MaxBody", name)
			}
			if st := balance(t, s, nil); st.Put.Requests != 0 {
				t.Errorf("%s: %+v", name, st)
			}
		}
	})
}

func TestFilesSetAsideAreBounded(t *testing.T) {
	const limit = 64 * block
	refuse := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
		return exporter.Receipt{}, &exporter.RefusedError{Err: errors.New("no")}
	}}
	dir := t.TempDir()
	s := open(t, Config{Sender: refuse, Dir: dir, MaxBytes: limit})
	for n := range 30 {
		put(t, s, n)
	}
	drain(t, s)
	st := balance(t, s, nil)
	aside := names(t, filepath.Join(dir, rejectedDir))
	if st.Refused.Requests != 30 || len(aside) != limit/8/block || st.SetAsideDropped != uint64(30-len(aside)) {
		t.Errorf("%d files set aside, %+v", len(aside), st)
	}
	file, err := os.ReadFile(filepath.Join(dir, rejectedDir, aside[len(aside)-1]))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := decode(file); err != nil || number(r) != 29 {
		t.Errorf("the last one refused is not there: %v", err)
	}

	t.Run("they are known after a restart, and make room first", func(t *testing.T) {
		away := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{}, errAway
		}}
		s := open(t, Config{Sender: away, Dir: dir, MaxBytes: limit})
		if st := s.Stats(); st.SetAsideFiles != limit/8/block {
			t.Errorf("%+v", st)
		}
		for n := range limit / block {
			put(t, s, n)
		}
		if st := balance(t, s, nil); st.SetAsideFiles != 0 || st.SetAsideDropped != limit/8/block || st.Evicted.Requests != 0 || len(names(t, filepath.Join(dir, rejectedDir))) != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestNothingIsMovedOutOfTheFolder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, rejectedDir)); err != nil {
		t.Fatal(err)
	}
	refuse := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
		return exporter.Receipt{}, &exporter.RefusedError{Err: errors.New("no")}
	}}
	s := open(t, Config{Sender: refuse, Dir: dir})
	put(t, s, 0, 1)
	drain(t, s)
	if st := balance(t, s, nil); st.Refused.Requests != 2 || st.DiskErrors == 0 {
		t.Errorf("%+v", st)
	}
	if got := names(t, outside); len(got) > 0 {
		t.Errorf("moved to where a link leads: %v", got)
	}
	if got := spoolFiles(t, dir); len(got) > 0 {
		t.Errorf("would be sent again: %v", got)
	}
}
